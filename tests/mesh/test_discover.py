"""What istio_egress_discover says of a namespace is what its workloads did: learned, declared, closed, and looked at again. Real requests, real logs."""

from __future__ import annotations

import time

import pytest

from api.modules import Account, documented_rights, wait_until

DISCOVER, HOST, MODE = "istio_egress_discover", "istio_egress_host", "istio_outbound_mode"
HTTPBIN, GOOGLE, WIKIPEDIA, OTHER, ECHO = "httpbin.org", "www.google.com", "en.wikipedia.org", "other.example.com", ("203.0.113.13", 5432)


def by_destination(result):
    return {(use["host"] or use["addresses"][0], use["port"]): use for use in result["uses"]}


def discovered(run_module, requests, **options):
    """What the module returns once the logs have so many requests: a proxy writes its line a moment after the answer."""
    result = {"uses": []}

    def has_them():
        result.update(run_module(DISCOVER, **options))
        return sum(use["requests"] for use in result["uses"]) >= requests

    wait_until(has_them, f"{requests} requests to be in the logs")
    return result


def test_what_is_learned_can_be_declared_and_then_the_namespace_closed(run_module, workload, start, cluster, own_mesh):
    place = workload.namespace

    def discover(requests=0, **options):
        result = discovered(run_module, requests, namespace=place, **options)
        assert result["changed"] is False
        return result

    assert discover()["uses"] == []
    neighbour = start(place, "neighbour")
    [address] = [p["status"]["podIP"] for p in cluster.list("Pod", place, labels="app=neighbour")]
    assert workload.curl(f"http://{HTTPBIN}/").outcome == workload.curl(f"https://{GOOGLE}/").outcome == "200"
    nameless = discover(2)
    assert nameless["hosts"] == [{"host": HTTPBIN, "ports": [80]}]
    [unnamed] = nameless["unnamed"]
    assert (unnamed["host"], unnamed["port"], unnamed["requests"]) == (None, 443, 1) and "Declare any host on port 443" in unnamed["note"]

    run_module(HOST, namespace=place, policy="given", hosts=[WIKIPEDIA, "never.example.com:80"])
    assert [workload.curl(f"https://{host}/").outcome for host in (GOOGLE, WIKIPEDIA, GOOGLE)] == ["200"] * 3
    assert workload.greeting(*ECHO)
    assert neighbour.curl(f"http://{HTTPBIN}/").outcome == "200"
    workload.curl(f"http://{address}:9999/")
    seen = discover(8)
    assert seen["hosts"] == [{"host": HTTPBIN, "ports": [80]}, {"host": GOOGLE, "ports": [443]}]
    assert [(u["host"], u["ports"]) for u in seen["unused"]] == [("never.example.com", ["http/80"])]
    uses = by_destination(seen)
    assert {where: (use["outcomes"], use["requests"]) for where, use in uses.items()} == {
        (HTTPBIN, 80): (["passed"], 2), (GOOGLE, 443): (["passed"], 2), (WIKIPEDIA, 443): (["declared"], 1),
        (unnamed["addresses"][0], 443): (["passed"], 1), ECHO: (["passed"], 1), (address, 9999): (["passed"], 1),
    }  # fmt: skip
    assert uses[HTTPBIN, 80]["workloads"] == ["deployment/neighbour", "deployment/sleep"]
    assert f"Pod {place}/neighbour-" in uses[address, 9999]["note"] and uses[ECHO]["note"].startswith("TCP has no name")
    assert [u["addresses"][0] for u in seen["unnamed"]] == [ECHO[0]]
    assert uses[unnamed["addresses"][0], 443]["note"].startswith(f"Most likely {GOOGLE}")
    assert [u["workloads"] for u in discover(1, workload="neighbour")["uses"]] == [["deployment/neighbour"]]

    run_module(HOST, namespace=place, policy="learned", hosts=seen["hosts"])
    run_module(MODE, namespace=place, mode="REGISTRY_ONLY")
    assert [workload.curl(url).outcome for url in (f"http://{HTTPBIN}/", f"https://{GOOGLE}/", f"http://{OTHER}/")] == ["200", "200", "502"]
    closed = discover(11)
    assert [(use["host"], use["port"]) for use in closed["uses"] if "refused" in use["outcomes"]] == [(OTHER, 80)]
    assert (closed["hosts"], closed["refused"]) == ([], [{"host": OTHER, "ports": [80]}])
    assert by_destination(closed)[HTTPBIN, 80]["outcomes"] == ["declared", "passed"]


def test_the_last_seconds_alone(run_module, workload, own_mesh):
    workload.curl(f"http://{HTTPBIN}/headers")
    time.sleep(4)
    workload.curl(f"http://{OTHER}/")
    late = discovered(run_module, 1, namespace=workload.namespace, since_seconds=3)
    assert [use["host"] for use in late["uses"]] == [OTHER]


@pytest.fixture
def quiet(namespace, start, api):
    """A workload whose sidecar writes no access log, and one without a sidecar."""
    place = namespace("quiet")
    spec = {"accessLogging": [{"providers": [{"name": "envoy"}], "disabled": True}]}
    path = f"/apis/telemetry.istio.io/v1/namespaces/{place}/telemetries"
    api.call("POST", path, {"apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry", "metadata": {"name": "quiet", "namespace": place}, "spec": spec})
    start(place, "bare", annotations={"sidecar.istio.io/inject": "false"})
    return start(place)


def test_what_cannot_be_seen_is_said(run_module, quiet):
    quiet.curl(f"http://{HTTPBIN}/")
    result = run_module(DISCOVER, namespace=quiet.namespace)
    assert result["uses"] == [] and [(p["workload"], p["since"], p["logs"]) for p in result["pods"]] == [("deployment/sleep", None, False)]
    bare, off = result.warnings
    assert "bare-" in bare and "without a sidecar" in bare
    assert quiet.pod in off and "write no access log" in off


def test_the_rights_of_the_documentation_are_enough(workload, api, own_mesh):
    rules = documented_rights(DISCOVER, "Role in the namespace")
    with Account(api, rules, within=workload.namespace) as limited:
        seen = limited.run(DISCOVER, namespace=workload.namespace)
        assert not seen.get("failed") and not seen.warnings and seen["pods"][0]["logs"], seen
    with Account(api, [r for r in rules if r["resources"] != ["pods/log"]], within=workload.namespace) as blind:
        refused = blind.run(DISCOVER, namespace=workload.namespace)
    assert refused["failed"] and "pods" in refused.msg and "section istio_egress_discover" in refused.msg
