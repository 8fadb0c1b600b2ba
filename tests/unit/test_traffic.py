"""Requests, curl's output, the sidecar's log and the verdicts. Outputs and log lines are those of a real mesh (Istio 1.31, Envoy 1.40, curl 7.88)."""
from __future__ import annotations

import json
import subprocess

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils import _traffic as traffic
from ansible_collections.meshops.istio_egress.plugins.module_utils._source import Source

GATEWAY = "istio-egressgateway.istio-system.svc.cluster.local"
LINES = {
    "registered http": '[2026-11-22T02:19:19.710Z] "GET /headers HTTP/1.1" 200 - via_upstream - "-" 0 371 9 7 "-" "curl/7.88.1" "69bd92d2-2bc2" '
    '"httpbin.org" "203.0.113.11:80" outbound|80||httpbin.org 10.244.0.6:42500 203.0.113.11:80 10.244.0.6:42490 - default',
    "passthrough http": '[2026-11-22T02:18:43.086Z] "GET / HTTP/1.1" 200 - via_upstream - "-" 0 113 7 5 "-" "curl/7.88.1" "b6b2d7ec-2d4c" '
    '"other.example.com" "203.0.113.13:80" PassthroughCluster 10.244.0.6:57480 203.0.113.13:80 10.244.0.6:57478 - allow_any',
    "blocked http": '[2026-11-22T02:19:19.722Z] "GET / HTTP/1.1" 502 - direct_response - "-" 0 0 0 - "-" "curl/7.88.1" "582c0f2b-2738" "other.example.com" '
    '"-" - - 203.0.113.13:80 10.244.0.6:42396 - block_all',
    "registered tls": '[2026-11-22T02:19:19.716Z] "- - -" 0 - - - "-" 748 1221 276 - "-" "-" "-" "-" '
    '"203.0.113.12:443" outbound|443||www.google.com 10.244.0.6:50094 203.0.113.12:443 10.244.0.6:50088 www.google.com -',
    "blocked tls": '[2026-11-22T02:19:19.179Z] "- - -" 0 UH - - "-" 0 0 3 - "-" "-" "-" "-" '
    '"-" BlackHoleCluster - 203.0.113.13:443 10.244.0.6:41196 other.example.com -',
    "registered tcp": '[2026-11-22T02:19:19.731Z] "- - -" 0 - - - "-" 0 66 1712 - "-" "-" "-" "-" '
    '"203.0.113.11:9000" outbound|9000||db.example.com 10.244.0.6:48218 203.0.113.11:9000 10.244.0.6:48208 - -',
    "refused tcp": '[2026-11-22T02:19:19.408Z] "- - -" 0 UF,URX - - "delayed_connect_error:_Connection_refused" 0 0 0 - "-" "-" "-" "-" '
    '"203.0.113.11:9111" outbound|9111||db.example.com - 203.0.113.11:9111 10.244.0.6:44834 - -',
    "unanswered tcp": '[2026-11-22T02:27:10.174Z] "- - -" 0 UF,URX - - "-" 0 0 9999 - "-" "-" "-" "-" '
    '"10.244.0.250:5432" outbound|5432||db2.example.com - 10.244.0.250:5432 10.244.0.6:48892 - -',
    "refused http": '[2026-11-22T02:19:19.540Z] "GET / HTTP/1.1" 503 URX,UF '
    'upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused} - '
    '"delayed_connect_error:_Connection_refused" 0 121 8 - "-" "curl/7.88.1" "b095bf36-b842" "edition.cnn.com:8081" '
    '"203.0.113.10:8081" outbound|8081||edition.cnn.com - 203.0.113.10:8081 10.244.0.6:35426 - default',
    "unanswered http": '[2026-11-22T02:24:52.331Z] "GET / HTTP/1.1" 0 DC downstream_remote_disconnect - "-" 0 0 940 - "-" "curl/7.88.1" "e3e00764-b990" '
    '"de.wikipedia.org" "10.244.0.250:80" outbound|80||de.wikipedia.org - 203.0.113.15:80 10.244.0.6:46778 - default',
    "reset http": '[2026-11-22T02:34:32.463Z] "GET / HTTP/1.1" 503 UC upstream_reset_before_response_started{connection_termination} - "-" 0 95 15 - "-" '
    '"curl/7.88.1" "cea32ee8-3bc8" "reset.example.com" "203.0.113.94:80" PassthroughCluster 10.244.0.6:56250 203.0.113.94:80 10.244.0.6:56244 - allow_any',
    "no address": '[2026-11-22T02:24:52.301Z] "GET / HTTP/1.1" 503 UH no_healthy_upstream - "-" 0 19 0 - "-" "curl/7.88.1" "535b1d95-dfc7" "www.wikipedia.org" '
    '"-" outbound|80||www.wikipedia.org - 203.0.113.16:80 10.244.0.6:42080 - default',
    "gateway http": '[2026-11-22T02:23:34.305Z] "GET / HTTP/1.1" 200 - via_upstream - "-" 0 112 3 3 "-" "curl/7.88.1" "681e3f7b-bca3" "de.wikipedia.org" '
    f'"10.244.0.4:8080" outbound|80||{GATEWAY} 10.244.0.6:33656 203.0.113.15:80 10.244.0.6:35762 - -',
    "gateway tls closed": '[2026-11-22T02:23:33.954Z] "- - -" 0 UR - - "-" 517 0 11 - "-" "-" "-" "-" '
    f'"10.244.0.4:8443" outbound|443||{GATEWAY} 10.244.0.6:60260 203.0.113.14:443 10.244.0.6:53758 en.wikipedia.org -',
}  # fmt: skip


