"""Each kind of failure that egress has, made for real, and what istio_egress_check and istio_egress_explain say of it.

One namespace with a mode of its own, an egress gateway of its own, and pods with a sidecar, with one that is led around, without one, and with an init
container that asks before the sidecar is up. The far end's faults are those of the one-machine mesh.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from cluster.onemachine.farend import DEFAULT_HOSTS as ADDRESS

IMAGE = "docker.io/curlimages/curl:8.16.0"
ZONE = f"{secrets.token_hex(3)}.test"
DOWN, BAD, SELF_SIGNED = f"down.{ZONE}", f"bad.{ZONE}", "203.0.113.13"
DENIED, GONE, SUBSET, HIDDEN, UNROUTED = f"denied.{ZONE}", f"gone.{ZONE}", f"subset.{ZONE}", f"hidden.{ZONE}", f"unrouted.{ZONE}"
OPEN = {"labels": {"app": "open"}}


class Kind(NamedTuple):
    """A request of a workload, the result, who stopped it, and words of check's evidence and of explain's reason and fix."""

    url: str
    result: str
    verdict: str
    by: str | None
    evidence: str
    reason: str = ""
    fix: str = ""
    workload: str = "sleep"
    way: str | None = None


KINDS = {
    "mode, HTTP": Kind("http://other.example.com/", "502", "blocked", "mesh", "block_all", "REGISTRY_ONLY", "hosts: [{host: other.example.com, ports: [80]}]"),
    "mode, TLS": Kind("https://other.example.com/", "exit 35", "blocked", "mesh", "BlackHoleCluster", "REGISTRY_ONLY", "other.example.com, ports: [443]"),
    "mode, TCP": Kind("tcp://httpbin.org:5432", "closed", "blocked", "mesh", "BlackHoleCluster", "REGISTRY_ONLY", "tcp/5432], addresses: [203.0.113.11]"),
    "no DNS name": Kind("http://no-such-name.invalid/", "exit 6", "blocked", "dns", "has no address", "has no address in DNS", "Correct the host name"),
    "far end down": Kind(f"http://{DOWN}/", "503", "blocked", "far end", "could not connect"),
    "far end answers 502": Kind(f"http://{BAD}/", "502", "allowed", None, "outbound|80||bad", way="direct"),
    "certificate wrong": Kind(f"https://{SELF_SIGNED}/", "exit 60", "blocked", "client", "certificate", workload="open"),
    "gateway denies": Kind(f"http://{DENIED}/", "403", "blocked", "gateway policy", "/deny", "AuthorizationPolicy", "Allow cluster.local/ns/"),
    "gateway denies TLS": Kind(f"https://{DENIED}/", "exit 35", "blocked", "gateway policy", "/deny", "AuthorizationPolicy"),
    "gateway has no route": Kind(f"http://{UNROUTED}/", "404", "blocked", "gateway", "no route", "has no way on for it", "istio_egress_gateway"),
    "gateway down": Kind(f"http://{GONE}/", "503", "blocked", "mesh", "no address for it: outbound|80||gone", "no pod is ready", "Bring the gateway up"),
    "subset missing": Kind(f"http://{SUBSET}/", "503", "blocked", "mesh", "cluster_not_found", "subset missing of", "Add subset missing"),
    "entry not exported": Kind(f"http://{HIDDEN}/", "502", "blocked", "mesh", "block_all", "not exported to namespace", "export_to"),
    "bypass": Kind("http://httpbin.org/", "200", "allowed", None, "excludeOutboundIPRanges", "excludeOutboundIPRanges", workload="around", way="direct"),
    "no sidecar": Kind("http://other.example.com/", "200", "allowed", None, "no sidecar", "has no sidecar", "istio-injection", workload="bare", way="direct"),
}  # fmt: skip


def istio(namespace: str, kind: str, name: str, group: str = "networking", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": f"{group}.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def entry(namespace: str, name: str, hosts: list[str], export: list[str]) -> dict[str, Any]:
    ports = [{"number": 80, "name": "http", "protocol": "HTTP"}, {"number": 443, "name": "tls", "protocol": "TLS"}]
    return istio(namespace, "ServiceEntry", name, hosts=hosts, ports=ports, resolution="DNS", location="MESH_EXTERNAL", exportTo=export)


def objects(clients: str, other: str) -> list[dict[str, Any]]:
    gateway, gone = (f"{name}.{clients}.svc.cluster.local" for name in ("gw", "gone"))

    def to(host: str, port: int = 80, **more: Any) -> list[dict[str, Any]]:
        return [{"destination": {"host": host, "port": {"number": port}, **more}}]

    return [
        istio(clients, "Sidecar", "default", outboundTrafficPolicy={"mode": "REGISTRY_ONLY"}, egress=[{"hosts": ["*/*"]}]),
        istio(clients, "Sidecar", "open", workloadSelector=OPEN, outboundTrafficPolicy={"mode": "ALLOW_ANY"}, egress=[{"hosts": ["./*"]}]),
        entry(clients, "hosts", [DOWN, BAD, SUBSET, DENIED, GONE, UNROUTED], ["."]),
        entry(other, "hidden", [HIDDEN], ["."]),
        istio(
            clients, "Gateway", "out", selector={"app": "gw"},
            servers=[
                {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]},
                {"port": {"number": 443, "name": "tls", "protocol": "TLS"}, "hosts": [DENIED], "tls": {"mode": "PASSTHROUGH"}},
            ],
        ),
        istio(
            clients, "VirtualService", "denied", hosts=[DENIED, UNROUTED], gateways=["mesh"], http=[{"route": to(gateway)}],
            tls=[{"match": [{"port": 443, "sniHosts": [DENIED]}], "route": to(gateway, 443)}],
        ),
        istio(
            clients, "VirtualService", "at-gateway", hosts=[DENIED], gateways=["out"], http=[{"route": to(DENIED)}],
            tls=[{"match": [{"port": 443, "sniHosts": [DENIED]}], "route": to(DENIED, 443)}],
        ),
        istio(clients, "VirtualService", "gone", hosts=[GONE], gateways=["mesh"], http=[{"route": to(gone)}]),
        istio(clients, "VirtualService", "subset", hosts=[SUBSET], gateways=["mesh"], http=[{"route": to(SUBSET, subset="missing")}]),
        istio(
            clients, "AuthorizationPolicy", "deny", "security", selector={"matchLabels": {"app": "gw"}}, action="DENY",
            rules=[{"to": [{"operation": {"hosts": [DENIED]}}]}, {"when": [{"key": "connection.sni", "values": [DENIED]}]}],
        ),
    ]  # fmt: skip


def deployment(namespace: str, name: str, container: dict[str, Any], init: list[dict[str, Any]] | None = None, **notes: dict[str, str]) -> dict[str, Any]:
    metadata = {"labels": {"app": name, **notes.get("labels", {})}, "annotations": notes.get("annotations", {})}
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container], "initContainers": init or []}
    template = {"metadata": metadata, "spec": spec}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"selector": {"matchLabels": {"app": name}}, "template": template}}


def service(namespace: str, name: str) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tls", "port": 443, "targetPort": 8443}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": {"selector": {"app": name}, "ports": ports}}


def is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


@pytest.fixture(scope="module")
def clients(api, cluster, namespace, run_module, far_end: Callable[..., None]) -> Iterator[str]:
    """The namespace of the workloads, with everything about them in force."""
    clients, other = namespace("failures"), namespace("failures-team")
    hosts = (DOWN, BAD, SUBSET, DENIED, GONE, HIDDEN, UNROUTED)
    far_end("hosts", "add", *hosts)
    try:
        far_end("set", DOWN, "--refuse")
        far_end("set", BAD, "--status", "502")
        for obj in objects(clients, other):
            cluster.create(obj)
        asks = {"name": "asks", "image": IMAGE, "command": ["sh", "-c", "curl -sS -m 5 http://httpbin.org/ 2>&1; true"]}
        sleep = {"name": "sleep", "image": IMAGE, "command": ["sleep", "infinity"]}
        proxy = {"name": "istio-proxy", "image": "auto"}
        for one in (
            deployment(clients, "sleep", sleep),
            deployment(clients, "open", sleep),
            deployment(clients, "around", sleep, annotations={"traffic.sidecar.istio.io/excludeOutboundIPRanges": f"{ADDRESS['httpbin.org']}/32"}),
            deployment(clients, "bare", sleep, labels={"sidecar.istio.io/inject": "false"}),
            deployment(clients, "early", sleep, [asks], annotations={"sidecar.istio.io/nativeSidecar": "false"}),
            deployment(clients, "late", sleep, [asks]),
            deployment(clients, "gw", proxy, labels={"sidecar.istio.io/inject": "true"}, annotations={"inject.istio.io/templates": "gateway"}),
        ):
            api.create(one)
        for name in ("gw", "gone"):
            api.call("POST", f"/api/v1/namespaces/{clients}/services", service(clients, name))
        deadline = time.monotonic() + 180
        while len([p for p in cluster.list("Pod", clients) if is_ready(p)]) < 7:
            assert time.monotonic() < deadline, "the pods are not ready"
            time.sleep(0.5)
        late = [{"url": f"http://{SUBSET}/"}, {"url": f"http://{GONE}/"}, {"url": f"http://{DENIED}/"}, {"url": f"https://{DENIED}/"}]
        while [row["result"] for row in run_module("istio_egress_check", namespace=clients, requests=late)["checks"]] != ["503", "503", "403", "exit 35"]:
            assert time.monotonic() < deadline, "the configuration is not in force"
        yield clients
    finally:
        far_end("hosts", "remove", *hosts)


@pytest.fixture(scope="module")
def checked(clients: str, run_module) -> dict[str, dict[str, Any]]:
    """Check's row of each kind; one task for each workload."""
    rows = {}
    for workload in {kind.workload for kind in KINDS.values()}:
        names = [name for name, kind in KINDS.items() if kind.workload == workload]
        result = run_module("istio_egress_check", namespace=clients, workload=workload, requests=[KINDS[name].url for name in names], timeout=5)
        rows |= dict(zip(names, result["checks"], strict=True))
    return rows


