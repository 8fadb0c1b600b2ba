"""The mode of the whole mesh, on real proxies. It concerns every workload, so `make mesh` runs this file before the others, and only on this machine's own."""

from __future__ import annotations

import pytest

MODE, UNKNOWN, UNKNOWN_TLS = "istio_outbound_mode", "http://other.example.com/", "https://other.example.com/"
CONFIG_MAP = ("ConfigMap", "istio-system", "istio")


@pytest.fixture
def mesh_text(own_mesh, api, run_module):
    """`mesh_text()`: the text of the mesh config. It is put back afterwards, whatever came of the test."""
    run_module(MODE, state="absent")  # a run that was killed may have left its own
    before = api.read(*CONFIG_MAP)["data"]["mesh"]
    yield lambda: api.read(*CONFIG_MAP)["data"]["mesh"]
    if api.read(*CONFIG_MAP)["data"]["mesh"] != before:
        api.patch(*CONFIG_MAP, {"data": {"mesh": before}})


def test_every_workload_follows_but_for_those_that_somebody_decides_for(workload, start, namespace, run_module, api, cluster, mesh_text):
    elsewhere, other = start(namespace("elsewhere")), start(workload.namespace, "other")
    spec = {"workloadSelector": {"labels": {"app": "other"}}, "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}
    api.create({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "theirs", "namespace": other.namespace}, "spec": spec})
    sources, before = (workload, elsewhere, other), mesh_text()
    every = len(cluster.list("Pod", labels="security.istio.io/tlsMode=istio,istio!=egressgateway"))

    def outcomes():
        return [[source.curl(url).outcome for url in (UNKNOWN, UNKNOWN_TLS)] for source in sources]

    def pending_of(result):
        """Those of this test; what else runs in the mesh has a mode as well, and perhaps one of its own."""
        proxies = result["proxies"]
        assert proxies["total"] == every == proxies["following"] + len(proxies["pending"])
        return [entry for entry in proxies["pending"] if entry["pod"] in {f"{source.namespace}/{source.pod}" for source in sources}]

    assert outcomes() == [["200", "200"]] * 3

    closed = run_module(MODE, mode="REGISTRY_ONLY")
    assert outcomes() == [["502", "closed"], ["502", "closed"], ["200", "200"]]
    assert (closed["mode"], closed["previous_mode"], closed["changed"], closed["verified"]) == ("REGISTRY_ONLY", "ALLOW_ANY", True, True)
    assert pending_of(closed) == [{"pod": f"{other.namespace}/{other.pod}", "reason": f"Sidecar {other.namespace}/theirs sets ALLOW_ANY"}]
    lines = set(mesh_text().splitlines()) ^ set(before.splitlines())
    assert lines and all("outboundTrafficPolicy" in line or "mode: " in line for line in lines), lines
    again = run_module(MODE, mode="REGISTRY_ONLY")
    assert not again["changed"] and again["verified"]

    back = run_module(MODE, mode=closed["previous_mode"])
    assert outcomes() == [["200", "200"]] * 3
    assert (back["mode"], back["changed"], back["verified"], pending_of(back)) == ("ALLOW_ANY", True, True, [])

    run_module(MODE, state="absent")
    assert mesh_text() == before and "outboundTrafficPolicy" not in before
    assert outcomes() == [["200", "200"]] * 3