def connection_of(line: str) -> traffic.Connection:
    *_rest, server, client, _sni, _route = line.split()
    return client, server


def logged(name: str) -> traffic.LogLine:
    connection = connection_of(LINES[name])
    return traffic.parse_log(LINES[name], [connection])[connection]


def request(url: str, expect: str | None = None) -> traffic.Request:
    return traffic.parse_requests([{"url": url, "expect": expect}])[0]


def answer(status: int | None = None, rc: int = 0, body: str = "", **other: object) -> traffic.Answer:
    values = {"connection": ("10.244.0.6:10000", "203.0.113.11:80"), "error": f"curl: ({rc}) words" if rc else None, "received": len(body), **other}
    return traffic.Answer(rc=rc, status=status, body=body, **values)


# -- what is asked ------------------------------------------------------------------------------------------------------------------


def test_requests_come_as_dictionaries_strings_and_the_text_of_a_survey() -> None:
    survey, entry = "http://a.example\nhttps://b.example:8443/x?y=1", {"url": "tcp://192.0.2.1:5432", "expect": "blocked"}
    parsed = traffic.parse_requests([survey, entry, "http://[2001:db8::1]/"])
    assert [(r.scheme, r.host, r.port, r.expect) for r in parsed] == [
        ("http", "a.example", 80, None),
        ("https", "b.example", 8443, None),
        ("tcp", "192.0.2.1", 5432, "blocked"),
        ("http", "2001:db8::1", 80, None),
    ]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("www.google.com", "does not begin with http://"),
        ("ftp://a.example/", "does not begin with http://"),
        ("http:///path", "can be sent as it is"),
        ("http://a.example:99999/", "is not a URL"),
        ("tcp://db.example.com", "Write tcp://db.example.com:5432"),
        ("tcp://db.example.com:5432/x", "a host and a port"),
        ("http://user:secret@a.example/", "user name or password"),
        ({"url": 'http://a.example/"$(id)"'}, "percent-encode"),
        ("http://a.example/é", "percent-encode"),
        ({"url": "http://a.example/", "expect": "maybe"}, '"maybe" cannot be expected'),
        ({"url": "http://a.example/", "by": "gateway"}, 'no key "by"'),
        ({"url": "http://a.example/", "via": "somebody"}, '"somebody" is not a way'),
        ({"url": "http://a.example/", "proxy": "proxy.example:3128"}, '"proxy.example:3128" is not a proxy'),
        ({"url": "http://a.example/", "proxy": "http://user:x@proxy.example:3128"}, "without user name and password"),
        ({"url": "tcp://a.example:5432", "proxy": "http://proxy.example:3128"}, "made without a proxy"),
        ({"url": "http://a.example/", "via": "gateway", "expect": "blocked"}, "takes no way"),
        ({"host": "a.example"}, "with the key url"),
        ("  ", "no request to make"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_a_way_out(item: object, said: str) -> None:
    with pytest.raises(traffic.TrafficError, match=said) as error:
        traffic.parse_requests([item])
    assert len(str(error.value).splitlines()) == 2
    assert "secret" not in str(error.value)


# -- the command and its output -----------------------------------------------------------------------------------------------------

STDOUT = (
    "HTTP/1.1 200 OK\r\nserver: envoy\r\ncontent-type: application/json\r\nx-envoy-upstream-service-time: 1\r\n\r\n"
    '{"host":"httpbin.org","client":"10.244.0.6","decorator":"httpbin.org:80/*"}\n'
    "\n7f3a\t200\t10.244.0.6\t42736\t203.0.113.11\t80\t0.033719\t371\t7f3a 0\n"
    "HTTP/1.1 502 Bad Gateway\r\nserver: envoy\r\ncontent-length: 0\r\n\r\n\n7f3a\t502\t10.244.0.6\t48290\t203.0.113.13\t80\t0.006092\t0\t7f3a 0\n"
    "\n7f3a\t000\t10.244.0.6\t58740\t203.0.113.13\t443\t0.282000\t0\t7f3a 35\n"
    '{"client": "10.244.0.6", "address": "203.0.113.11", "port": 9000}\n\n7f3a\t000\t10.244.0.6\t51294\t203.0.113.11\t9000\t2.011122\t66\t7f3a 28\n'
    "\n7f3a\t000\t\t0\t\t0\t0.000271\t0\t7f3a 7\n"
)
STDERR = (
    "* Connected to httpbin.org (203.0.113.11) port 80 (#0)\n< HTTP/1.1 200 OK\n7f3a\n< HTTP/1.1 502 Bad Gateway\n7f3a\n"
    "* Recv failure: Connection reset by peer\ncurl: (35) Recv failure: Connection reset by peer\n7f3a\n"
    "* Time-out\ncurl: (28) Time-out\n7f3a\n"
    "* connect to 203.0.113.11 port 81 failed: Connection refused\n"
    "curl: (7) Failed to connect to 203.0.113.11 port 81 after 0 ms: Couldn't connect to server\n7f3a\n"
)
ASKED = traffic.parse_requests(
    ["http://httpbin.org/headers http://other.example.com/", "https://other.example.com/ tcp://203.0.113.11:9000 http://203.0.113.11:81/"]
)


def test_each_answer_is_read_from_its_own_part_of_the_output() -> None:
    ok, blocked, closed, tcp, refused = traffic.parse_output(ASKED, "7f3a", STDOUT, STDERR)
    assert (ok.status, ok.rc, ok.seen_as, ok.decorator) == (200, 0, "10.244.0.6", "httpbin.org:80/*")
    assert ok.connection == ("10.244.0.6:42736", "203.0.113.11:80")
    assert ok.headers["x-envoy-upstream-service-time"] == "1"
    assert (blocked.status, blocked.rc, blocked.body, blocked.seen_as) == (502, 0, "", None)
    assert (closed.status, closed.rc, closed.error) == (None, 35, "curl: (35) Recv failure: Connection reset by peer")
    assert (tcp.status, tcp.rc, tcp.received, tcp.seen_as, tcp.gave_up) == (None, 28, 66, "10.244.0.6", True)
    assert (refused.rc, refused.connection) == (7, None)
    assert refused.error is not None and refused.error.endswith("(Connection refused)")


def test_interim_headers_and_a_body_that_looks_like_headers_are_told_apart() -> None:
    end = "\n7f3a\t200\t10.244.0.6\t1\t203.0.113.11\t80\t0,5\t9\t7f3a 0\n"
    [one] = traffic.parse_output(ASKED[:1], "7f3a", "HTTP/2 103 \r\nlink: x\r\n\r\nHTTP/2 200 \r\nServer: y\r\n\r\nHTTP/1.1 500 no\r\n\r\n" + end, "7f3a\n")
    assert (dict(one.headers), one.body, one.seconds) == ({"server": "y"}, "HTTP/1.1 500 no\r\n\r\n", 0.5)


@pytest.mark.parametrize(
    ("stdout", "stderr", "said"),
    [
        ("7f3a 127\n", "sh: 1: curl: not found\n7f3a\n", "exit code 127.*curl: not found"),
        ("7f3a 137\n", "Killed\n7f3a\n", "exit code 137.*Killed"),
        ("HTTP/1.1 200 OK\r\n", "", "ended after 0 of 1"),
    ],
)
def test_a_container_without_a_working_curl_is_an_error_with_a_way_out(stdout: str, stderr: str, said: str) -> None:
    with pytest.raises(traffic.TrafficError, match=said) as error:
        traffic.parse_output(ASKED[:1], "7f3a", stdout, stderr)
    assert "curl 7.54 or newer" in str(error.value).splitlines()[1]


@pytest.mark.parametrize("insecure", [False, True])
def test_the_command_runs_curl_once_per_request_and_keeps_outputs_apart(tmp_path, insecure: bool) -> None:
    """The script is real; curl is a stand-in that prints what it was given, so that quoting and separators are seen from both ends."""
    curl = tmp_path / "curl"
    curl.write_text('#!/bin/sh\nprintf "%s\\n" "$@"; for last; do :; done; echo "error of $last" >&2; exit 7\n')
    curl.chmod(0o755)
    proxied = {"url": "https://b.example/", "proxy": "http://proxy.example:3128"}
    asked = traffic.parse_requests(["http://a.example/?x=$HOME&y='1'", "tcp://[2001:db8::1]:5432", proxied])
    command = traffic.command(asked, 5, insecure, "7f3a", 10000)
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    first, second, third, rest = ran.stdout.split("7f3a 7\n")
    assert rest == ""
    assert first.splitlines()[-5:] == ["--max-time", "5", "--local-port", "10000-10003", "http://a.example/?x=$HOME&y='1'"]
    assert second.splitlines()[-5:] == ["--max-time", str(traffic.HOLD), "--local-port", "10004-10007", "telnet://[2001:db8::1]:5432"]
    assert third.splitlines()[-3:] == ["-x", "http://proxy.example:3128", "https://b.example/"]
    assert ("-k" in first.splitlines()) == insecure
    assert {"-q", "-g", "-i", "-v"} < set(first.splitlines())
    assert "\\n7f3a\\t%{http_code}\\t%{local_ip}" in first
    assert ran.stderr == "error of http://a.example/?x=$HOME&y='1'\n7f3a\nerror of telnet://[2001:db8::1]:5432\n7f3a\nerror of https://b.example/\n7f3a\n"


# -- the log ------------------------------------------------------------------------------------------------------------------------


def test_a_line_is_found_by_both_ends_of_its_connection() -> None:
    noise = ["2026-11-22T02:18:40.1Z info xdsproxy connected", '{"level":"info"}', "[not a log line]", "", '{"broken":']
    tls, http = connection_of(LINES["blocked tls"]), connection_of(LINES["registered http"])
    other_host_same_port = (tls[0], "203.0.113.99:443")
    found = traffic.parse_log("\n".join([*LINES.values(), *noise]), [tls, http, other_host_same_port])
    assert set(found) == {tls, http}
    assert not traffic.parse_log(LINES["blocked tls"], [other_host_same_port])
    assert (found[tls].flags, found[tls].cluster, found[tls].sni, found[tls].route) == ("UH", "BlackHoleCluster", "other.example.com", "")
    assert (found[tls].upstream_host, found[tls].connected) == ("", False)
    assert (found[http].details, found[http].route, found[http].host) == ("via_upstream", "default", "httpbin.org")
    assert (found[http].upstream_host, found[http].connected) == ("203.0.113.11:80", True)


def test_reasons_with_braces_and_bars_stay_in_their_field() -> None:
    line = logged("refused http")
    assert line.details == "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
    assert (line.failure, line.cluster) == ("delayed_connect_error:_Connection_refused", "outbound|8081||edition.cnn.com")


def test_the_json_format_says_the_same_as_the_text() -> None:
    entry = {
        "response_code": 502, "response_flags": "-", "response_code_details": "direct_response", "upstream_cluster": None, "upstream_host": None,
        "upstream_local_address": None, "downstream_remote_address": "10.244.0.6:42396", "downstream_local_address": "203.0.113.13:80",
        "requested_server_name": None, "route_name": "block_all", "upstream_transport_failure_reason": None, "authority": "other.example.com",
        "connection_termination_details": None, "method": "GET", "path": "/", "start_time": "2026-11-22T02:19:19.722Z",
    }  # fmt: skip
    text, connection = logged("blocked http"), connection_of(LINES["blocked http"])
    found = traffic.parse_log(json.dumps(entry), [connection])[connection]
    assert {**vars(found), "line": ""} == {**vars(text), "line": ""}


# -- the verdict --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "line", "got", "verdict", "reason"),
    [
        ("http://httpbin.org/headers", "registered http", answer(200), ("allowed", None, "registered"), "outbound|80||httpbin.org"),
        ("http://httpbin.org/headers", "registered http", answer(502), ("allowed", None, "registered"), ""),  # the far end's own 502: via_upstream
        ("http://other.example.com/", "passthrough http", answer(200), ("allowed", None, "passthrough"), "PassthroughCluster"),
        ("http://other.example.com/", "blocked http", answer(502), ("blocked", "mesh", None), "the host is not declared"),
        ("https://www.google.com/", "registered tls", answer(200), ("allowed", None, "registered"), ""),
        ("https://www.google.com/", "registered tls", answer(rc=60), ("blocked", "client", None), "curl: (60)"),
        ("https://www.google.com/", "registered tls", answer(rc=35), ("blocked", "far end", None), "no answer"),
        ("https://other.example.com/", "blocked tls", answer(rc=35), ("blocked", "mesh", None), "no host is declared for port 443"),
        ("tcp://203.0.113.11:9000", "registered tcp", answer(rc=28), ("allowed", None, "registered"), ""),
        ("tcp://203.0.113.11:9000", "registered tcp", answer(), ("allowed", None, "registered"), ""),  # taken, and closed by the far end
        ("tcp://203.0.113.11:9111", "refused tcp", answer(), ("blocked", "far end", None), "Connection_refused"),
        ("tcp://10.244.0.250:5432", "unanswered tcp", answer(rc=28), ("blocked", "network", None), "could not connect to 10.244.0.250:5432"),
        ("http://edition.cnn.com:8081/", "refused http", answer(503), ("blocked", "far end", None), "could not connect to 203.0.113.10:8081"),
        ("http://de.wikipedia.org/", "unanswered http", answer(rc=28), ("blocked", "network", None), "no connection to 10.244.0.250:80"),
        ("http://reset.example.com/", "reset http", answer(503, body="upstream connect error"), ("blocked", "far end", None), "503 by itself"),
        ("http://www.wikipedia.org/", "no address", answer(503, body="no healthy upstream"), ("blocked", "mesh", None), "no address for it"),
        ("http://de.wikipedia.org/", "gateway http", answer(200), ("allowed", None, "gateway"), GATEWAY),
        ("http://de.wikipedia.org/", "gateway http", answer(404), ("blocked", "mesh", None), "the gateway answered 404 by itself (empty body)"),
        ("http://de.wikipedia.org/", "gateway http", answer(404, body="<html>no such page"), ("allowed", None, "gateway"), ""),
        ("http://de.wikipedia.org/", "gateway http", answer(403, body="RBAC: access denied"), ("blocked", "mesh", None), "RBAC: access denied"),
        ("https://en.wikipedia.org/", "gateway tls closed", answer(rc=35), ("blocked", "unknown", None), "no answer"),
        ("tcp://en.wikipedia.org:443", "gateway tls closed", answer(), ("blocked", "unknown", None), ""),
        ("tcp://en.wikipedia.org:443", "gateway tls closed", answer(rc=28), ("allowed", None, "gateway"), ""),
    ],
)
def test_the_verdict_from_a_log_line(url: str, line: str, got: traffic.Answer, verdict: tuple[str, str | None, str | None], reason: str) -> None:
    judged = traffic.judge(request(url), got, logged(line), sidecar=True)
    assert (judged.word, judged.by, judged.via) == verdict
    assert reason in judged.reason


