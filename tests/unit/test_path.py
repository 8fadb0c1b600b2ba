"""What one proxy does with one request, from its configuration: the choice of listener, filter chain, host, route, policy and cluster, each by Envoy's rules.

The parts are written as pilot writes them; that whole configurations lead where requests go is proven on real proxies (tests/proof).
"""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils import _path as path

SERVICE = {"filter_metadata": {"istio": {"services": [{"host": "a.example", "namespace": "demo"}]}}}
IDENTITY = "spiffe://cluster.local/ns/demo/sa/default"


def tcp(cluster: str, **match: Any) -> dict[str, Any]:
    return {"filter_chain_match": match, "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {"cluster": cluster}}]}


def http(table: str, *filters: dict[str, Any], **match: Any) -> dict[str, Any]:
    config = {"rds": {"route_config_name": table}, "http_filters": list(filters)}
    return {"filter_chain_match": match, "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": config}]}


def listener(name: str, port: int, *chains: dict[str, Any], default: str = "", inspect: str = "", address: str = "0.0.0.0") -> dict[str, Any]:
    made = {"name": name, "address": {"socket_address": {"address": address, "port_value": port}}, "filter_chains": list(chains)}
    if default:
        made["default_filter_chain"] = tcp(default)
    if inspect:
        made["listener_filters"] = [{"name": f"envoy.filters.listener.{kind}_inspector"} for kind in inspect.split()]
    return {"name": name, "active_state": {"listener": made}}


def host(name: str, *domains: str, routes: list[dict[str, Any]] | None = None, to: str = "") -> dict[str, Any]:
    return {"name": name, "domains": list(domains), "routes": routes or [{"match": {"prefix": "/"}, "route": {"cluster": to or name}}]}


def cluster(name: str, kind: str = "ORIGINAL_DST", **more: Any) -> dict[str, Any]:
    return {"cluster": {"name": name, "type": kind, "metadata": SERVICE, **more}}


def proxy(
    listeners: list[Any], tables: dict[str, list[Any]] | None = None, clusters: list[Any] = (), endpoints: dict[str, list[tuple[str, int]]] | None = None
) -> Any:
    tables = [{"route_config": {"name": n, "virtual_hosts": hosts, "ignore_port_in_host_matching": True}} for n, hosts in (tables or {}).items()]
    known = []
    for name, addresses in (endpoints or {}).items():
        members = [{"endpoint": {"address": {"socket_address": {"address": a, "port_value": p}}}, "health_status": "HEALTHY"} for a, p in addresses]
        known.append({"endpoint_config": {"cluster_name": name, "endpoints": [{"lb_endpoints": members}]}})
    dump = {"dynamic_listeners": listeners, "dynamic_route_configs": tables, "dynamic_active_clusters": clusters, "dynamic_endpoint_configs": known}
    return path.Configuration(path.whole({"configs": [dump]}))


def go(there: Any, call: path.Call, address: str | None = "203.0.113.1", outbound: bool = True, envelope: path.Envelope | None = None) -> path.Passage:
    return path.through(there, path.Arrival(call, address, call.port, envelope, "10.244.0.7"), outbound, IDENTITY)


ALL = [cluster(name) for name in ("exact", "range", "port", "sni", "wild", "wilder", "any", "a", "b", "PassthroughCluster")]


@pytest.mark.parametrize(
    ("address", "cluster_"),
    [("203.0.113.1", "exact"), ("203.0.113.9", "range"), ("198.51.100.1", "port"), (None, "port")],
)
def test_the_closest_address_decides(address: str | None, cluster_: str) -> None:
    ranged = tcp("range", prefix_ranges=[{"address_prefix": "203.0.113.0", "prefix_len": 24}])
    there = proxy(
        [
            listener("203.0.113.1_9000", 9000, tcp("exact"), address="203.0.113.1"),
            listener("0.0.0.0_9000", 9000, ranged, default="port"),
            listener("virtualOutbound", 15001, tcp("PassthroughCluster")),
        ],
        clusters=ALL,
    )  # fmt: skip
    seen = go(there, path.Call("tcp", "db.example.com", 9000), address)
    assert seen.cluster == cluster_
    assert seen.needs_address == (address is None)


def test_a_port_without_a_listener_is_for_the_catch_all() -> None:
    there = proxy([listener("virtualOutbound", 15001, tcp("BlackHoleCluster", destination_port=15001), tcp("PassthroughCluster"))], clusters=ALL)
    assert go(there, path.Call("tcp", "db.example.com", 5432)).cluster == "PassthroughCluster"
    assert go(there, path.Call("tcp", "db.example.com", 5432), outbound=False).cause == "listener"