@pytest.mark.parametrize("name", KINDS)
def test_check_tells_each_kind_from_the_others(checked, name):
    kind, row = KINDS[name], checked[name]
    assert (row["result"], row["verdict"], row["by"], row["way"]) == (kind.result, kind.verdict, kind.by, kind.way), row
    assert kind.evidence in row["reason"]


@pytest.fixture(scope="module")
def explained(clients: str, run_module) -> dict[str, dict[str, Any]]:
    """Explain's words on each kind; one task for each workload."""
    told = {}
    for workload in {kind.workload for kind in KINDS.values()}:
        names = [name for name, kind in KINDS.items() if kind.workload == workload]
        result = run_module("istio_egress_explain", namespace=clients, workload=workload, urls=[KINDS[name].url for name in names])
        assert result["picture"] == [line for way in result["explanations"] for line in way["picture"]]
        told |= dict(zip(names, result["explanations"], strict=True))
    return told


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.reason])
def test_explain_names_what_is_behind_each_kind(explained, name):
    kind, told = KINDS[name], explained[name]
    assert (told["url"], told["verdict"], told["by"]) == (kind.url, kind.verdict, kind.by), told["picture"]
    assert kind.reason in told["reason"]
    assert kind.fix in told["fix"]


def test_explain_says_the_same_of_a_host_alone(clients, explained, run_module):
    alone = run_module("istio_egress_explain", namespace=clients, host=HIDDEN, port=80)
    told = explained["entry not exported"]
    assert {key: alone.get(key) for key in told if key != "url"} == {key: value for key, value in told.items() if key != "url"}
    assert not {"url", "explanations"} & set(alone)


def test_check_hands_explains_words_on_for_what_a_rule_stopped(checked):
    assert "not exported to namespace" in checked["entry not exported"]["why"]
    assert "Add subset missing" in checked["subset missing"]["fix"]
    assert checked["far end down"]["why"] is None


def test_a_request_that_an_init_container_makes_before_the_sidecar_runs(clients, cluster, run_module):
    """It goes out although its host is not declared; the same container of a pod with a native sidecar runs after that one."""
    pods = {p["metadata"]["labels"]["app"]: p["metadata"]["name"] for p in cluster.list("Pod", clients)}
    assert '"host":"httpbin.org"' in cluster.log(clients, pods["early"], "asks")
    result = run_module("istio_egress_explain", namespace=clients, workload="early", container="asks", host="httpbin.org", port=80)
    assert result["verdict"] == "allowed"
    assert "Init container asks runs before istio-init" in result["reason"]
    assert '"host":"httpbin.org"' not in cluster.log(clients, pods["late"], "asks")
    result = run_module("istio_egress_explain", namespace=clients, workload="late", container="asks", host="httpbin.org", port=80)
    assert (result["verdict"], result["by"]) == ("blocked", "mesh")