ENVOY = {"server": "envoy"}


@pytest.mark.parametrize(
    ("url", "got", "sidecar", "verdict"),
    [
        ("http://other.example.com/", answer(502, headers=ENVOY), True, ("blocked", "mesh", None)),
        ("http://httpbin.org/", answer(502, headers={**ENVOY, "x-envoy-upstream-service-time": "3"}), True, ("allowed", None, "unknown")),
        ("http://httpbin.org/", answer(502, body="<html>Bad Gateway", headers=ENVOY), True, ("allowed", None, "unknown")),
        ("http://httpbin.org/", answer(502, headers=ENVOY), False, ("allowed", None, "no sidecar")),
        ("http://httpbin.org/", answer(502, headers={"server": "nginx"}), True, ("allowed", None, "unknown")),  # it went around the sidecar
        ("http://httpbin.org/", answer(200), True, ("allowed", None, "unknown")),
        ("https://other.example.com/", answer(rc=35), True, ("blocked", "unknown", None)),
        ("https://other.example.com/", answer(rc=35), False, ("blocked", "far end", None)),
        ("http://nowhere.invalid/", answer(rc=6, connection=None), True, ("blocked", "dns", None)),
        ("http://10.244.0.250/", answer(rc=28, connection=None), False, ("blocked", "network", None)),
        ("http://a.example:81/", answer(rc=7, connection=None, error="curl: (7) Failed (Connection refused)"), False, ("blocked", "far end", None)),
        ("http://a.example:81/", answer(rc=7, connection=None, error="curl: (7) Failed (No route to host)"), False, ("blocked", "network", None)),
        ("tcp://a.example:5432", answer(rc=28), True, ("unknown", None, None)),
        ("tcp://a.example:5432", answer(rc=28, body="banner"), True, ("allowed", None, "unknown")),
        ("tcp://a.example:5432", answer(), True, ("blocked", "unknown", None)),
        ("tcp://a.example:5432", answer(rc=28), False, ("allowed", None, "no sidecar")),
    ],
)
def test_the_verdict_without_a_log_line(url: str, got: traffic.Answer, sidecar: bool, verdict: tuple[str, str | None, str | None]) -> None:
    judged = traffic.judge(request(url), got, None, sidecar)
    assert (judged.word, judged.by, judged.via) == verdict
    assert ("no access log line" if sidecar else "no sidecar") in judged.reason or judged.by == "dns"


