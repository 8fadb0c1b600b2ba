"""Hosts through egress gateways: what is refused, and what holds for any tasks in any order, at every moment of their plans. No cluster.

`broken_ways` says, apart from the code under test, what a request of a client would meet on its way with the objects of a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ansible_collections.meshops.istio_egress.plugins.module_utils import _gateway
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway import DefaultRoute, Gateway, GatewayError, Origination, Route
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_plan import plan_gateway
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import PolicyError, parse_hosts, parse_names
from unit.tasks import Object, states

GATEWAYS = {
    "egress/one": Gateway("egress", "one", (("istio", "one"),), ports=(80, 443, 5432)),
    "egress/two": Gateway("egress", "two", (("istio", "two"),), ports=(80, 443, 5432)),
}


@dataclass(frozen=True)
class Task:
    """The options of one istio_egress_gateway task."""

    hosts: Sequence[Any] = ()
    namespace: str = "demo"
    policy: str = "default"
    gateway: str = "egress/one"
    hop: str = "auto"
    tls: Origination | None = None
    shadow: bool = False
    export_to: tuple[str, ...] = (".",)
    purge: bool = False
    state: str = "present"

    def plan(self, live: Iterable[Object], gateways: Mapping[str, Gateway] | None = None) -> Plan:
        """As the module makes it. Raises PolicyError and GatewayError."""
        live = list(live)
        by_kind = {kind: [o for o in live if o["kind"] == kind] for kind in _gateway.KINDS}
        routes, defaults = _gateway.read_routes(by_kind["ServiceEntry"]), _gateway.read_defaults(by_kind["VirtualService"])
        everything, hosts = _gateway.split_everything(self.hosts)
        present, mine = self.state == "present", (self.namespace, self.policy)
        listed = [
            Route(entry, *mine, self.gateway, self.hop, self.export_to, self.tls, self.shadow and bool(entry.allow_from))
            for entry in (parse_hosts(hosts, at_gateway=True) if present else ())
        ]
        wanted = _gateway.wanted_routes(listed, () if present else parse_names(hosts), self.purge, routes, *mine)
        asked = DefaultRoute(*mine, self.gateway, _gateway.DOMAINS, self.export_to) if everything and present else None
        default = _gateway.wanted_default(asked, self.purge or (everything and not present), defaults, wanted, *mine)
        _gateway.check(wanted, [r for r in routes if (r.namespace, r.policy) != mine])
        return plan_gateway(wanted, default, by_kind, *mine, gateways or GATEWAYS)


def routes_in(live: Iterable[Object]) -> dict[tuple[str, str, str], Route]:
    return {(r.namespace, r.policy, r.entry.host): r for r in _gateway.read_routes(o for o in live if o["kind"] == "ServiceEntry")}


def of_kind(live: Iterable[Object], kind: str, namespace: str | None = None) -> list[Object]:
    return [o for o in live if o["kind"] == kind and namespace in (None, o["metadata"]["namespace"])]


# -- what a request meets -----------------------------------------------------------------------------------------------------------


def broken_ways(live: list[Object]) -> list[str]:
    """What is missing for hosts that clients are sent to a gateway for: the subset they use, the gateway's listener, its route, its cluster."""
    complaints = []
    for leg in of_kind(live, "VirtualService"):
        spec, namespace = leg["spec"], leg["metadata"]["namespace"]
        if spec["gateways"] != ["mesh"]:
            continue
        clients = {namespace if name == "." else name for name in spec["exportTo"]}
        for protocol in ("http", "tls", "tcp"):
            for rule in spec.get(protocol, ()):
                to = rule["route"][0]["destination"]
                hosts = rule["match"][0].get("sniHosts") or spec["hosts"]
                for client in clients:
                    complaints += [f"{client}: {c}" for host in hosts for c in _broken(live, client, protocol, host, rule["match"][0]["port"], to)]
    return complaints


