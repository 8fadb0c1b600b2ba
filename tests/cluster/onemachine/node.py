"""The node: containerd, kubelet, kube-proxy, and the cluster's DNS. To be run on the machine."""

from __future__ import annotations

import json
import os
import subprocess

from . import control_plane
from .layout import DNS_SERVICE, ISTIO, LINK_FAR, NODE_IP, POD_NET, REGISTRY_PORT, SYSTEM_PATH, Run, manifest
from .machine import Component, wait_for


def _manifest(run: Run, name: str) -> str:
    values = {"RUN": run.root, "SOCKET": run.containerd_socket, "PKI": run.pki, "CGROUP": run.cgroup, "DNS_SERVICE": DNS_SERVICE, "FAR_DNS": LINK_FAR}
    return manifest(name, values)


def start_containerd(run: Run) -> Component:
    for folder in ("cni", "registries/_default"):
        (run.root / folder).mkdir(parents=True)
    (run.root / "cni" / "10-ptp.conflist").write_text(
        json.dumps(
            {
                "cniVersion": "1.0.0",
                "name": run.name,
                "plugins": [
                    {
                        "type": "ptp",
                        "ipMasq": False,
                        "ipam": {"type": "host-local", "ranges": [[{"subnet": POD_NET}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni-ipam"},
                    },
                    {"type": "portmap", "capabilities": {"portMappings": True}},
                ],
            }
        )
    )
    # Every image comes from the far end's registry, whatever host its name begins with, so imagePullPolicy Always works too.
    server = f"http://{LINK_FAR}:{REGISTRY_PORT}"
    (run.root / "registries/_default/hosts.toml").write_text(f'server = "{server}"\n[host."{server}"]\n  capabilities = ["pull", "resolve"]\n')
    (run.root / "containerd.toml").write_text(_manifest(run, "containerd.toml"))
    return Component(run, "containerd", "containerd", "--config", run.root / "containerd.toml")


def prefetch_images(run: Run) -> None:
    """Pull Istio's images in the background, while the processors wait for other things: a fifth less time until Istio is installed."""
    ctr = f"ctr --address {run.containerd_socket} --namespace k8s.io"
    pulls = [f"{ctr} images pull --hosts-dir {run.root}/registries docker.io/istio/{image}:{ISTIO}" for image in ("pilot", "proxyv2")]
    script = f"until {ctr} version; do sleep 0.1; done; {'; '.join(pulls)}"
    with (run.log / "prefetch.log").open("ab") as log:
        environment = {**os.environ, "PATH": f"{run.cache.bin}:{SYSTEM_PATH}"}
        subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment)


def start_kubelet(run: Run) -> list[Component]:
    (run.root / "resolv.conf").write_text(f"nameserver {LINK_FAR}\n")
    (run.root / "kubelet.yaml").write_text(_manifest(run, "kubelet.yaml"))
    return [
        Component(
            run,
            "kubelet",
            "kubelet",
            "--config",
            run.root / "kubelet.yaml",
            "--kubeconfig",
            run.pki / "kubelet.kubeconfig",
            "--root-dir",
            run.root / "kubelet",
            f"--hostname-override={run.name}",
            f"--node-ip={NODE_IP}",
            "--v=1",
        ),
        Component(
            run,
            "kube-proxy",
            "kube-proxy",
            f"--kubeconfig={run.pki}/proxy.kubeconfig",
            "--proxy-mode=iptables",
            f"--cluster-cidr={POD_NET}",
            f"--hostname-override={run.name}",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            "--bind-address=127.0.0.1",
        ),
    ]


def wait_for_node(run: Run, watched: list[Component]) -> None:
    def ready() -> bool:
        status, body = control_plane.request(run, "GET", f"/api/v1/nodes/{run.name}")
        return status == 200 and any(c["type"] == "Ready" and c["status"] == "True" for c in json.loads(body)["status"].get("conditions", []))

    wait_for("the node", ready, watched)


def install_dns(run: Run) -> None:
    control_plane.kubectl(run, "create", "-f", "-", stdin=_manifest(run, "coredns.yaml"))


def wait_for_dns(run: Run, watched: list[Component]) -> None:
    def ready() -> bool:
        status, body = control_plane.request(run, "GET", "/apis/apps/v1/namespaces/kube-system/deployments/coredns")
        return status == 200 and json.loads(body)["status"].get("readyReplicas") == 1

    wait_for("the cluster's DNS", ready, watched)