@pytest.mark.parametrize(
    ("url", "cluster", "via"),
    [
        ("http://sleep.demo:80/", "outbound|80||sleep.demo.svc.cluster.local", "registered"),
        ("https://de.wikipedia.org/", "outbound|443||*.wikipedia.org", "registered"),
        ("http://de.wikipedia.org/", f"outbound|80|cnn|{GATEWAY}", "gateway"),
        ("tcp://203.0.113.11:9000", "outbound|9000||db.example.com", "registered"),
        ("http://a.example/", "some_filter_cluster", "unknown"),
    ],
)
def test_the_cluster_tells_the_way(url: str, cluster: str, via: str) -> None:
    line = traffic.LogLine("", "c", cluster=cluster, details="via_upstream", upstream_local="x")
    assert traffic.judge(request(url), answer(200), line, True).via == via


# -- the result ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expect", "word", "by", "met"),
    [
        (None, "blocked", "mesh", None),
        ("allowed", "allowed", None, True),
        ("allowed", "blocked", "mesh", False),
        ("allowed", "unknown", None, False),
        ("blocked", "unknown", None, False),
        ("blocked", "allowed", None, False),
        ("blocked", "blocked", "mesh", True),
        ("blocked", "blocked", "network", True),
        ("blocked", "blocked", "unknown", True),
        ("blocked", "blocked", "dns", True),
        ("blocked", "blocked", "far end", False),  # it was reached
        ("blocked", "blocked", "client", False),
    ],
)
def test_when_an_expectation_is_met(expect: str | None, word: str, by: str | None, met: bool | None) -> None:
    assert traffic.is_met(request("http://a.example/", expect), traffic.Verdict(word, by, None, "")) is met


