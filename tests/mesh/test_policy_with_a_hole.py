"""A policy with one deliberate hole: a ServiceEntry of another owner that opens more than the policy says. The refusals find it, and every module names it."""

from __future__ import annotations

import pytest

HOST, MODE, CHECK, EXPLAIN, INFO = "istio_egress_host", "istio_outbound_mode", "istio_egress_check", "istio_egress_explain", "istio_egress_info"
DECLARED = ["httpbin.org:80", "www.google.com"]


@pytest.fixture(scope="module")
def policy(workload, run_module, own_mesh):
    """The namespace of a policy that is in force."""
    run_module(MODE, namespace=workload.namespace, mode="REGISTRY_ONLY")
    run_module(HOST, namespace=workload.namespace, hosts=DECLARED, policy="web")
    return workload.namespace


@pytest.fixture(scope="module")
def hole(policy, namespace, api, cluster, run_module):
    """The name of another team's entry that opens other.example.com for the namespace of the policy."""
    team = namespace("hole-team")
    ports = [{"number": 80, "name": "http", "protocol": "HTTP"}]
    entry = {
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "legacy", "namespace": team, "labels": {"owner": "team-legacy"}},
        "spec": {"hosts": ["other.example.com"], "ports": ports, "resolution": "DNS", "location": "MESH_EXTERNAL", "exportTo": [policy]},
    }  # fmt: skip
    cluster.create(entry)
    opened = [{"url": "http://other.example.com/", "expect": "allowed"}]
    run_module(CHECK, namespace=policy, requests=opened, retries=20, delay=1)
    return f"ServiceEntry {team}/legacy"


def test_a_policy_without_a_hole_is_proven_by_what_passes_and_what_does_not(policy, run_module):
    result = run_module(CHECK, namespace=policy, refuse_others=False)
    ways = {row["url"]: (row["verdict"], row["way"]) for row in result["checks"]}
    assert ways["http://httpbin.org/"] == ways["https://www.google.com/"] == ("allowed", "direct")
    assert {row["rule"] for row in result["checks"] if row["verdict"] == "blocked"} == {
        "an undeclared host",
        "a declared host on an undeclared port",
        "plain HTTP where only TLS is declared",
    }
    assert all(row["met"] and row["by"] == "mesh" for row in result["checks"] if row["expect"] == "blocked")


def test_a_range_around_the_sidecar_hides_no_mode(policy, start, run_module):
    """Whether refusals are tried is what the sidecar does with an address that nobody has, not with what does not come to it."""
    around = start(policy, "around", {"traffic.sidecar.istio.io/excludeOutboundIPRanges": "192.0.2.0/24"})
    result = run_module(CHECK, namespace=policy, workload=f"pod/{around.pod}", refuse_others=False)
    assert {row["met"] for row in result["checks"] if row["rule"] == "an undeclared host"} == {True}


def test_the_refusals_find_a_hole_and_name_it(policy, hole, run_module):
    result = run_module(CHECK, namespace=policy, fails=True)
    mine = [row for row in result["checks"] if hole in (row["rule"] or "")]
    assert [(row["url"], row["met"]) for row in mine] == [("http://other.example.com/", False)]
    assert hole in mine[0]["why"] and hole in result["msg"]


def test_explain_and_info_name_the_hole(policy, hole, run_module):
    told = run_module(EXPLAIN, namespace=policy, host="other.example.com", port=80)
    assert told["verdict"] == "allowed"
    assert hole in told["reason"]
    shown = run_module(INFO, namespace=policy)
    [space] = shown["namespaces"]
    assert (space["mode"], {p["mode"] for p in space["proxies"]}) == ("REGISTRY_ONLY", {"REGISTRY_ONLY"})
    assert {h["host"] for h in space["hosts"] if h["managed"]} == {"httpbin.org", "www.google.com"}
    [finding] = [f for f in shown["findings"] if f["object"] == hole]
    assert (finding["code"], finding["namespace"]) == ("opened-by-others", policy)
    assert "other.example.com http/80" in finding["message"] and "team-legacy" in finding["message"]


def test_a_way_that_was_not_taken_fails_the_expectation(policy, run_module):
    result = run_module(CHECK, namespace=policy, requests=[{"url": "http://httpbin.org/", "via": "gateway"}], fails=True)
    assert result["checks"][0]["way"] == "direct"
    assert "allowed gateway: NO" in result["msg"]


def test_a_namespace_that_was_opened_is_no_proof_of_a_closed_one(policy, run_module):
    run_module(MODE, namespace=policy, mode="ALLOW_ANY")
    asked = {"namespace": policy, "refuse_others": False}
    lenient, strict = run_module(CHECK, **asked), run_module(CHECK, **asked, refuse_undeclared=True, fails=True)
    assert lenient["passed"] and "no refusal was tried" in lenient["notes"][0]
    assert not strict["passed"] and {row["rule"] for row in strict["checks"] if not row["met"]} >= {"an undeclared host"}, strict["table"]


def test_nothing_declared_and_nothing_let_out(policy, run_module):
    run_module(MODE, namespace=policy, mode="REGISTRY_ONLY")
    run_module(HOST, namespace=policy, policy="web", purge=True, state="absent")
    result = run_module(CHECK, namespace=policy, refuse_others=False, refuse_undeclared=True)
    assert [(row["url"], row["by"], row["met"]) for row in result["checks"]] == [("tcp://192.0.2.1:8443", "mesh", True)]
    asked_nothing = run_module(CHECK, namespace=policy, refuse_others=False, fails=True)
    assert "nothing to derive requests from" in asked_nothing.msg
    run_module(HOST, namespace=policy, policy="web", hosts=[{"host": "*.example.com", "ports": [443]}])
    run_module(MODE, namespace=policy, mode="ALLOW_ANY")
    asked_nothing = run_module(CHECK, namespace=policy, refuse_others=False, fails=True)
    assert "nothing is proven" in asked_nothing.msg and "*.example.com is a wildcard" in asked_nothing.msg
