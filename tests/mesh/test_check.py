"""istio_egress_check against real sidecars and a real far end: what each kind of request looks like, and that its evidence is that of this request.

The namespace is the test's own; modes are set by Sidecar resources in it, so that the mesh's mode does not matter and is not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client, config, utils

MODULE = "ansible_collections.meshops.istio_egress.plugins.modules.istio_egress_check"
NAMESPACE = f"check-{secrets.token_hex(3)}"
IMAGE = "docker.io/curlimages/curl:8.16.0"

Check = Callable[..., dict[str, Any]]

BAD, SLOW, REFUSED, DROPPED, BEHIND = (f"{name}.{NAMESPACE}.test" for name in ("bad", "slow", "refused", "dropped", "behind"))
FAULTS = {BAD: ["--status", "502"], SLOW: ["--delay", "6"], REFUSED: ["--refuse"], DROPPED: ["--drop"], BEHIND: []}
GATEWAY = "istio-egressgateway.istio-system.svc.cluster.local"


def workload(name: str, sidecar: bool = True, **containers: dict[str, Any]) -> dict[str, Any]:
    labels = {"app": name} | ({} if sidecar else {"sidecar.istio.io/inject": "false"})
    common = {"image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "infinity"]}
    template = [{"name": c, **common, **more} for c, more in ({name: {}} | containers).items()]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0, "containers": template}},
        },
    }


def istio(kind: str, name: str, group: str = "networking", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": f"{group}.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def mode(name: str, mode: str) -> dict[str, Any]:
    imported = [{"hosts": ["./*", "istio-system/*"]}]
    return istio("Sidecar", name, workloadSelector={"labels": {"app": name}}, outboundTrafficPolicy={"mode": mode}, egress=imported)


def declared(name: str, host: str, *ports: tuple[str, int], **more: Any) -> dict[str, Any]:
    more = {"resolution": "DNS", "exportTo": ["."]} | more
    numbered = [{"number": n, "name": f"{p.lower()}-{n}", "protocol": p} for p, n in ports]
    return istio("ServiceEntry", name, hosts=[host], ports=numbered, **more)


NO_CURL = {
    "env": [{"name": "PATH", "value": "/tmp/bin"}],
    "command": ["/bin/sh", "-c", "/bin/mkdir /tmp/bin && /bin/ln -s /bin/sh /tmp/bin/sh && exec /bin/sleep infinity"],
}
NO_SHELL = {"env": [{"name": "PATH", "value": "/nowhere"}], "command": ["/bin/sleep", "infinity"]}
OBJECTS = [
    workload("open"), workload("closed"), workload("quiet"), workload("bare", sidecar=False, nocurl=NO_CURL, nosh=NO_SHELL),
    workload("curlless", curlless={**NO_CURL}), mode("curlless", "REGISTRY_ONLY"),
    mode("open", "ALLOW_ANY"), mode("closed", "REGISTRY_ONLY"), mode("quiet", "REGISTRY_ONLY"),
    istio("Telemetry", "quiet", "telemetry", selector={"matchLabels": {"app": "quiet"}}, accessLogging=[{"providers": [{"name": "envoy"}], "disabled": True}]),
    declared("http", "httpbin.org", ("HTTP", 80)),
    declared("tls", "www.google.com", ("TLS", 443)),
    declared("refused", REFUSED, ("HTTP", 80), ("TLS", 443)),
    declared("dropped", DROPPED, ("HTTP", 80), ("TLS", 443)),
    declared("lost", f"lost.{NAMESPACE}.test", ("HTTP", 80), endpoints=[{"address": "no-such-name.invalid"}]),
    # httpbin.org's own address, so that a TCP port of it can be declared
    declared("tcp", f"tcp.{NAMESPACE}.test", ("TCP", 9000), ("TCP", 9999), resolution="NONE", addresses=["203.0.113.11"]),
    # one host that goes through the egress gateway, and one that the gateway does not know
    declared("behind", BEHIND, ("HTTP", 80), ("TLS", 443), exportTo=[".", "istio-system"]),
    declared("unknown", "www.wikipedia.org", ("HTTP", 80)),
    istio(
        "Gateway", NAMESPACE, selector={"istio": "egressgateway"},
        servers=[
            {"port": {"number": 80, "name": f"http-{NAMESPACE}", "protocol": "HTTP"}, "hosts": [BEHIND]},
            {"port": {"number": 443, "name": f"tls-{NAMESPACE}", "protocol": "TLS"}, "hosts": [BEHIND], "tls": {"mode": "PASSTHROUGH"}},
        ],
    ),
    istio(
        "VirtualService", "client", hosts=[BEHIND, "www.wikipedia.org"], exportTo=["."],
        http=[{"route": [{"destination": {"host": GATEWAY, "port": {"number": 80}}}]}],
        tls=[{"match": [{"port": 443, "sniHosts": [BEHIND]}], "route": [{"destination": {"host": GATEWAY, "port": {"number": 443}}}]}],
    ),
    istio(
        "VirtualService", "gateway", hosts=[BEHIND], gateways=[NAMESPACE],
        http=[{"route": [{"destination": {"host": BEHIND, "port": {"number": 80}}}]}],
        tls=[{"match": [{"port": 443, "sniHosts": [BEHIND]}], "route": [{"destination": {"host": BEHIND, "port": {"number": 443}}}]}],
    ),
]  # fmt: skip

# url → result, verdict, by, via; curl meets a connection that is closed on it with 52 or with 56
SEEN = {
    "open": {
        "http://httpbin.org/headers": ("200", "allowed", None, "registered"),
        "http://other.example.com/": ("200", "allowed", None, "passthrough"),
        "https://www.google.com/": ("200", "allowed", None, "registered"),
        "https://other.example.com/": ("200", "allowed", None, "passthrough"),
        "tcp://httpbin.org:5432": ("open", "allowed", None, "passthrough"),
        "http://httpbin.org:8080/": ("200", "allowed", None, "passthrough"),
        "https://203.0.113.13/": ("exit 60", "blocked", "client", None),
        f"http://{BAD}/": ("502", "allowed", None, "passthrough"),
        f"https://{BAD}/": ("502", "allowed", None, "passthrough"),
        f"http://{SLOW}/": ("exit 28", "blocked", "far end", None),
        f"tcp://{DROPPED}:5432": ("open", "blocked", "network", None),
        f"http://{BEHIND}/": ("200", "allowed", None, "gateway"),
        f"https://{BEHIND}/": ("200", "allowed", None, "gateway"),
        "http://www.wikipedia.org/": ("404", "blocked", "gateway", None),
    },
    "closed": {
        "http://httpbin.org/headers": ("200", "allowed", None, "registered"),
        "http://other.example.com/": ("502", "blocked", "mesh", None),
        "https://www.google.com/": ("200", "allowed", None, "registered"),
        "https://other.example.com/": ("exit 35", "blocked", "mesh", None),
        "http://httpbin.org:8080/": ("exit 5?", "blocked", "mesh", None),
        "tcp://httpbin.org:9000": ("open", "allowed", None, "registered"),
        "tcp://httpbin.org:9999": ("closed", "blocked", "far end", None),
        "tcp://httpbin.org:5432": ("closed", "blocked", "mesh", None),
        f"http://{REFUSED}/": ("503", "blocked", "far end", None),
        f"https://{REFUSED}/": ("exit 35", "blocked", "far end", None),
        f"http://{DROPPED}/": ("exit 28", "blocked", "network", None),
        f"https://{DROPPED}/": ("exit 28", "blocked", "network", None),
        "http://no-such-name.invalid/": ("exit 6", "blocked", "dns", None),
    },
    "quiet": {
        "http://httpbin.org/headers": ("200", "allowed", None, "registered"),
        "http://other.example.com/": ("502", "blocked", "mesh", None),
        "https://www.google.com/": ("200", "allowed", None, "registered"),
        "https://other.example.com/": ("exit 35", "blocked", "mesh", None),
        "tcp://httpbin.org:9000": ("open", "allowed", None, "registered"),  # it speaks first
        "tcp://httpbin.org:5432": ("closed", "blocked", "mesh", None),
    },
    "bare": {
        "http://other.example.com/": ("200", "allowed", None, "no sidecar"),
        f"http://{BAD}/": ("502", "allowed", None, "no sidecar"),
        "tcp://httpbin.org:9000": ("open", "allowed", None, "no sidecar"),
        f"http://{REFUSED}/": ("exit 7", "blocked", "far end", None),
        f"https://{DROPPED}/": ("exit 28", "blocked", "network", None),
    },
}  # fmt: skip


def own_process(**options: Any) -> dict[str, Any]:
    """The module's result, run as Ansible runs it: a program that gets its options as JSON. Several can run at the same time."""
    ran = subprocess.run(
        [sys.executable, "-m", MODULE], input=json.dumps({"ANSIBLE_MODULE_ARGS": {"namespace": NAMESPACE, **options}}),
        env={**os.environ, "PYTHONPATH": os.environ["ANSIBLE_COLLECTIONS_PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stdout.lstrip().startswith("{"), ran.stderr
    return json.loads(ran.stdout)


def until(what: str, seen: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def check(run_module: Callable[..., Any]) -> Check:
    """The module's result, whether it failed or not."""

    def run(fails: bool = False, **options: Any) -> dict[str, Any]:
        return run_module("istio_egress_check", fails=fails, **{"namespace": NAMESPACE, **options})

    return run


@pytest.fixture(scope="module")
def api() -> client.ApiClient:
    config.load_kube_config()
    return client.ApiClient()


@pytest.fixture(scope="module")
def pods(api: client.ApiClient, far_end: Callable[..., None], check: Check) -> Iterator[dict[str, client.V1Pod]]:
    """The workloads of OBJECTS, ready, with everything about them in force; by name."""
    core = client.CoreV1Api(api)
    far_end("hosts", "add", *FAULTS)
    for host, fault in FAULTS.items():
        if fault:
            far_end("set", host, *fault)
    core.create_namespace({"metadata": {"name": NAMESPACE, "labels": {"istio-injection": "enabled"}}})
    try:
        apply(api, *OBJECTS)

        def ready() -> dict[str, client.V1Pod]:
            found = core.list_namespaced_pod(NAMESPACE).items
            return {pod.metadata.labels["app"]: pod for pod in found if any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or [])}

        until("pods ready", lambda: set(ready()) == {*SEEN, "curlless"})
        in_force = [{"url": f"https://{BEHIND}/", "expect": "allowed"}, {"url": "http://www.wikipedia.org/", "expect": "blocked"}]
        check(workload="open", requests=in_force, retries=10)
        yield ready()
    finally:
        core.delete_namespace(NAMESPACE)
        far_end("hosts", "remove", *FAULTS)


def apply(api: client.ApiClient, *objects: dict[str, Any]) -> None:
    custom = client.CustomObjectsApi(api)
    for obj in objects:
        group, _sep, version = obj["apiVersion"].rpartition("/")
        if group.endswith("istio.io"):
            plural = {"ServiceEntry": "serviceentries", "Telemetry": "telemetries"}.get(obj["kind"], obj["kind"].lower() + "s")
            custom.create_namespaced_custom_object(group, version, NAMESPACE, plural, obj)
        else:
            utils.create_from_dict(api, obj, namespace=NAMESPACE)


@pytest.fixture(scope="module")
def results(pods: dict[str, client.V1Pod]) -> dict[str, dict[str, Any]]:
    """One task for each workload: all of its requests at once, nothing expected."""
    with ThreadPoolExecutor() as pool:
        return dict(
            zip(SEEN, pool.map(lambda name: own_process(workload=f"deployment/{name}", requests=[" \n".join(SEEN[name])], timeout=4), SEEN), strict=True)
        )


@pytest.mark.parametrize(("name", "url"), [(name, url) for name, urls in SEEN.items() for url in urls], ids=lambda text: text.replace(NAMESPACE, "check"))
def test_what_happened_to_a_request(results: dict[str, dict[str, Any]], name: str, url: str) -> None:
    row = results[name]["checks"][list(SEEN[name]).index(url)]
    assert row["url"] == url
    result, *verdict = SEEN[name][url]
    assert fnmatch(row["result"], result), row["reason"]
    assert [row["verdict"], row["by"], row["via"]] == verdict, row["reason"]


def test_rows_come_with_the_evidence_of_their_own_request(results: dict[str, dict[str, Any]], pods: dict[str, client.V1Pod]) -> None:
    for name in ("open", "closed"):
        for row in results[name]["checks"]:
            if row["by"] == "dns":
                assert row["log"] is None
                continue
            assert f"{row['remote']} {row['local']}" in row["log"]["line"], row
            if row["log"]["sni"]:
                assert row["url"].startswith(f"https://{row['log']['sni']}")
    by_url = {row["url"]: row for row in results["closed"]["checks"]}
    assert by_url["http://httpbin.org/headers"]["decorator"] == "httpbin.org:80/*"
    assert by_url["http://httpbin.org/headers"]["log"]["cluster"] == "outbound|80||httpbin.org"
    assert by_url["http://other.example.com/"]["log"]["route"] == "block_all"
    assert by_url["https://other.example.com/"]["log"]["flags"] == "UH"


def test_the_address_that_the_far_end_saw_tells_the_way(results: dict[str, dict[str, Any]], pods: dict[str, client.V1Pod]) -> None:
    by_url = {row["url"]: row for row in results["open"]["checks"]}
    own = pods["open"].status.pod_ip
    assert {by_url[url]["seen_as"] for url in ("http://httpbin.org/headers", "https://other.example.com/", "tcp://httpbin.org:5432")} == {own}
    assert by_url[f"http://{BEHIND}/"]["seen_as"] == by_url[f"https://{BEHIND}/"]["seen_as"]
    assert by_url[f"http://{BEHIND}/"]["seen_as"] not in (None, own)


def test_nothing_is_changed_and_nothing_was_expected(results: dict[str, dict[str, Any]]) -> None:
    for result in results.values():
        assert (result["changed"], result["passed"], "failed" in result) == (False, True, False)
        assert len(result["table"]) == len(result["checks"]) + 1


def test_unmet_expectations_fail_with_their_rows_and_keep_the_others(pods: dict[str, client.V1Pod], check: Check) -> None:
    result = check(
        fails=True,
        workload="closed",
        requests=[
            {"url": "http://httpbin.org/", "expect": "allowed"},
            {"url": "http://other.example.com/", "expect": "allowed"},
            {"url": "https://www.google.com/", "expect": "blocked"},
            {"url": f"http://{REFUSED}/", "expect": "blocked"},
            "https://other.example.com/",
        ],
    )
    assert result["failed"] and not result["passed"]
    assert [row["met"] for row in result["checks"]] == [True, False, False, False, None]
    first, *lines = result["msg"].splitlines()
    assert first.startswith(f"3 of 5 requests were not as expected (from pod {NAMESPACE}/closed-")
    assert [line.split()[0] for line in lines[:4]] == ["REQUEST", "http://other.example.com/", "https://www.google.com/", f"http://{REFUSED}/"]


def test_an_expectation_is_tried_again_while_a_change_is_on_its_way(api: client.ApiClient, pods: dict[str, client.V1Pod], check: Check) -> None:
    requests = [{"url": "http://de.wikipedia.org/", "expect": "allowed"}, {"url": "http://other.example.com/", "expect": "blocked"}]
    core, pod = client.CoreV1Api(api), pods["closed"].metadata.name

    def declare_when_it_was_refused() -> None:
        until("the first refusal", lambda: "de.wikipedia.org" in core.read_namespaced_pod_log(pod, NAMESPACE, container="istio-proxy"))
        apply(api, declared("late", "de.wikipedia.org", ("HTTP", 80)))

    later = threading.Thread(target=declare_when_it_was_refused)
    later.start()
    result = check(workload="closed", requests=requests, retries=30, delay=1)
    later.join()
    assert result["passed"]
    late, blocked = result["checks"]
    assert late["attempts"] > 1 and blocked["attempts"] == 1


def test_a_hundred_requests_stay_exact_and_quick(pods: dict[str, client.V1Pod], check: Check) -> None:
    urls = ["http://httpbin.org/{}", "https://www.google.com/{}", "http://other.example.com/{}", "https://other.example.com/{}"]
    started = time.monotonic()
    result = check(workload="closed", requests=[url.format(n) for n in range(25) for url in urls])
    seconds = time.monotonic() - started
    print(f"100 requests: {seconds:.1f} s")
    assert [row["result"] for row in result["checks"]] == ["200", "200", "502", "exit 35"] * 25
    assert [row["by"] for row in result["checks"]] == [None, None, "mesh", "mesh"] * 25
    assert len({row["log"]["line"] for row in result["checks"]}) == 100
    assert seconds < 60  # 15 s is the aim on an idle machine


def test_a_workload_without_curl_is_asked_for_by_a_short_lived_pod(api: client.ApiClient, pods: dict[str, client.V1Pod], check: Check) -> None:
    core = client.CoreV1Api(api)
    requests = [{"url": "http://httpbin.org/", "via": "direct"}, {"url": "http://other.example.com/", "expect": "blocked"}]
    result = check(workload="curlless", image=IMAGE, requests=requests, retries=3)
    assert result["pod"].startswith("egress-check-")
    assert [(row["verdict"], row["by"]) for row in result["checks"]] == [("allowed", None), ("blocked", "mesh")]
    left = {pod.metadata.name for pod in core.list_namespaced_pod(NAMESPACE, label_selector="app=curlless").items if not pod.metadata.deletion_timestamp}
    assert left == {pods["curlless"].metadata.name}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workload": "nothing"}, "deployment/nothing has no pod"),
        ({"workload": "bare", "container": "nocurl"}, "exit code 127"),
        ({"workload": "bare", "container": "nosh"}, "cannot run sh"),
        ({"workload": "bare", "container": "nosh", "impersonate_user": "kubernetes-admin", "impersonate_groups": ["system:masters"]}, "cannot run sh"),
        ({"workload": "bare", "container": "other"}, 'no container "other"'),
        ({"requests": ["www.google.com"]}, "does not begin with http://"),
        ({"timeout": 0}, "timeout is 0"),
    ],
)
def test_what_cannot_be_checked_is_an_error_of_two_lines(pods: dict[str, client.V1Pod], check: Check, options: dict[str, Any], said: str) -> None:
    result = check(fails=True, **{"workload": "open", "requests": ["http://httpbin.org/"], **options})
    assert result["failed"]
    assert said in result["msg"]
    assert len(result["msg"].splitlines()) == 2


@contextlib.contextmanager
def breaking_after(seconds: float, server: str) -> Iterator[str]:
    """A way to the API server on which every connection breaks after so many seconds."""
    target = urlsplit(server)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            end = time.monotonic() + seconds
            with socket.create_connection((target.hostname, target.port)) as there:
                ways = {self.request: there, there: self.request}
                while (left := end - time.monotonic()) > 0:
                    for ready in select.select(list(ways), [], [], left)[0]:
                        data = ready.recv(65536)
                        if not data:
                            return
                        ways[ready].sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{relay.server_address[1]}"
        relay.shutdown()


@pytest.mark.usefixtures("own_mesh", "pods")
def test_the_way_to_the_pod_breaks(api: client.ApiClient, check: Check) -> None:
    with breaking_after(2, api.configuration.host) as host:
        result = check(fails=True, workload="open", requests=[f"http://{SLOW}/"], timeout=10, host=host)
    assert result["failed"] and "the connection broke before the command ended" in result["msg"] and "the way to the API server" in result["msg"], result
    assert len(result["msg"].splitlines()) == 2


@pytest.mark.parametrize(
    ("rights", "said"),
    [
        ([], "Not allowed to list pods"),
        (["pods"], "Not allowed to exec into pods"),
        (["pods", "pods/exec"], None),
    ],
)
def test_with_less_rights(api: client.ApiClient, pods: dict[str, client.V1Pod], check: Check, rights: list[str], said: str | None) -> None:
    name, group = f"runner-{len(rights)}", "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": rights or ["none"], "verbs": ["*"]}]
    subject = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
    apply(
        api,
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules},
        {
            "apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name}, "subjects": [subject],
        },
    )  # fmt: skip
    token = client.CoreV1Api(api).create_namespaced_service_account_token(name, NAMESPACE, {"spec": {}}).status.token
    reach = {"host": api.configuration.host, "ca_cert": api.configuration.ssl_ca_cert, "api_key": token}
    result = check(fails=bool(said), workload="closed", requests=["http://other.example.com/"], **reach)
    if said:
        assert result["failed"] and said in result["msg"] and "403" in result["msg"]
        assert len(result["msg"].splitlines()) == 2
    else:
        assert (result["checks"][0]["by"], result["checks"][0]["log"]) == ("mesh", None)
        assert "Not allowed to read the proxy's log" in str(result["warnings"])