def _broken(live: list[Object], client: str, protocol: str, host: str, number: int, to: Object) -> list[str]:
    service, place = to["host"].split(".")[:2]
    rules = [o for o in of_kind(live, "DestinationRule", client) if o["spec"]["host"] == to["host"]]
    rules = rules or [o for o in of_kind(live, "DestinationRule", place) if o["spec"]["host"] == to["host"] and o["spec"]["exportTo"] == ["*"]]
    subset = next((s for o in rules for s in o["spec"]["subsets"] if s["name"] == to["subset"]), None)
    if subset is None:
        return [f"{host}:{number} has no subset {to['subset']} (503)"]
    sni = subset.get("trafficPolicy", {}).get("tls", {}).get("sni")
    servers = [s for o in of_kind(live, "Gateway", place) if o["metadata"]["name"] == f"egress-{service}" for s in o["spec"]["servers"]]
    arriving = [s for s in servers if s["port"]["number"] == to["port"]["number"]]
    mutual = subset["name"] != "plain"
    wants = {"http": "HTTPS" if mutual else "HTTP", "tcp": "TLS" if mutual else "TCP"}.get(protocol, "TLS")
    name = "*" if protocol == "http" or wants == "TCP" else sni or host
    if host.startswith("*.") and protocol == "tls" and not sni:
        return []  # a default route: what nobody listed is refused there
    if not any(s["port"]["protocol"] == wants and name in s["hosts"] and (s.get("tls", {}).get("mode") == "ISTIO_MUTUAL") == mutual for s in arriving):
        return [f"{host}:{number} meets no listener at {place}/{service}"]
    if host.startswith("*."):
        return []
    return _not_let_out(live, place, service, "tcp" if sni else protocol, sni or host, to["port"]["number"])


def _not_let_out(live: list[Object], place: str, service: str, protocol: str, name: str, arrived_at: int) -> list[str]:
    for leg in of_kind(live, "VirtualService", place):
        if leg["spec"]["gateways"] == [f"egress-{service}"] and name in leg["spec"]["hosts"]:
            for rule in leg["spec"].get(protocol, ()):
                if any(m["port"] == arrived_at for m in rule["match"]):
                    to = rule["route"][0]["destination"]
                    known = [o for o in of_kind(live, "ServiceEntry", place) if to["host"] in o["spec"]["hosts"]]
                    merged = [(o["metadata"]["labels"], o["spec"]["resolution"]) for o in known]
                    known = [o for o, alike in zip(known, merged, strict=True) if alike == merged[0]]
                    if not any(p["number"] == to["port"]["number"] for o in known for p in o["spec"]["ports"]):
                        return [f"{name} is dialled at {to['host']}:{to['port']['number']}, which the gateway does not know"]
                    subsets = {s["name"] for o in of_kind(live, "DestinationRule", place) if o["spec"]["host"] == to["host"] for s in o["spec"]["subsets"]}
                    return [] if to.get("subset", "") in {"", *subsets} else [f"{name} has no subset {to['subset']}"]
    return [f"{name} has no route out of {place}/{service}"]


def guarded(live: list[Object], host: str) -> bool:
    return any(host in rule["to"][0]["operation"]["hosts"] for o in of_kind(live, "AuthorizationPolicy") for rule in o["spec"]["rules"] if "to" in rule)


def sent(live: list[Object], namespace: str, host: str) -> bool:
    """Whether clients of the namespace have a route of their own for HTTP to the host."""
    return any(host in o["spec"]["hosts"] and o["spec"].get("http") for o in of_kind(live, "VirtualService", namespace) if o["spec"]["gateways"] == ["mesh"])


# -- tasks --------------------------------------------------------------------------------------------------------------------------