@pytest.mark.parametrize(
    ("name", "cluster_"),
    [("a.b.example", "sni"), ("x.b.example", "wild"), ("x.y.b.example", "wild"), ("c.example", "wilder"), ("example", "any"), ("203.0.113.1", "any")],
)
def test_the_closest_server_name_decides(name: str, cluster_: str) -> None:
    chains = [tcp("wilder", server_names=["*.example"]), tcp("sni", server_names=["a.b.example"]), tcp("wild", server_names=["*.b.example"])]
    there = proxy([listener("0.0.0.0_443", 443, *chains, default="any", inspect="tls")], clusters=ALL)
    assert go(there, path.Call("tls", name, 443)).cluster == cluster_
    assert go(there, path.Call("http", name, 443)).cluster == "any"
    blind = proxy([listener("0.0.0.0_443", 443, *chains, default="any")], clusters=ALL)
    assert go(blind, path.Call("tls", name, 443)).cluster == "any"


@pytest.mark.parametrize(
    ("name", "cluster_"),
    [("a.example", "a"), ("A.Example", "a"), ("x.example", "wild"), ("x.y.example", "wilder"), ("nobody.test", "any")],
)
def test_the_closest_domain_decides(name: str, cluster_: str) -> None:
    hosts = [host("wild", "*.example"), host("wilder", "*.y.example"), host("a", "a.example"), host("any", "*")]
    there = proxy([listener("0.0.0.0_80", 80, http("80", application_protocols=["http/1.1"]), inspect="http", default="b")], {"80": hosts}, ALL)
    assert go(there, path.Call("http", name, 80)).cluster == cluster_
    assert go(there, path.Call("tcp", name, 80)).cluster == "b"
    assert go(there, path.Call("tls", name, 80)).cluster == "b"


