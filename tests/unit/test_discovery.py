"""What logs say that workloads talk to, and what is proposed of it. Lines are those of a real mesh (see test_traffic)."""

from __future__ import annotations

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils import _discovery as discovery
from ansible_collections.meshops.istio_egress.plugins.module_utils._discovery import DECLARED, PASSED, REFUSED, Destination
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import parse_hosts
from ansible_collections.meshops.istio_egress.plugins.module_utils._traffic import LogLine, parse_lines
from unit.test_traffic import GATEWAY, LINES

WEB = "deployment/web"


START = "2026-11-22T02:00:00.000Z"


def line(cluster: str, authority: str = "", sni: str = "", server: str = "203.0.113.9:443", route: str = "", start: str = START) -> LogLine:
    request = "GET /" if authority else ""
    return LogLine("", "10.244.0.6:40000", server, cluster=cluster, authority=authority, sni=sni, request=request, route=route, start=start)


def found(lines, declared=(), inside=()):
    return discovery.discover(discovery.joined([discovery.read(WEB, lines)]), declared, dict(inside))


def declared(host: str, *ports: str, managed: bool = True, gateway: str | None = None) -> dict:
    return {"host": host, "ports": list(ports), "managed": managed, "gateway": gateway, "object": f"ServiceEntry demo/{host}"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("registered http", (Destination("httpbin.org", 80, "HTTP"), DECLARED)),
        ("passthrough http", (Destination("other.example.com", 80, "HTTP"), PASSED)),
        ("blocked http", (Destination("other.example.com", 80, "HTTP"), REFUSED)),
        ("registered tls", (Destination("www.google.com", 443, "TLS"), DECLARED)),
        ("blocked tls", (Destination("other.example.com", 443, "TLS"), REFUSED)),
        ("registered tcp", (Destination("db.example.com", 9000, "TCP"), DECLARED)),
        ("refused http", (Destination("edition.cnn.com", 8081, "HTTP"), DECLARED)),
        ("gateway http", (Destination("de.wikipedia.org", 80, "HTTP"), DECLARED)),
        ("gateway tls closed", (Destination("en.wikipedia.org", 443, "TLS"), DECLARED)),
    ],
)
def test_a_line_says_where_a_request_went_and_what_came_of_it(name, expected):
    [parsed] = parse_lines(LINES[name])
    assert discovery.outbound(parsed)[:2] == expected


@pytest.mark.parametrize(
    "parsed",
    [
        line("inbound|8080||", authority="web.demo:8080"),
        line("InboundPassthroughCluster"),
        line("outbound|80||web.demo.svc.cluster.local", authority="web.demo"),
        line("outbound|80||web.demo.svc.cluster.local", authority="web.demo.svc.cluster.local"),
        line("outbound|5432||db.demo.svc.cluster.local"),
        line(f"outbound|443||{GATEWAY}", server="-"),
        line("", authority="nowhere.example.com"),
    ],
)
def test_traffic_inside_the_mesh_is_left_out(parsed):
    assert discovery.outbound(parsed) is None


def test_what_is_used_undeclared_is_proposed_by_name_and_can_be_declared():
    result = found([
        line("PassthroughCluster", authority="Httpbin.org:80", server="203.0.113.11:80"),
        line("PassthroughCluster", authority="httpbin.org", server="203.0.113.11:8080"),
        line("PassthroughCluster", sni="www.google.com"),
        line("", authority="other.example.com", server="203.0.113.13:80", route="block_all"),
        line("BlackHoleCluster", sni="other.example.com"),
        line("AllowAnyDynamicDNSCluster", authority="dyn.example.com", server="203.0.113.14:80"),
    ])  # fmt: skip
    assert result.hosts == [
        {"host": "dyn.example.com", "ports": [80]},
        {"host": "httpbin.org", "ports": [80, "http/8080"]},
        {"host": "www.google.com", "ports": [443]},
    ]
    assert result.refused == [{"host": "other.example.com", "ports": [80, 443]}], "what was only refused is for a person to decide"
    assert result.unnamed == []
    assert [e.host for e in parse_hosts(result.hosts)] == [h["host"] for h in result.hosts]


def test_uses_of_several_logs_are_one():
    early, late = (line("PassthroughCluster", sni="a.example.com", server=f"203.0.113.{n}:443", start=f"2026-11-22T0{n}:00:00.000Z") for n in (1, 2))
    logs = [discovery.read(WEB, [late]), discovery.read("statefulset/db", [early, early]), discovery.read(WEB, [])]
    assert [log.since for log in logs] == [late.start, early.start, None]
    [row] = discovery.discover(discovery.joined(logs), [], {}).rows
    assert (row["requests"], row["workloads"], row["addresses"]) == (3, [WEB, "statefulset/db"], ["203.0.113.1", "203.0.113.2"])
    assert (row["first"], row["last"]) == (early.start, late.start)
    assert logs[0].uses[Destination("a.example.com", 443, "TLS")].requests == 1, "the logs themselves stay as they are"


def test_an_address_without_a_name_is_listed_and_not_proposed():
    result = found([
        line("PassthroughCluster", server="203.0.113.12:443"),
        line("PassthroughCluster", server="203.0.113.13:5432"),
        line("PassthroughCluster", authority="203.0.113.14", server="203.0.113.14:80"),
        line("PassthroughCluster", authority="bad_name!.example.com", server="203.0.113.15:80"),
    ])  # fmt: skip
    assert result.hosts == []
    notes = {row["host"] or row["addresses"][0]: row["note"] for row in result.unnamed}
    assert "Declare any host on port 443, and look again" in notes["203.0.113.12"]
    assert "{host: NAME, addresses: [203.0.113.13], ports: [tcp/5432]}" in notes["203.0.113.13"]
    assert "no name that can be declared" in notes["203.0.113.14"] and "no name that can be declared" in notes["bad_name!.example.com"]