def judged_row(url: str, expect: str, line: str, got: traffic.Answer) -> dict:
    asked, entry = request(url, expect), logged(line)
    return traffic.row(asked, got, entry, traffic.judge(asked, got, entry, True), 1)


def rows() -> list[dict]:
    return [
        judged_row("http://httpbin.org/", "allowed", "registered http", answer(200, body='{"client": "10.244.0.6"}')),
        judged_row("https://other.example.com/", "allowed", "blocked tls", answer(rc=35)),
    ]


def test_the_table_is_aligned_and_says_what_happened() -> None:
    assert traffic.table(rows()) == [
        "REQUEST                     RESULT   VERDICT              EXPECTED     VIA         EVIDENCE",
        "http://httpbin.org/         200      allowed              allowed      registered  outbound|80||httpbin.org; the far end saw 10.244.0.6",
        "https://other.example.com/  exit 35  blocked by the mesh  allowed: NO  -           no host is declared for port 443: BlackHoleCluster, flags UH",
    ]


def test_the_complaint_names_the_unmet_rows_alone() -> None:
    first, _headings, *unmet = traffic.complaint(rows(), Source("demo", "sleep-1", "sleep", True)).splitlines()
    assert first == "1 of 2 requests was not as expected (from pod demo/sleep-1):"
    assert [line.split()[0] for line in unmet] == ["https://other.example.com/"]


def test_a_name_that_does_not_resolve_is_a_hollow_proof() -> None:
    asked, got = request("http://nowhere.invalid/", "blocked"), answer(rc=6, connection=None)
    hollow = traffic.row(asked, got, None, traffic.judge(asked, got, None, True), 1)
    assert hollow["met"] and "check the name" in traffic.warnings([hollow])[0]
    assert not traffic.warnings(rows())