NAMES = ["a.example.com", "b.example.com", "c.example.dev"]
SHAPES = [
    {"ports": [80]}, {"ports": [443]}, {"ports": [80, 443]}, {"ports": [80, "tls/8443"]}, {"ports": [80], "allow_from": ["demo/sleep"]},
    {"ports": [80, 443], "allow_from": ["demo", "prod/web"]}, {"ports": ["tcp/5432"], "addresses": ["192.0.2.1"]},
    {"ports": [443, "tcp/5432"], "addresses": ["192.0.2.1"], "allow_from": ["demo"]},
]  # fmt: skip
ENTRIES = st.builds(lambda host, shape: {"host": host, **shape}, st.sampled_from(NAMES), st.sampled_from(SHAPES))
WILDCARD = st.just({"host": "*.example.org", "ports": [80, 443], "backend": "www.example.org"})
PRESENT = st.builds(
    Task,
    hosts=st.lists(st.one_of(ENTRIES, ENTRIES, WILDCARD, st.just("everything")), min_size=1, max_size=3, unique_by=str),
    namespace=st.sampled_from(["demo", "prod"]),
    gateway=st.sampled_from(list(GATEWAYS)),
    hop=st.sampled_from(["auto", "auto", "mutual_tls", "plain"]),
    tls=st.sampled_from([None, None, Origination("simple"), Origination("mutual", "own", 8443)]),
    shadow=st.booleans(),
    export_to=st.sampled_from([(".",), (".",), ("*",), (".", "third")]),
    purge=st.booleans(),
)  # fmt: skip
ABSENT = st.builds(
    Task, hosts=st.lists(st.sampled_from([*NAMES, "everything"]), min_size=1), namespace=st.sampled_from(["demo", "prod"]), state=st.just("absent")
)
TASKS = st.lists(st.tuples(st.one_of(PRESENT, PRESENT, ABSENT), st.one_of(st.none(), st.integers(1, 12))), min_size=1, max_size=4)
"""Tasks, each with the number of writes after which it broke off for the first time, if it did."""


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(TASKS)
@example([(Task([{"host": "a.example.com", "ports": [443]}]), None), (Task([{"host": "a.example.com", "ports": [80]}], namespace="prod"), None)])
@example([(Task([{"host": "a.example.com", "ports": [80]}], hop="plain"), None), (Task([{"host": "a.example.com", "ports": [80]}]), 1)])
def test_no_client_is_sent_where_there_is_no_way_at_any_moment_and_all_can_be_taken_back(tasks: list[tuple[Task, int | None]]) -> None:
    live: list[Object] = []
    for task, broken_off in tasks:
        try:
            plan = task.plan(live)
        except (GatewayError, PolicyError):
            continue
        if broken_off:
            live = states(live, plan)[: broken_off + 1][-1]
            plan = task.plan(live)
        before = live
        for live in states(before, plan):
            assert broken_ways(live) == [], (task, plan.lines())
            for host in NAMES:
                if guarded(states(before, plan)[-1], host) and not sent(before, task.namespace, host):
                    assert guarded(live, host) or not sent(live, task.namespace, host), (task, plan.lines())
        again = task.plan(live)
        assert again.changes == [], (task, again.lines())
    for namespace in ("demo", "prod"):
        live = states(live, Task(namespace=namespace, state="absent", purge=True).plan(live))[-1]
    assert live == []


@settings(max_examples=150)
@given(PRESENT)
def test_routes_are_read_back_as_they_were_written(task: Task) -> None:
    try:
        live = states([], task.plan([]))[-1]
    except (GatewayError, PolicyError):
        return
    everything, hosts = _gateway.split_everything(task.hosts)
    said = {e.host: replace(e, chosen=()) for e in parse_hosts(hosts, at_gateway=True)}
    read = routes_in(live)
    assert {host for _namespace, _policy, host in read} == set(said)
    for (namespace, policy, host), route in read.items():
        assert (namespace, policy, route.gateway, route.hop, route.export_to) == (
            task.namespace,
            task.policy,
            task.gateway,
            task.hop,
            tuple(sorted(task.export_to)),
        )
        assert (route.origination, route.shadow) == (task.tls, task.shadow and bool(said[host].allow_from))
        assert replace(route.entry, resolution="") == replace(said[host], resolution="")
    assert bool(_gateway.read_defaults(o for o in live if o["kind"] == "VirtualService")) == everything


# -- single cases -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hosts": ["*.example.com"]}, "has to know the one host that it dials"),
        ({"hosts": [{"host": "a.example.com", "backend": "b.example.com"}]}, "only wildcards have one"),
        ({"hosts": [{"host": "*.example.com", "backend": "a.example.com"}, "a.example.com"]}, "a.example.com is the backend of \\*.example.com and listed"),
        ({"hosts": [{"host": "203.0.113.0/24", "ports": ["tcp/22"]}]}, "has a range of addresses"),
        ({"hosts": [{"host": "a.example.com", "ports": [80, "http/8080"]}]}, "HTTP ports 80 and 8080"),
        ({"hosts": [{"host": "a.example.com", "ports": [443, "tls/8443"]}]}, "Send a.example.com by hop mutual_tls"),
        ({"hosts": [{"host": "a.example.com", "ports": ["tcp/80"], "addresses": ["192.0.2.1"]}], "hop": "plain"}, "by a plain hop would need port 80 of"),
        ({"hosts": [{"host": "a.example.com", "ports": ["tcp/22"], "addresses": ["192.0.2.1"]}], "hop": "plain"}, "has no port 22, which TCP by a plain"),
        (
            {"hosts": [{"host": f"{h}.example.com", "ports": ["tcp/5432"], "addresses": [f"192.0.2.{i}"]} for i, h in enumerate("ab")], "hop": "plain"},
            "would both take port 5432 of egress/one",
        ),
        ({"hosts": [{"host": "a.example.com", "allow_from": ["demo"]}], "hop": "plain"}, "the gateway does not learn who calls"),
        ({"hosts": ["a.example.com"], "tls": Origination("simple")}, "has no HTTP port"),
        ({"hosts": ["a.example.com:80"], "tls": Origination("simple", port=80)}, "port 80 is HTTP for clients and TLS for the gateway"),
        ({"hosts": ["a.example.com:80"], "tls": Origination("mutual")}, "needs a client certificate"),
        ({"hosts": ["a.example.com:80"], "tls": Origination("simple", "own", verify=False)}, "takes no credential where"),
        ({"hosts": [{"host": "*.example.com", "ports": [80], "backend": "a.example.com"}], "tls": Origination("simple")}, "another name for each host"),
    ],
)
def test_what_a_gateway_cannot_do_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(GatewayError, match=says) as error:
        Task(**options).plan([])
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("theirs", "mine", "says"),
    [
        ({"tls": Origination("simple")}, {}, 'policy "default" of namespace prod, too, with tls simple'),
        ({"hop": "plain"}, {"allow": ["demo"]}, "one of the two has allow_from, the other a plain hop"),
    ],
)
def test_one_host_has_one_way_through_a_gateway(theirs: dict[str, Any], mine: dict[str, Any], says: str) -> None:
    live = states([], Task(["a.example.com:80"], namespace="prod", **theirs).plan([]))[-1]
    with pytest.raises(GatewayError, match=says):
        Task([{"host": "a.example.com", "ports": [80], "allow_from": mine.get("allow")}]).plan(live)
    Task([{"host": "a.example.com", "ports": [80], "allow_from": mine.get("allow")}], gateway="egress/two").plan(live)