@pytest.mark.parametrize(
    ("match", "asked", "taken"),
    [
        ({"prefix": "/a"}, "/a/b", True),
        ({"prefix": "/a"}, "/b", False),
        ({"prefix": "/A", "case_sensitive": False}, "/a/b", True),
        ({"path": "/a"}, "/a?x=1", True),
        ({"path": "/a"}, "/a/b", False),
        ({"path_separated_prefix": "/a"}, "/a/b", True),
        ({"path_separated_prefix": "/a"}, "/ab", False),
        ({"safe_regex": {"regex": "/a+"}}, "/aaa", True),
        ({"safe_regex": {"regex": "/a+"}}, "/aaab", False),
        ({"prefix": "/", "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]}, "/", True),
        ({"prefix": "/", "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]}, "/", False),
        ({"prefix": "/", "headers": [{"name": "x-user", "present_match": True}]}, "/", False),
        ({"prefix": "/", "headers": [{"name": "x-user", "present_match": True, "invert_match": True}]}, "/", True),
        ({"prefix": "/", "query_parameters": [{"name": "q"}]}, "/", False),
    ],
)
def test_the_first_route_that_takes_a_request_is_its_route(match: dict[str, Any], asked: str, taken: bool) -> None:
    routes = [{"match": match, "route": {"cluster": "a"}}, {"match": {"prefix": "/"}, "route": {"cluster": "b"}}]
    there = proxy([listener("0.0.0.0_80", 80, http("80"))], {"80": [host("h", "*", routes=routes)]}, ALL)
    assert go(there, path.Call("http", "a.example", 80, asked)).cluster == ("a" if taken else "b")


@pytest.mark.parametrize(
    ("route", "cause"),
    [
        ({"direct_response": {"status": 502}}, "mode"),
        ({"redirect": {"path_redirect": "/b"}}, "route"),
        ({"route": {"cluster": "BlackHoleCluster"}}, "mode"),
        ({"route": {"cluster": "outbound|80|missing|a.example"}}, "cluster"),
        ({"route": {"cluster": "empty"}}, "endpoint"),
        ({"route": {"cluster": "a"}, "typed_per_filter_config": {"envoy.filters.http.fault": {"abort": {"percentage": {"numerator": 100}}}}}, "fault"),
        ({"route": {"cluster": "a"}, "typed_per_filter_config": {"envoy.filters.http.fault": {"abort": {"percentage": {"numerator": 50}}}}}, ""),
    ],
)
def test_what_ends_at_the_proxy_is_told_apart(route: dict[str, Any], cause: str) -> None:
    hosts = [host("block_all" if cause == "mode" else "h", "*", routes=[{"match": {"prefix": "/"}, **route}])]
    there = proxy([listener("0.0.0.0_80", 80, http("80"))], {"80": hosts}, [*ALL, cluster("empty", "EDS")])
    seen = go(there, path.Call("http", "a.example", 80))
    assert (seen.cause, bool(seen.stopped)) == (cause, bool(cause))


def test_of_weighted_clusters_the_heaviest_is_followed_and_the_others_are_named() -> None:
    split = {"weighted_clusters": {"clusters": [{"name": "a", "weight": 10}, {"name": "b", "weight": 90}, {"name": "exact", "weight": 0}]}}
    there = proxy([listener("0.0.0.0_80", 80, http("80"))], {"80": [host("h", "*", routes=[{"match": {"prefix": "/"}, "route": split}])]}, ALL)
    seen = go(there, path.Call("http", "a.example", 80))
    assert (seen.cluster, seen.others) == ("b", (("a", 10),))


MUTUAL = {"name": "envoy.transport_sockets.tls", "typed_config": {"require_client_certificate": True}}
ORIGINATES = {
    "name": "envoy.transport_sockets.tls",
    "typed_config": {"sni": "a.example", "common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": "default"}], "alpn_protocols": ["istio"]}},
}


def test_the_mesh_s_tls_ends_where_it_is_asked_for_and_shows_who_comes() -> None:
    there = proxy([listener("0.0.0.0_8443", 8443, {**http("t"), "transport_socket": MUTUAL}, inspect="tls")], {"t": [host("a", "*")]}, ALL)
    call = path.Call("http", "a.example", 80)
    arrival = path.Arrival(call, "10.0.0.1", 8443, path.Envelope("x", ("istio",), IDENTITY))
    assert path.through(there, arrival, False, "").cluster == "a"
    for bare in (None, path.Envelope("x")):
        assert path.through(there, path.Arrival(call, "10.0.0.1", 8443, bare), False, "").cause == "protocol"


def test_a_cluster_puts_tls_around_a_request_with_the_proxy_s_own_identity() -> None:
    clusters = [cluster("a", "EDS", transport_socket=ORIGINATES)]
    there = proxy([listener("0.0.0.0_80", 80, http("80"))], {"80": [host("a", "*")]}, clusters, {"a": [("10.244.0.9", 8443)]})
    seen = go(there, path.Call("http", "a.example", 80))
    assert seen.envelope == path.Envelope("a.example", ("istio",), IDENTITY)
    assert seen.endpoints == (path.Endpoint("10.244.0.9", 8443),)


def authenticated(name: str) -> dict[str, Any]:
    return {"authenticated": {"principal_name": {"exact": name}}}


@pytest.mark.parametrize(
    ("action", "permission", "principal", "allowed"),
    [
        ("ALLOW", {"any": True}, {"any": True}, True),
        ("ALLOW", {"any": True}, authenticated(IDENTITY), True),
        ("ALLOW", {"any": True}, authenticated("spiffe://other"), False),
        ("ALLOW", {"any": True}, {"not_id": authenticated(IDENTITY)}, False),
        ("DENY", {"any": True}, {"any": True}, False),
        ("DENY", {"any": True}, authenticated("spiffe://other"), True),
        ("LOG", {"any": True}, authenticated("spiffe://other"), True),
        ("ALLOW", {"destination_port": 8443}, {"any": True}, True),
        ("ALLOW", {"destination_port": 443}, {"any": True}, False),
        ("ALLOW", {"header": {"name": ":authority", "string_match": {"suffix": ".EXAMPLE", "ignore_case": True}}}, {"any": True}, True),
        ("ALLOW", {"url_path": {"path": {"prefix": "/b"}}}, {"any": True}, False),
        ("ALLOW", {"requested_server_name": {"exact": "x"}}, {"direct_remote_ip": {"address_prefix": "10.244.0.0", "prefix_len": 16}}, True),
        ("ALLOW", {"and_rules": {"rules": [{"any": True}, {"or_rules": {"rules": [{"destination_port": 1}]}}]}}, {"any": True}, False),
        ("ALLOW", {"not_rule": {"destination_port": 1}}, {"and_ids": {"ids": [{"any": True}, authenticated(IDENTITY)]}}, True),
    ],
)
def test_policies_decide_as_envoy_has_them(action: str, permission: dict[str, Any], principal: dict[str, Any], allowed: bool) -> None:
    rules = {"action": action, "policies": {"ns[gw]-policy[p]-rule[0]": {"permissions": [permission], "principals": [principal]}}}
    rbac = {"name": "envoy.filters.http.rbac", "typed_config": {"rules": rules}}
    there = proxy([listener("0.0.0.0_8443", 8443, {**http("t", rbac), "transport_socket": MUTUAL}, inspect="tls")], {"t": [host("a", "*")]}, ALL)
    arrival = path.Arrival(path.Call("http", "a.example", 80), "10.0.0.1", 8443, path.Envelope("x", ("istio",), IDENTITY), "10.244.0.7")
    seen = path.through(there, arrival, False, "")
    assert (seen.cause == "policy") != allowed
    assert (seen.cluster == "a") == allowed


def test_no_policy_of_an_empty_allow_list_takes_anything() -> None:
    rbac = {"name": "envoy.filters.network.rbac", "typed_config": {"rules": {"policies": {}}}}
    chain = tcp("a")
    chain["filters"].insert(0, rbac)
    seen = go(proxy([listener("0.0.0.0_443", 443, chain)], clusters=ALL), path.Call("tls", "a.example", 443))
    assert (seen.cause, seen.policy) == ("policy", "")
