"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler on the machine, and how to reach them.

The API server listens on one port number, inside the machine for all, and outside on 127.0.0.1 by `relay`: one kubeconfig serves both sides.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import http.client
import json
import secrets
import socket
import ssl
import subprocess
import sys

from . import pki
from .layout import API_SERVICE, ENTRY, FIRST_API_PORT, LAST_API_PORT, MANIFESTS, NODE_IP, SERVICE_NET, MeshError, Run
from .machine import Component, wait_for

# Without a node only these have something to do: namespaces go away, service accounts come, owned objects follow their owners.
API_ONLY_CONTROLLERS = (
    "namespace-controller,serviceaccount-controller,serviceaccount-token-controller,root-ca-certificate-publisher-controller,garbage-collector-controller"
)


def listen_outside() -> socket.socket:
    """The socket on which the machine outside reaches the API server: 127.0.0.1, first free port. It is made outside and handed to the relay inside."""
    for port in range(FIRST_API_PORT, LAST_API_PORT + 1):
        try:
            return socket.create_server(("127.0.0.1", port), backlog=512)
        except OSError:
            continue
    raise MeshError(f"no free port on 127.0.0.1 between {FIRST_API_PORT} and {LAST_API_PORT} for the API server")


def relay(listener_fd: int, port: int) -> None:
    """Carry connections from the socket that was made outside to the API server in here, half-closing as the ends do, until killed."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 18):
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            writer.transport.abort()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            api_reader, api_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(pipe(reader, api_writer), pipe(api_reader, writer))
        api_writer.close()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(client, sock=socket.socket(fileno=listener_fd))
        await server.serve_forever()

    asyncio.run(serve())


def make_pki(run: Run, port: int) -> None:
    """CA, certificates, token and kubeconfigs of a run."""
    run.pki.mkdir(mode=0o700)
    ca = run.pki / "ca.crt", run.pki / "ca.key"
    pki.authority(*ca, f"mesh-{run.name}-ca")
    pki.key_pair(run.pki / "sa.key", run.pki / "sa.pub")
    names = [
        "DNS:kubernetes",
        "DNS:kubernetes.default",
        "DNS:kubernetes.default.svc",
        "DNS:kubernetes.default.svc.cluster.local",
        "DNS:localhost",
        f"IP:{API_SERVICE}",
        f"IP:{NODE_IP}",
        "IP:127.0.0.1",
    ]
    pki.leaf(run.pki / "apiserver.crt", run.pki / "apiserver.key", "/CN=kube-apiserver", ca, names)
    pki.leaf(run.pki / "kubelet.crt", run.pki / "kubelet.key", f"/O=system:nodes/CN=system:node:{run.name}", ca, [f"IP:{NODE_IP}", f"DNS:{run.name}"])
    users = {
        "admin": "/O=system:masters/CN=admin",
        "kcm": "/CN=system:kube-controller-manager",
        "scheduler": "/CN=system:kube-scheduler",
        "proxy": "/CN=system:kube-proxy",
    }
    for user, subject in users.items():
        pki.leaf(run.pki / f"{user}.crt", run.pki / f"{user}.key", subject, ca)
    for user in (*users, "kubelet"):
        _write_kubeconfig(run, user, port)
    (run.pki / "admin.kubeconfig").rename(run.kubeconfig)
    run.token.touch(mode=0o600)
    run.token.write_text(secrets.token_hex(16))
    (run.pki / "tokens.csv").write_text(f'{run.token.read_text()},token-admin,token-admin,"system:masters"\n')


def _write_kubeconfig(run: Run, user: str, port: int) -> None:
    def data(file: str) -> str:
        return base64.b64encode((run.pki / file).read_bytes()).decode()

    path = run.pki / f"{user}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": run.name,
                "clusters": [{"name": run.name, "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority-data": data("ca.crt")}}],
                "users": [{"name": f"{user}@{run.name}", "user": {"client-certificate-data": data(f"{user}.crt"), "client-key-data": data(f"{user}.key")}}],
                "contexts": [{"name": run.name, "context": {"cluster": run.name, "user": f"{user}@{run.name}"}}],
            },
            indent=1,
        )
    )


def request(run: Run, method: str, path: str, yaml: str | None = None, timeout: float = 60) -> tuple[int, str]:
    """One request to the API server as admin: status and body; (0, reason) when there was no answer."""
    state = run.read_state()
    if not state:
        return 0, "not started"
    try:
        trust = ssl.create_default_context(cafile=str(run.pki / "ca.crt"))
        connection = http.client.HTTPSConnection("127.0.0.1", state["port"], timeout=timeout, context=trust)
        headers = {"Authorization": f"Bearer {run.token.read_text()}", "Accept": "application/json", **({"Content-Type": "application/yaml"} if yaml else {})}
        connection.request(method, path, body=yaml.encode() if yaml else None, headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body
    except (OSError, http.client.HTTPException) as failure:
        return 0, str(failure)


def ready(run: Run) -> bool:
    return request(run, "GET", "/readyz")[0] == 200


def kubectl(run: Run, *arguments: object, stdin: str | None = None) -> str:
    done = subprocess.run(
        [str(run.cache.bin / "kubectl"), "--kubeconfig", str(run.kubeconfig), *map(str, arguments)], input=stdin, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise MeshError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout


def start_store_and_api(run: Run, port: int, listener_fd: int) -> list[Component]:
    """etcd, kube-apiserver, and the relay to the machine outside."""
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    pki_dir = run.pki
    return [
        Component(
            run,
            "etcd",
            "etcd",
            "--data-dir",
            run.root / "etcd",
            "--listen-client-urls",
            client,
            "--advertise-client-urls",
            client,
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
            "--initial-cluster",
            f"default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ),
        Component(
            run,
            "kube-apiserver",
            "env",
            "GOGC=400",  # a sixth less work at the start, for 200 MB of memory
            "kube-apiserver",
            f"--etcd-servers={client}",
            "--bind-address=0.0.0.0",
            f"--secure-port={port}",
            f"--advertise-address={NODE_IP}",
            f"--tls-cert-file={pki_dir}/apiserver.crt",
            f"--tls-private-key-file={pki_dir}/apiserver.key",
            f"--client-ca-file={pki_dir}/ca.crt",
            f"--token-auth-file={pki_dir}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            f"--service-cluster-ip-range={SERVICE_NET}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki_dir}/sa.pub",
            f"--service-account-signing-key-file={pki_dir}/sa.key",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={pki_dir}/admin.crt",
            f"--kubelet-client-key={pki_dir}/admin.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={MANIFESTS}/audit-policy.yaml",
            f"--audit-log-path={run.audit_log}",
            "--audit-log-maxsize=1024",
        ),
        Component(run, "relay", sys.executable, ENTRY, "--name", run.name, "on-machine", "relay", listener_fd, port, pass_fds=(listener_fd,)),
    ]


def start_controllers(run: Run, *, api_only: bool) -> list[Component]:
    """kube-controller-manager, and kube-scheduler when there is a node."""
    manager = [
        "kube-controller-manager",
        f"--kubeconfig={run.pki}/kcm.kubeconfig",
        f"--service-account-private-key-file={run.pki}/sa.key",
        f"--root-ca-file={run.pki}/ca.crt",
        "--use-service-account-credentials=true",
        "--kube-api-qps=500",  # its default makes it take five seconds to begin
        "--kube-api-burst=1000",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]
    if api_only:
        return [Component(run, "kube-controller-manager", *manager, f"--controllers={API_ONLY_CONTROLLERS}")]
    return [
        Component(run, "kube-controller-manager", *manager),
        Component(run, "kube-scheduler", "kube-scheduler", f"--kubeconfig={run.pki}/scheduler.kubeconfig", "--leader-elect=false", "--bind-address=127.0.0.1"),
    ]


def install_crds(run: Run) -> None:
    """Istio's CRDs, with their CEL rules, as `istioctl install` would bring them; returns when the API server serves them."""
    path, served = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", set()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for status, body in pool.map(lambda crd: request(run, "POST", path, crd), run.cache.crds.read_text().split("\n---\n")):
            if status != 201:
                raise MeshError(f"a CRD of Istio was not accepted ({status}): {body[:300]}")
            spec = json.loads(body)["spec"]
            served |= {(f"/apis/{spec['group']}/{v['name']}", f'"name":"{spec["names"]["plural"]}"') for v in spec["versions"] if v["served"]}

    def all_served() -> bool:
        for group in {group for group, _plural in served}:
            listed = request(run, "GET", group)[1]
            served.difference_update({(g, plural) for g, plural in served if g == group and plural in listed})
        return not served

    wait_for("Istio's CRDs", all_served, [], every=0.2)