def test_a_port_for_plain_tcp_is_added_to_a_service_that_is_ours() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "one", "namespace": "egress"}, "spec": {"ports": [{"port": 80}]}}
    task = Task([{"host": "db.example.com", "ports": ["tcp/22"], "addresses": ["192.0.2.1"]}], hop="plain")
    first = task.plan([], {**GATEWAYS, "egress/one": replace(GATEWAYS["egress/one"], own_service=service)}).steps[0]
    assert isinstance(first, Change) and first.after["spec"]["ports"] == [{"port": 80}, {"name": "tcp-22", "port": 22, "targetPort": 8022, "protocol": "TCP"}]


def test_who_may_is_who_may_by_any_policy() -> None:
    first = Task([{"host": "a.example.com", "ports": [80], "allow_from": ["demo/sleep"]}])
    live = states([], first.plan([]))[-1]
    live = states(live, Task(["a.example.com:80"], namespace="prod").plan(live))[-1]
    [guard] = of_kind(live, "AuthorizationPolicy")
    source = {"notPrincipals": ["cluster.local/ns/demo/sa/sleep"], "notNamespaces": ["prod"], "principals": ["*"]}
    assert [rule["from"] for rule in guard["spec"]["rules"]] == [[{"source": source}]]


def test_who_may_says_nothing_of_what_others_have_at_the_gateway() -> None:
    """Istio leaves a condition on Host out where there is no HTTP, so that the rule must not hold there by anything else."""

    def server(protocol: str, mode: str, host: str, port: int = 443) -> Object:
        return {"port": {"number": port, "name": "x", "protocol": protocol}, "tls": {"mode": mode}, "hosts": [host]}

    def theirs(name: str, selector: Mapping[str, str], *servers: Object) -> Object:
        return {"kind": "Gateway", "metadata": {"name": name, "namespace": "team"}, "spec": {"selector": selector, "servers": list(servers)}}

    tunnels = [server("tls", "ISTIO_MUTUAL", "team/db.example"), server("TCP", "MUTUAL", "*.mq.example"), server("TLS", "ISTIO_MUTUAL", "*")]
    harmless = [server("HTTPS", "ISTIO_MUTUAL", "web"), server("TLS", "PASSTHROUGH", "pass"), server("TLS", "SIMPLE", "own"), server("TLS", "MUTUAL", "p", 7)]
    live = [theirs("one", {"istio": "one"}, *tunnels, *harmless), theirs("two", {"istio": "two"}, server("TLS", "MUTUAL", "elsewhere"))]
    after = states(live, Task([{"host": "a.example.com", "ports": [80], "allow_from": ["demo"]}]).plan(live))[-1]
    [guard] = of_kind(after, "AuthorizationPolicy")
    [rule] = guard["spec"]["rules"]
    assert rule["when"] == [{"key": "connection.sni", "notValues": ["*.egress", "*.mq.example", "db.example"]}]
    assert (rule["from"][0]["source"]["principals"], rule["to"][0]["operation"]["ports"]) == (["*"], ["8443"])
    [gateway] = of_kind(after, "Gateway", "egress")
    assert ["*.egress"] in [s["hosts"] for s in gateway["spec"]["servers"] if s["port"]["protocol"] == "HTTPS"]


