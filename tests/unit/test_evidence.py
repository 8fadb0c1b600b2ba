"""The verdict with all evidence: the gateway's own line, the address that the far end saw, redirection, and configuration in place of a log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils import _evidence as evidence
from ansible_collections.meshops.istio_egress.plugins.module_utils import _traffic as traffic
from ansible_collections.meshops.istio_egress.plugins.module_utils._explain import Explanation

GATEWAY, OWN = "istio-system/egress-1", "10.244.0.6"
SENT = traffic.LogLine(
    "sidecar", f"{OWN}:4000", "203.0.113.1:80", details="via_upstream", cluster="outbound|80||gw.istio-system.svc.cluster.local",
    upstream_host="10.244.0.4:8080", upstream_local=f"{OWN}:5000", request="GET /", authority="a.example", start="2026-11-22T07:00:00.100Z",
)  # fmt: skip
PASSED = traffic.LogLine(
    "gateway", f"{OWN}:5000", "10.244.0.4:8080", details="via_upstream", cluster="outbound|80||a.example", upstream_host="203.0.113.1:80",
    upstream_local="10.244.0.4:6000", request="GET /", authority="a.example", start="2026-11-22T07:00:00.101Z",
)  # fmt: skip


def found(status: int | None, seen: str = "", rc: int = 0, line: Any = SENT, url: str = "http://a.example/", **more: Any) -> evidence.Finding:
    asked = traffic.parse_requests([url])[0]
    body = f'{{"client": "{seen}"}}' if seen else ""
    got = traffic.Answer(
        rc=rc, status=status, body=body, received=len(body), connection=(f"{OWN}:4000", "203.0.113.1:80"), error=f"curl: ({rc})" if rc else None
    )
    known = evidence.Evidence(own_address=OWN, pods={"10.244.0.4": GATEWAY}, **more)
    return evidence.find(asked, got, line, traffic.judge(asked, got, line, True), True, known)


def test_an_answer_that_came_through_the_gateway() -> None:
    seen = found(200, "10.244.0.4", gateway=GATEWAY, passed=PASSED)
    assert (seen.verdict.word, seen.way, seen.missing) == ("allowed", GATEWAY, ())


def test_missing_evidence_is_named() -> None:
    assert found(200, gateway=GATEWAY).missing == (f"the access log line of gateway {GATEWAY}", "the address that the far end saw")


@pytest.mark.parametrize(
    ("line", "status", "by", "reason"),
    [
        ({"details": "rbac_access_denied_matched_policy[ns[istio-system]-policy[deny]-rule[0]]"}, 403, "gateway policy", "istio-system/deny"),
        ({"details": "rbac_access_denied_matched_policy[none]"}, 403, "gateway policy", "no ALLOW rule"),
        ({"details": "", "termination": "rbac_access_denied_matched_policy[none]"}, None, "gateway policy", "no ALLOW rule"),
        ({"details": "route_not_found", "flags": "NR", "cluster": ""}, 404, "gateway", "no route"),
        ({"details": "no_healthy_upstream", "flags": "UH"}, 503, "gateway", "no address"),
        ({"details": "cluster_not_found", "flags": "NC"}, 503, "gateway", "no cluster"),
        ({"flags": "UF", "failure": "delayed_connect_error:_Connection_refused"}, 503, "far end", "could not connect"),
        ({"flags": "UF", "failure": "connection_timeout"}, 503, "network", "could not connect"),
        ({"flags": "UF", "failure": "TLS_error:|CERTIFICATE_VERIFY_FAILED"}, 503, "gateway", "CERTIFICATE"),
        ({"details": ""}, None, "far end", "was connected to"),
    ],
)
def test_the_gateway_s_line_says_who_stopped_it(line: dict[str, str], status: int | None, by: str, reason: str) -> None:
    body = {403: "RBAC: access denied"}.get(status, "")
    asked = traffic.parse_requests(["http://a.example/" if status else "https://a.example/"])[0]
    got = traffic.Answer(rc=0 if status else 35, status=status, body=body, connection=("x", "y"), error=None if status else "curl: (35)")
    sent = SENT if status else replace(SENT, details="")
    known = evidence.Evidence(gateway=GATEWAY, passed=replace(PASSED, **line))
    verdict = evidence.find(asked, got, sent, traffic.judge(asked, got, sent, True), True, known).verdict
    assert (verdict.word, verdict.by) == ("blocked", by)
    assert reason in verdict.reason


def test_what_the_far_end_saw_outweighs_the_log() -> None:
    direct = replace(SENT, cluster="outbound|80||a.example", upstream_host="203.0.113.1:80")
    seen = found(200, "10.244.0.4", line=direct)
    assert seen.way == GATEWAY
    assert "but the far end saw 10.244.0.4" in seen.verdict.reason


def test_a_request_around_the_sidecar_is_seen_as_that() -> None:
    seen = found(200, OWN, line=None, around="203.0.113.1 goes around the sidecar (excludeOutboundIPRanges 203.0.113.0/24)")
    assert (seen.verdict.via, seen.way) == ("bypass", "direct")
    assert "excludeOutboundIPRanges" in seen.verdict.reason


def told(verdict: str, **more: Any) -> Explanation:
    return Explanation(verdict, "because.", (), **more)


@pytest.mark.parametrize(
    ("status", "configuration", "by", "via"),
    [
        (200, told("allowed", cluster="outbound|80||a.example"), None, "registered"),
        (200, told("allowed", cluster="PassthroughCluster"), None, "passthrough"),
        (200, told("allowed", via=GATEWAY), None, "gateway"),
        (None, told("blocked", by="mesh"), "mesh", None),
        (None, told("blocked", by="gateway policy"), "gateway policy", None),
        (None, told("allowed"), "far end", None),
        (None, None, "unknown", None),
    ],
)
def test_without_a_log_the_configuration_tells(status: int | None, configuration: Explanation | None, by: str | None, via: str | None) -> None:
    url = "http://a.example/" if status else "https://a.example/"
    seen = found(status, rc=0 if status else 35, line=None, url=url, told=configuration)
    assert (seen.verdict.by, seen.verdict.via) == (by, via)
    assert "the sidecar's access log line" in seen.missing


@pytest.mark.parametrize(
    ("via", "way", "met"),
    [
        ("direct", "direct", True),
        ("direct", GATEWAY, False),
        ("gateway", GATEWAY, True),
        ("gateway", "direct", False),
        ("gateway", None, False),
        (None, None, True),
    ],
)
def test_the_way_is_part_of_what_is_expected(via: str | None, way: str | None, met: bool) -> None:
    asked = traffic.parse_requests([{"url": "http://a.example/", "expect": "allowed", "via": via}])[0]
    assert evidence.is_met(asked, traffic.Verdict("allowed", None, "registered", ""), way) is met


def test_lines_of_two_proxies_are_paired_by_connection_request_and_time() -> None:
    later = replace(SENT, start="2026-11-22T07:00:05.000Z")
    lines = [replace(PASSED, start=start, line=start) for start in ("2026-11-22T06:59:00.000Z", PASSED.start, "2026-11-22T07:00:05.001Z")]
    noise = [replace(PASSED, client="10.244.0.9:1"), replace(PASSED, authority="b.example"), replace(PASSED, request="GET /b")]
    paired = evidence.pair([("second", later), ("first", SENT)], [*noise, *lines])
    assert {key: line.line for key, line in paired.items()} == {"first": PASSED.start, "second": "2026-11-22T07:00:05.001Z"}