def test_an_address_that_was_asked_for_by_name_as_well_is_no_question():
    lines = [line("PassthroughCluster"), line("PassthroughCluster", sni="www.google.com"), line("PassthroughCluster", server="203.0.113.9:8443")]
    result = found(lines)
    assert [row["port"] for row in result.unnamed] == [8443]
    assert [row["note"] for row in result.rows if row["host"] is None and row["port"] == 443] == [
        "Most likely www.google.com, which was asked for by name at the same address."
    ]


def test_what_stays_inside_the_cluster_is_told_and_not_proposed():
    result = found(
        [
            line("PassthroughCluster", server="10.244.0.7:9000"),
            line("PassthroughCluster", authority="10.244.0.8:8080", server="10.244.0.8:8080"),
            line("PassthroughCluster", authority="web", server="10.96.0.9:80"),
            line("PassthroughCluster", authority="web.demo.svc", server="10.96.0.9:80"),
        ],
        inside={"10.244.0.7": "Pod demo/db-0", "10.244.0.8": "Pod demo/web-0"},
    )
    assert (result.hosts, result.unnamed) == ([], [])
    assert sorted(row["note"].partition(":")[0] for row in result.rows) == [
        "Pod demo/db-0", "Pod demo/web-0", "web is a name of the cluster", "web.demo.svc is a name of the cluster",
    ]  # fmt: skip


def test_what_is_declared_by_now_is_not_proposed_again():
    lines = [("BlackHoleCluster", "en.wikipedia.org"), ("PassthroughCluster", "www.google.com"), ("PassthroughCluster", "wikipedia.org")]
    others = [declared("*.wikipedia.org", "tls/443"), declared("www.google.com", "http/80", managed=False)]
    result = found([line(cluster, sni=name) for cluster, name in lines], others)
    assert result.hosts == [{"host": "wikipedia.org", "ports": [443]}, {"host": "www.google.com", "ports": [443]}]
    assert result.refused == []


def test_what_was_let_out_once_and_is_refused_now_is_proposed():
    assert found([line("PassthroughCluster", sni="a.example.com"), line("BlackHoleCluster", sni="a.example.com")]).hosts == [
        {"host": "a.example.com", "ports": [443]}
    ]


def test_names_that_nobody_can_have_are_tests():
    lines = [line("BlackHoleCluster", sni="undeclared.invalid"), line("PassthroughCluster", authority="undeclared.invalid", server="203.0.113.1:80")]
    result = found(lines, [declared("names.demo.invalid", "tls/443")])
    assert (result.hosts, result.refused, result.unnamed, result.unused) == ([], [], [], [])
    assert all("RFC 2606" in row["note"] for row in result.rows)


def test_declared_hosts_that_nobody_asked_for_are_unused():
    lines = [
        line("outbound|443||*.wikipedia.org", sni="de.wikipedia.org"),
        line("outbound|80||httpbin.org", authority="httpbin.org", server="203.0.113.11:80"),
        line("outbound|5432||db.example.com", server="203.0.113.13:5432"),
    ]
    result = found(lines, [
        declared("*.wikipedia.org", "tls/443"), declared("httpbin.org", "http/80", "tls/443"), declared("db.example.com", "tcp/5432"),
        declared("old.example.com", "tls/443"), declared("theirs.example.com", "tls/443", managed=False),
        declared("sent.example.com", "tcp/5432", "tls/443", gateway="istio-system/istio-egressgateway"),
    ])  # fmt: skip
    assert {(u["host"], *u["ports"]) for u in result.unused} == {("httpbin.org", "tls/443"), ("old.example.com", "tls/443"), ("sent.example.com", "tls/443")}
    assert result.hosts == []


def test_a_port_that_was_spoken_to_in_two_ways_is_declared_as_most_did():
    plain = line("PassthroughCluster", authority="a.example.com")
    result = found([plain, line("PassthroughCluster", sni="a.example.com"), line("PassthroughCluster", sni="a.example.com")])
    assert result.hosts == [{"host": "a.example.com", "ports": [443]}]
    assert [row["note"] for row in result.rows if row["protocol"] == "HTTP"] == ["A port has one protocol; the one that most requests spoke was taken."]


def test_the_table_has_a_line_for_each_use():
    lines = discovery.table(found([line("PassthroughCluster", sni="www.google.com"), line("PassthroughCluster", server="[2001:db8::1]:5432")]))
    assert lines[0].split() == ["DESTINATION", "PROTOCOL", "REQUESTS", "OUTCOME", "WORKLOADS", "LAST", "SEEN"]
    assert lines[1].split() == ["www.google.com:443", "TLS", "1", "passed", WEB, START]
    assert lines[2].startswith("[2001:db8::1]:5432 ")


def test_what_could_not_be_seen_is_said():
    assert discovery.warnings("demo", ["quiet"], [], {"quiet": True}) == []
    [none] = discovery.warnings("demo", [], [], {})
    assert "Namespace demo has no running pod" in none
    bare, off, unknown = discovery.warnings("demo", [*"abcdexy"], [*"abcde"], {"x": False, "y": None})
    assert "a, b, c, d and 1 more" in bare
    assert "write no access log: x." in off and "accessLogFile" in off
    assert "may not be seen" in unknown and unknown.endswith(": y.")