PAIRS = [
    (Task(["api-foo.example.com:80,443"], namespace="shop"), Task(["foo.example.com:80,443"], namespace="shop-api")),
    (Task(["shop.example.com:80"], namespace="web"), Task(["example.com:80"], namespace="shop", policy="web")),
    (Task(["a.example.com:80"], namespace="demo", policy="web"), Task(["a.example.com:80"], namespace="demo-web")),
    (Task([{"host": "*.example.com", "ports": [80, 443], "backend": "example.com", "allow_from": ["demo"]}]),
     Task([{"host": "wildcard.example.com", "ports": [80, 443], "allow_from": ["demo"]}], namespace="prod")),
    (Task(["a.example.com:80"], gateway="egress/one-x"), Task(["b.example.com:80"], gateway="egress-one/x", policy="more")),
    (Task(["a.example.com:80"], policy="web", gateway="one-egress/x"), Task(["b.example.com:80"], gateway="egress/x", policy="web-one")),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_names_of_what_two_tasks_make_do_not_meet(one: Task, other: Task) -> None:
    places = [tuple(r.split("/")) for r in (one.gateway, other.gateway)]
    gateways = {f"{place}/{name}": Gateway(place, name, (("istio", name),)) for place, name in places}
    first = states([], one.plan([], gateways))[-1]
    plan = other.plan(first, gateways)
    assert {c.kind for c in plan.changes if c.before} <= {"Gateway"}, plan.lines()
    both = states(first, plan)[-1]
    assert (list(one.plan(both, gateways).changes), broken_ways(both)) == ([], [])
    for gateway in of_kind(both, "Gateway"):
        names = [name for server in gateway["spec"]["servers"] for name in server["hosts"]]
        assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(("before", "after"), [((".",), (".", "prod")), ((".", "prod"), (".",)), (("*",), (".",)), ((".",), ("*",))])
def test_who_keeps_a_route_when_others_get_or_lose_it_is_not_waited_for_to_lose_it(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    live = states([], Task(["a.example.com:80,443"], export_to=before).plan([]))[-1]
    waits = [s for s in Task(["a.example.com:80,443"], export_to=after).plan(live).steps if not isinstance(s, Change) and not s.gateways]
    kept, lost = ({place for w in waits if (w.routes, w.not_routes)[n] for place in w.namespaces or ("everywhere",)} for n in (0, 1))
    assert kept == ({"everywhere"} if "*" in after else {"demo", *after} - {"."})
    assert lost == ({"prod"} if "prod" in before else set())


def test_what_is_left_of_a_namespace_that_is_gone_can_be_taken_back() -> None:
    live = states([], Task(["a.example.com:80,443"]).plan([]))[-1]
    left = [o for o in live if o["metadata"]["namespace"] != "demo"]
    plan = Task(state="absent", purge=True).plan(left)
    assert {c.action for c in plan.changes} == {"delete"}
    assert states(left, plan)[-1] == []


def test_hosts_below_a_default_route_cost_the_clients_nothing() -> None:
    live = states([], Task(["everything", "a.example.com:80,443"]).plan([]))[-1]
    known = of_kind(live, "VirtualService", "demo") + of_kind(live, "ServiceEntry", "demo")
    for shape in ("b.example.com:443", "*.example.net"):
        entry = {"host": shape, "backend": "www.example.net"} if shape.startswith("*") else shape
        live = states(live, Task([entry]).plan(live))[-1]
    assert of_kind(live, "VirtualService", "demo") + of_kind(live, "ServiceEntry", "demo") == known
    live = states(live, Task(["c.example.app:80"]).plan(live))[-1]
    [leg] = of_kind(live, "VirtualService", "demo")
    assert "*.app" in leg["spec"]["hosts"]


def test_a_host_in_use_is_dialled_in_a_new_way_only_when_the_gateway_has_a_cluster_for_it() -> None:
    live = states([], Task(["a.example.com:80"]).plan([]))[-1]
    steps = Task(["a.example.com:80"], tls=Origination("simple")).plan(live).steps
    warm = next(i for i, s in enumerate(steps) if not isinstance(s, Change) and s.gateways and "outbound|443|tls|a.example.com" in s.clusters)
    route = next(i for i, s in enumerate(steps) if isinstance(s, Change) and s.kind == "VirtualService")
    assert warm < route
    assert not any(isinstance(s, Change) and s.kind == "DestinationRule" for s in steps[warm:])
