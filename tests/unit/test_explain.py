"""Why a request gets out or not: what leads around a sidecar, and the words for objects. That verdicts hold is proven on real proxies (tests/proof)."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils import _explain as explain
from ansible_collections.meshops.istio_egress.plugins.module_utils import _path as path


def pod(
    *containers: str, init: tuple[str, ...] = (), args: tuple[str, ...] = ("-p", "15001", "-m", "REDIRECT", "-i", "*", "-x", ""), **more: Any
) -> dict[str, Any]:
    inits = [{"name": name, **({"args": ["istio-iptables", *args]} if name == "istio-init" else {})} for name in init]
    metadata = {"namespace": "demo", "name": "sleep-1", "labels": more.pop("labels", {}), "annotations": more.pop("annotations", {})}
    return {"metadata": metadata, "spec": {"containers": [{"name": c} for c in containers], "initContainers": inits, **more}, "status": {"podIP": "10.244.0.7"}}


NATIVE = ("istio-init", "istio-proxy")


@pytest.mark.parametrize(
    ("there", "container", "address", "port", "why", "dead"),
    [
        (pod("sleep", init=NATIVE), "sleep", "203.0.113.1", 80, "", ""),
        (pod("sleep", "istio-proxy", init=("istio-init",)), "sleep", "203.0.113.1", 80, "", ""),
        (pod("sleep"), "sleep", "203.0.113.1", 80, "has no sidecar", ""),
        (pod("sleep", labels={"sidecar.istio.io/inject": "false"}), "sleep", None, 80, "sidecar.istio.io/inject: false", ""),
        (pod("sleep", hostNetwork=True), "sleep", None, 80, "hostNetwork", ""),
        (pod("sleep", init=("first", *NATIVE)), "first", "203.0.113.1", 80, "runs before istio-init", ""),
        (pod("sleep", init=(*NATIVE, "last")), "last", "203.0.113.1", 80, "", ""),
        (pod("sleep", init=("istio-init", "between", "istio-proxy")), "between", "203.0.113.1", 80, "", "does not run before"),
        (pod("sleep", "istio-proxy", init=("istio-init", "between")), "between", "203.0.113.1", 80, "", "does not run before"),
        (pod("sleep", init=NATIVE, securityContext={"runAsUser": 1337}), "sleep", "203.0.113.1", 80, "user 1337", ""),
        (pod("sleep", init=NATIVE, args=("-m", "NONE")), "sleep", "203.0.113.1", 80, "NONE", ""),
        (pod("sleep", init=NATIVE, args=("-i", "*", "-x", "203.0.113.0/24")), "sleep", "203.0.113.1", 80, "excludeOutboundIPRanges 203.0.113.0/24", ""),
        (pod("sleep", init=NATIVE, args=("-i", "*", "-x", "203.0.113.0/24")), "sleep", "198.51.100.1", 80, "", ""),
        (pod("sleep", init=NATIVE, args=("-i", "10.0.0.0/8", "-x", "")), "sleep", "203.0.113.1", 80, "not in includeOutboundIPRanges 10.0.0.0/8", ""),
        (pod("sleep", init=NATIVE, args=("-i", "10.0.0.0/8", "-q", "80")), "sleep", "203.0.113.1", 80, "", ""),
        (pod("sleep", init=NATIVE, args=("-i", "*", "-o", "80,81")), "sleep", None, 81, "port 81", ""),
        (pod("sleep", init=NATIVE, args=("-i", "*", "-x", "203.0.113.0/24")), "sleep", None, 80, "", ""),
        # a CNI plugin redirects: the annotations are all there is
        (
            pod("sleep", "istio-proxy", annotations={"traffic.sidecar.istio.io/excludeOutboundIPRanges": "203.0.113.0/24"}),
            *("sleep", "203.0.113.1", 80, "excludeOutboundIPRanges", ""),
        ),
    ],
)
def test_what_leads_around_a_sidecar(there: Any, container: str, address: str | None, port: int, why: str, dead: str) -> None:
    around, stuck = explain.around(there, container, address, port)
    assert (why in around, bool(around)) == (True, bool(why))
    assert (dead in stuck, bool(stuck)) == (True, bool(dead))


@pytest.mark.parametrize(
    ("call", "address", "written"),
    [
        (path.Call("http", "a.example", 80), None, "{host: a.example, ports: [80]}"),
        (path.Call("tls", "a.example", 443), None, "{host: a.example, ports: [443]}"),
        (path.Call("http", "a.example", 8080), None, "{host: a.example, ports: [http/8080]}"),
        (path.Call("tls", "a.example", 80), None, "{host: a.example, ports: [tls/80]}"),
        (path.Call("tcp", "a.example", 5432), "203.0.113.1", "{host: a.example, ports: [tcp/5432], addresses: [203.0.113.1]}"),
        (path.Call("tcp", "a.example", 5432), None, "{host: a.example, ports: [tcp/5432], addresses: [...]}"),
        (path.Call("http", "203.0.113.1", 80), "203.0.113.1", "{host: 203.0.113.1, ports: [tcp/80]}"),
    ],
)
def test_the_host_entry_that_would_allow_a_request(call: path.Call, address: str | None, written: str) -> None:
    assert explain.host_entry(call, address) == written


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [("https://api.example.com:6443", 443, "api_host"), ("a b", 443, "not a host name"), ("a.example", 0, "from 1 to 65535")],
)
def test_a_question_that_makes_no_sense_is_refused(host: str, port: int, said: str) -> None:
    with pytest.raises(explain.ExplainError, match=said) as error:
        explain.parse_call(host, port, None, "/", None)
    assert len(str(error.value).splitlines()) == 2


def entry(name: str, hosts: list[str], namespace: str = "demo", day: int = 1, port: int = 80, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": f"2026-01-0{day}T00:00:00Z"}
    return {"kind": "ServiceEntry", "metadata": metadata, "spec": {"hosts": hosts, "ports": [{"number": port, "protocol": "HTTP"}], **spec}}


def test_each_entry_that_was_passed_over_is_named_with_its_reason() -> None:
    sidecar = {"metadata": {"name": "default", "namespace": "demo"}, "spec": {"egress": [{"hosts": ["./*", "seen/*"]}]}}
    entries = [
        entry("first", ["a.example"]),
        entry("young", ["a.example"], day=2),
        entry("wild", ["*.example"]),
        entry("port", ["a.example"], port=8080),
        entry("private", ["a.example"], "seen", exportTo=["."]),
        entry("narrow", ["a.example"], "unseen"),
        entry("away", ["a.example"], "seen"),
        entry("other", ["b.example"]),
    ]
    world = explain.World({"ServiceEntry": entries, "Sidecar": [sidecar]})
    walker = explain._Walker(path.Call("http", "a.example", 80), pod("sleep"), "sleep", None, lambda *_: None, world)
    assert dict(walker.others("a.example", 80, "ServiceEntry demo/first")) == {
        "ServiceEntry demo/young": "the other one is older",
        "ServiceEntry demo/wild": "it covers a.example by *.example only",
        "ServiceEntry demo/port": "it has no port 80",
        "ServiceEntry seen/private": "not exported to namespace demo (exportTo .)",
        "ServiceEntry unseen/narrow": "Sidecar demo/default does not import it",
        "ServiceEntry seen/away": "the entry of the workload's own namespace goes first",
    }
