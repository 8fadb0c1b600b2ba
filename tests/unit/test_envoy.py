"""What is read from a proxy's own configuration: the mode, where each destination goes, and which clusters are warm.

The configuration is that of a real sidecar (see `about` in data/sidecar.json), once with the hosts of DECLARED and a VirtualService for
api.example.com. States that last for a moment only are put together from it.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._envoy import CLUSTERS, RESOURCES, read, without_address

SEEN = json.loads((Path(__file__).parent / "data" / "sidecar.json").read_text(encoding="utf-8"))
BARE, OPEN, CLOSED = SEEN["ALLOW_ANY, no host"], SEEN["ALLOW_ANY, hosts"], SEEN["REGISTRY_ONLY, hosts"]
LISTENERS, ROUTES = RESOURCES

GATEWAY = "istio-egressgateway.istio-system.svc.cluster.local"
RANGE, NARROW = (f"{name}.ip.istio-egress.meshops.io" for name in ("198-51-100-0-slash-24", "203-0-113-0-slash-28"))
DECLARED = {
    # destination: the clusters that it goes to
    ("httpbin.org", 80): {"outbound|80||httpbin.org"},
    ("edition.cnn.com", 80): {"outbound|80||edition.cnn.com"},
    ("edition.cnn.com", 443): {"outbound|443||edition.cnn.com"},
    ("www.google.com", 443): {"outbound|443||www.google.com"},
    ("*.wikipedia.org", 80): {"outbound|80||*.wikipedia.org"},
    ("*.wikipedia.org", 443): {"outbound|443||*.wikipedia.org"},
    ("static.example.com", 443): {"outbound|443||static.example.com"},
    ("db.example.com", 5432): {"outbound|5432||db.example.com"},
    ("203.0.113.10", 5432): {"outbound|5432||db.example.com"},
    (RANGE, 9000): {f"outbound|9000||{RANGE}"},
    ("198.51.100.0/24", 9000): {f"outbound|9000||{RANGE}"},
    ("two.example.com", 6379): {"outbound|6379||two.example.com"},
    ("203.0.113.20", 6379): {"outbound|6379||two.example.com"},
    ("203.0.113.21", 6379): {"outbound|6379||two.example.com"},
    # one port: a range for one host, and what is left of the world for the other
    (NARROW, 5671): {f"outbound|5671||{NARROW}"},
    ("203.0.113.0/28", 5671): {f"outbound|5671||{NARROW}"},
    ("queue.example.com", 5671): {"outbound|5671||queue.example.com"},
    ("0.0.0.0", 5671): {"outbound|5671||queue.example.com"},
    # by the VirtualService, each to two places
    ("api.example.com", 8080): {"outbound|80||httpbin.org", "outbound|80||edition.cnn.com"},
    ("api.example.com", 8443): {f"outbound|443||{GATEWAY}", "outbound|443||www.google.com"},
}
OF_THE_MESH = {
    (GATEWAY, 80): {f"outbound|80||{GATEWAY}"},
    (GATEWAY, 443): {f"outbound|443||{GATEWAY}"},
    ("10.96.200.121", 443): {f"outbound|443||{GATEWAY}"},
}


def snapshot(*parts):
    return read({"configs": [config for part in parts for config in part]})


def renamed(part, old, new):
    """A copy in which `old` stands for `new`, wherever it is a whole value."""
    return json.loads(json.dumps(part).replace(f'"{old}"', f'"{new}"'))


HAD = {
    "ALLOW_ANY, no host": ("ALLOW_ANY", OF_THE_MESH),
    "ALLOW_ANY, hosts": ("ALLOW_ANY", OF_THE_MESH | DECLARED),
    "REGISTRY_ONLY, hosts": ("REGISTRY_ONLY", OF_THE_MESH | DECLARED),
}


@pytest.mark.parametrize("state", HAD)
def test_what_a_sidecar_had(state):
    mode, routes = HAD[state]
    seen = snapshot(*(SEEN[state][resource] for resource in RESOURCES))
    assert seen.mode == mode
    assert {destination: set(clusters) for destination, clusters in seen.routes.items()} == routes


@pytest.mark.parametrize("destination", DECLARED, ids=str)
def test_a_declared_host_is_there_and_only_then(destination):
    assert destination in snapshot(CLOSED[LISTENERS], CLOSED[ROUTES]).routes
    assert destination not in snapshot(BARE[LISTENERS], BARE[ROUTES]).routes


BOTH = {"REGISTRY_ONLY", "ALLOW_ANY"}
DYNAMIC = "ALLOW_ANY_DYNAMIC_DNS"
MOMENTS = {
    "nothing yet": ([], None, set()),
    "listeners first": ([CLOSED[LISTENERS], OPEN[ROUTES]], None, BOTH),
    "routes first": ([OPEN[LISTENERS], CLOSED[ROUTES]], None, BOTH),
    "one route table of several": ([CLOSED[LISTENERS], CLOSED[ROUTES][:1], OPEN[ROUTES][1:]], None, BOTH),
    "no route table yet": ([CLOSED[LISTENERS]], "REGISTRY_ONLY", {"REGISTRY_ONLY"}),
    # Only the whole mesh can have this mode: HTTP by name, TLS and TCP passed through.
    "dynamic DNS": ([OPEN[LISTENERS], renamed(OPEN[ROUTES], "allow_any", "allow_any_dynamic_dns")], DYNAMIC, {"ALLOW_ANY", DYNAMIC}),
    "on the way to dynamic DNS": ([CLOSED[LISTENERS], renamed(CLOSED[ROUTES], "block_all", "allow_any_dynamic_dns")], None, {"REGISTRY_ONLY", DYNAMIC}),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_mode_is_in_force_when_all_places_agree(moment):
    parts, mode, places = MOMENTS[moment]
    seen = snapshot(*parts)
    assert (seen.mode, set(seen.modes)) == (mode, places)


@pytest.mark.parametrize(("state", "mode"), [(OPEN, "ALLOW_ANY"), (CLOSED, "REGISTRY_ONLY")], ids=["open", "closed"])
def test_the_outbound_listener_alone_tells_the_mode(state, mode):
    """A sidecar whose Sidecar resource imports nothing has no other listener."""
    assert snapshot([config for config in state[LISTENERS] if config["name"] == "virtualOutbound"]).mode == mode


def test_every_listener_and_route_table_has_a_say():
    """A sidecar that is left behind in a single place still lets out, or stops, what goes by that place."""
    both = [*CLOSED[LISTENERS], *CLOSED[ROUTES]]
    decide = 0
    for number, config in enumerate(both):
        behind = renamed(renamed(config, "BlackHoleCluster", "PassthroughCluster"), "block_all", "allow_any")
        if "inbound" not in json.dumps(config).lower() and behind != config:
            decide += 1
            assert snapshot([*both[:number], behind, *both[number + 1 :]]).mode is None, config.get("name") or config["route_config"]["name"]
    assert decide >= 5


def test_a_listener_that_only_drains_does_not_count():
    draining = [config for config in OPEN[LISTENERS] if "active_state" not in config]
    assert draining and not snapshot(draining).routes and not snapshot(draining).modes


def test_warm_clusters_are_those_that_were_asked_for():
    seen = snapshot(CLOSED[CLUSTERS])
    assert {cluster for clusters in DECLARED.values() for cluster in clusters} <= seen.clusters
    assert snapshot(CLOSED[LISTENERS], CLOSED[ROUTES]).clusters == frozenset()


def test_a_host_that_moves_to_the_gateway_is_seen_there():
    direct = snapshot(CLOSED[LISTENERS], CLOSED[ROUTES]).routes["www.google.com", 443]
    moved = snapshot(renamed(CLOSED[LISTENERS], "outbound|443||www.google.com", f"outbound|443||{GATEWAY}")).routes["www.google.com", 443]
    assert (direct, moved) == ({"outbound|443||www.google.com"}, {f"outbound|443||{GATEWAY}"})


@pytest.mark.parametrize("domains", [["cluster.local"], ["prod.example"], ["prod.example", "cluster.local", "old.example"]])
def test_who_may_is_known_in_any_trust_domain(domains):
    """Names of callers as istiod writes them for principals, principal ``*`` and namespaces (istio/istio pilot/pkg/security/authz/model/generator.go)."""
    accounts = [{"exact": f"spiffe://{domain}/ns/demo/sa/sleep"} for domain in domains]
    patterns = [*accounts, {"safe_regex": {"regex": ".+"}}, {"safe_regex": {"regex": ".*/ns/prod/.*"}}]
    rule = {"principals": [{"and_ids": {"ids": [{"authenticated": {"principal_name": pattern}} for pattern in patterns]}}]}
    rbac = {"typed_config": {"rules": {"policies": {"ns[egress]-policy[guard]-rule[0]": rule}}}}
    snapshot = read({"configs": [{"active_state": {"listener": {"filter_chains": [{"filters": [rbac]}]}}}]})
    who = ("cluster.local/ns/demo/sa/sleep", "/ns/prod/")
    assert snapshot.guards("egress/guard", who)
    for others in (who[:1], who[1:], (*who, "/ns/more/"), ("cluster.local/ns/demo/sa/sleep-well", "/ns/prod/"), ("/ns/demo/", "/ns/prod/")):
        assert not snapshot.guards("egress/guard", others)
    assert not snapshot.guards("egress/other", who)


@pytest.mark.parametrize(
    "dump", [{}, {"configs": None}, {"configs": []}, {"configs": [{}]}, {"configs": [{"active_state": None, "route_config": None}]}], ids=str
)
def test_an_empty_answer_is_an_empty_snapshot(dump):
    seen = read(dump)
    assert (seen.mode, dict(seen.routes), seen.clusters) == (None, {}, frozenset())


def test_reading_changes_nothing():
    before = copy.deepcopy(CLOSED)
    snapshot(*CLOSED.values())
    assert before == CLOSED


def test_clusters_without_an_address():
    def cluster(name, *groups):
        return {"endpoint_config": {"cluster_name": name, **({"endpoints": [{"lb_endpoints": list(group)} for group in groups]} if groups else {})}}

    configs = [cluster("none"), cluster("empty", ()), cluster("one", ({"endpoint": {}},)), cluster("in another zone", (), ({"endpoint": {}},))]
    assert without_address(configs) == {"none", "empty"}
