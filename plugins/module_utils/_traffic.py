# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Real requests from a workload: the curl command of each, its output and the sidecar's access log read back, and the verdict.

Pure: it makes commands and reads text; running them is left to the caller. A verdict says what the evidence shows and nothing that the
configuration of the mesh would suggest, so this file knows no objects of Istio and no proxy configuration.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError
from ansible_collections.meshops.istio_egress.plugins.module_utils._source import Source
from ansible_collections.meshops.istio_egress.plugins.module_utils._text import aligned

HOLD = 2
"""Seconds that a TCP connection is held open. What the mesh blocks, or the far end refuses, is closed long before."""
_RESOLVE, _CONNECT, _TIMEOUT = (5, 6), 7, 28
_CERTIFICATE = (51, 60, 77, 83, 90, 91)
"""Exit codes of curl (libcurl's CURLcode); the last ones are for a peer that was reached and not believed, or a trust store that cannot be read."""
BODY_LIMIT = 1 << 20
"""Bytes after which curl stops reading an answer (exit code 63); what tells the caller's address is far smaller."""


class TrafficError(EgressError):
    """A request that cannot be made."""


# -- what is asked ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One request to make. `expect` is ``allowed``, ``blocked`` or None; `via` is ``direct``, ``gateway`` or None, and asks for ``allowed``.

    `proxy` is the URL of an HTTP proxy that is asked for it. `at` is another host, whose address is dialled; `rule` says what a derived request proves.
    """

    url: str
    scheme: str
    host: str
    port: int
    expect: str | None = None
    via: str | None = None
    at: str = ""
    rule: str = ""
    proxy: str = ""

    @property
    def target(self) -> tuple[str, str, int]:
        """Scheme, host and port of the connection that the workload makes: to a proxy it is TCP for the mesh, which sees nothing of what lies behind."""
        if not self.proxy:
            return self.scheme, self.host, self.port
        parts = urlsplit(self.proxy)
        return "tcp", parts.hostname or "", parts.port or 0


_PORTS = {"http": 80, "https": 443, "tcp": None}
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]+")
_PROXY = re.compile(r"http://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}/?")
EXPECTATIONS = ("allowed", "blocked")
WAYS = ("direct", "gateway")


def parse_requests(items: Iterable[Any]) -> tuple[Request, ...]:
    """Requests from the module's option, in the order given.

    An item is a dictionary with `url` and, perhaps, `expect` and `via`, or a string of one or more URLs separated by white space (the text field of a
    survey). Raises TrafficError that names the item.
    """
    requests = []
    for item in items:
        for entry in [{"url": url} for url in item.split()] if isinstance(item, str) else [item]:
            requests.append(_request(entry))
    if not requests:
        raise TrafficError("There is no request to make.\nGive at least one URL, such as http://httpbin.org/.")
    return tuple(requests)


def _request(entry: Any) -> Request:
    if not isinstance(entry, Mapping) or not entry.get("url"):
        raise TrafficError(f"A request is a URL or a dictionary with the key url, not {entry!r}.\nExample: {{url: https://www.google.com/, expect: allowed}}.")
    unknown = sorted(str(key) for key in set(entry) - {"url", "expect", "via", "proxy"})
    url, expect, via, proxy = str(entry["url"]).strip(), entry.get("expect"), entry.get("via"), str(entry.get("proxy") or "").strip()
    if unknown:
        raise TrafficError(f'{url}: a request has no key "{unknown[0]}".\nKeys are url, expect, via and proxy.')
    if via is not None and via not in WAYS:
        raise TrafficError(f'{url}: "{via}" is not a way.\nUse direct or gateway, or leave via out where the way does not matter.')
    if via is not None and expect == "blocked":
        raise TrafficError(f"{url}: a request that is to be blocked takes no way.\nLeave via out, or expect allowed.")
    if expect is not None and expect not in EXPECTATIONS:
        raise TrafficError(f'{url}: "{expect}" cannot be expected.\nUse allowed or blocked, or leave expect out to get a report alone.')
    if proxy and not _PROXY.fullmatch(proxy):
        raise TrafficError(f'{url}: "{proxy}" is not a proxy.\nWrite http://HOST:PORT, without user name and password.')
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    except ValueError as error:
        raise TrafficError(f"{url} is not a URL: {error}.\nWrite http://HOST/, https://HOST:PORT/PATH or tcp://HOST:PORT.") from error
    if scheme not in _PORTS:
        raise TrafficError(f"{url} does not begin with http://, https:// or tcp://.\nWrite http://HOST/, https://HOST:PORT/PATH or tcp://HOST:PORT.")
    if parts.username is not None:
        raise TrafficError(f"The URL for {host} has a user name or password, which logs would keep.\nLeave them out: an answer of any status is proof.")
    if not _HOST.fullmatch(host) or not url.isascii() or not url.isprintable() or set(url) & set(' "<>\\^`|'):
        raise TrafficError(f"{url!r} is not a URL that can be sent as it is.\nUse a host name or IP address, and percent-encode what is not a plain character.")
    if scheme == "tcp" and (port is None or parts.path.strip("/") or parts.query):
        raise TrafficError(f"{url}: a TCP request is a host and a port.\nWrite tcp://{host}:{port or 5432}.")
    if scheme == "tcp" and proxy:
        raise TrafficError(f"{url}: a TCP connection is made without a proxy.\nAsk for https://{host}:{port}/, or leave proxy out.")
    return Request(url, scheme, host, port if port is not None else _PORTS[scheme] or 0, expect or ("allowed" if via else None), via, proxy=proxy)


# -- the command and its output -----------------------------------------------------------------------------------------------------

_FIELDS = ("http_code", "local_ip", "local_port", "remote_ip", "remote_port", "time_total", "size_download")


PORTS = range(10000, 32000)
"""Local ports that requests are made from, below the range that Linux takes ports from by itself (32768 and up).

Redirection to the sidecar gives a connection another port when its own was used towards any other host within the last two minutes; then
nothing would lead from the request to its log line.
"""
PORTS_EACH = 4
"""How many ports curl may try for one request."""


def command(requests: Sequence[Request], timeout: int, insecure: bool, token: str, port: int) -> list[str]:
    """The command that makes some requests one after the other: a shell, because each gets a curl process, and with it a connection, of its own.

    The addresses of that connection find the request's line in the sidecar's access log, for TLS and TCP too. `port` is the first of the local
    ports (PORTS_EACH for each request). `token` separates the outputs; it must be a word that no far end can guess.
    Nothing here is newer than curl 7.54.
    """
    options = [
        "-q", "-g", "-i", "-sS", "--suppress-connect-headers", "--max-filesize", str(BODY_LIMIT), *(["-k"] if insecure else []),
        "-v",  # without it curl does not tell why a connection failed
        *(word for r in requests if r.at for word in ("--connect-to", f"{r.host}:{r.port}:{r.at}:{r.port}")),
        "-w", f"\\n{token}" + "".join(f"\\t%{{{name}}}" for name in _FIELDS) + "\\t",
    ]  # fmt: skip
    script = (
        f"p={port}; for each; do proxy=${{each% *}}; url=${{each#* }}; case $url in telnet:*) t={min(timeout, HOLD)};; *) t={timeout};; esac; "
        f'curl {shlex.join(options)} --max-time $t --local-port $p-$((p+{PORTS_EACH - 1})) ${{proxy:+-x "$proxy"}} "$url"; '
        f"printf '{token} %s\\n' $?; echo {token} >&2; p=$((p+{PORTS_EACH})); done"
    )
    return ["sh", "-c", script, "sh", *(f"{request.proxy} {_curl_url(request)}" for request in requests)]


def seconds_at_most(requests: Sequence[Request], timeout: int) -> int:
    """How long the command of these requests can run."""
    return sum(min(timeout, HOLD) if request.scheme == "tcp" else timeout for request in requests)


def _curl_url(request: Request) -> str:
    """The URL as curl takes it. As telnet it says nothing first, so a far end that knows no HTTP is left in peace."""
    if request.scheme != "tcp":
        return request.url
    return f"telnet://{_address(request.host, str(request.port))}"


Connection = tuple[str, str]
"""Local and remote end, each ``ip:port``."""


@dataclass(frozen=True)
class Answer:
    """What curl said. `rc` is its exit code, `status` that of the HTTP answer, if any; header names are in lower case.

    `connection` is None when no connection was made; with a sidecar, it is the sidecar that takes it.
    """

    rc: int
    error: str | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    connection: Connection | None = None
    seconds: float | None = None
    received: int = 0

    @property
    def gave_up(self) -> bool:
        """Whether curl's time was over before an answer was complete. A sidecar may still be trying to connect."""
        return self.rc == _TIMEOUT

    @property
    def unheard_by_dns(self) -> bool:
        """Whether curl's time was over before it had an address."""
        return self.gave_up and not self.connection and "Resolving timed out" in (self.error or "")

    @property
    def seen_as(self) -> str | None:
        """The address that the far end says the request came from: key `client`, or httpbin's `origin`."""
        told = self._json()
        for key in ("client", "origin"):
            if isinstance(told.get(key), str):
                return told[key]
        return None

    @property
    def decorator(self) -> str | None:
        """The header x-envoy-decorator-operation as the far end got it, where it echoes headers: a sidecar sent the request by a route of its own."""
        told = self._json()
        echoed = told.get("headers")
        headers = {str(k).lower(): v for k, v in echoed.items()} if isinstance(echoed, Mapping) else {}
        value = headers.get("x-envoy-decorator-operation") or told.get("decorator")
        return str(value) if value else None

    def _json(self) -> Mapping[str, Any]:
        try:
            told = json.loads(self.body)
        except ValueError:
            return {}
        return told if isinstance(told, Mapping) else {}


def parse_output(requests: Sequence[Request], token: str, stdout: str, stderr: str) -> list[Answer]:
    """Reads the output of `command`, an answer for each request. Raises TrafficError when curl did not run to its end."""
    ended = re.compile(rf"{token} (\d+)\n")
    texts, codes = ended.split(stdout)[:-1:2], ended.findall(stdout)
    errors = stderr.split(f"{token}\n")
    if len(codes) != len(requests):
        raise TrafficError(f"The requests ended after {len(codes)} of {len(requests)}: {_one_line(errors[-1] or stdout)}.\n{NEEDS}")
    return [_answer(int(rc), *text.rpartition(f"\n{token}\t")[::2], error) for rc, text, error in zip(codes, texts, errors, strict=False)]


NEEDS = "The container needs sh, curl 7.54 or newer, and memory for it; choose another with container or workload."


def _answer(rc: int, before: str, written: str, stderr: str) -> Answer:
    values = dict(zip(_FIELDS, written.split("\t"), strict=False))
    if len(values) != len(_FIELDS):
        raise TrafficError(f"curl did not run to its end (exit code {rc}): {_one_line(stderr) or 'it said nothing'}.\n{NEEDS}")
    headers, body = _split(before)
    local, remote = _address(values["local_ip"], values["local_port"]), _address(values["remote_ip"], values["remote_port"])
    return Answer(
        rc=rc,
        error=_error(stderr),
        status=int(values["http_code"]) or None,
        headers=headers,
        body=body,
        connection=(local, remote) if local and remote else None,
        seconds=round(_number(values["time_total"]), 3),
        received=int(_number(values["size_download"])),
    )


def _error(stderr: str) -> str | None:
    """curl's last word, with the reason of a failed connection, which only the verbose output has."""
    error = next((line.strip() for line in stderr.splitlines() if line.startswith("curl: (")), None)
    reason = re.search(r"^\* connect to .* failed: (.+)$", stderr, re.MULTILINE)
    return f"{error} ({reason[1].strip()})" if error and reason and error.startswith(f"curl: ({_CONNECT})") else error


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _number(text: str) -> float:
    """curl writes the decimal comma of the container's locale."""
    return float(text.replace(",", "."))


_BLOCK = re.compile(r"HTTP/[\d.]+ (\d{3})[^\n]*\n((?:[^\r\n]+\r?\n)*)\r?\n")


def _split(text: str) -> tuple[dict[str, str], str]:
    """Headers and body of ``curl -i`` output; of several header blocks (100, 103) the last."""
    headers: dict[str, str] = {}
    while block := _BLOCK.match(text):
        text = text[block.end() :]
        headers = {name.strip().lower(): value.strip() for name, _sep, value in (line.partition(":") for line in block[2].splitlines())}
        if block[1][0] != "1":
            break
    return headers, text


def _address(ip: str, port: str) -> str | None:
    """Address as Envoy writes it: IPv6 in brackets."""
    if not ip or port in ("", "0"):
        return None
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


# -- the sidecar's access log -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogLine:
    """What the sidecar wrote about one request. Fields that it leaves empty (``-``) are empty strings.

    `client` and `server` are the two ends of the connection as the workload sees it, ``ip:port``.
    """

    line: str
    client: str
    server: str = ""
    flags: str = ""
    details: str = ""
    cluster: str = ""
    route: str = ""
    sni: str = ""
    upstream_host: str = ""
    upstream_local: str = ""
    failure: str = ""
    termination: str = ""
    request: str = ""
    authority: str = ""
    start: str = ""

    @property
    def host(self) -> str:
        """The host of a cluster such as ``outbound|443||www.google.com``; empty for clusters that are of no host."""
        parts = self.cluster.split("|")
        return parts[3] if len(parts) == 4 and parts[0] == "outbound" else ""

    @property
    def connected(self) -> bool:
        """Whether the sidecar had a connection to the next hop: only then has it an address of its own on that side."""
        return bool(self.upstream_local)


_TOKEN = re.compile(r'\[[^\]]*\]|"(?:[^"\\]|\\.)*"|\S+')
_TEXT = {
    "flags": 3, "details": 4, "termination": 5, "failure": 6, "authority": 14, "upstream_host": 15,
    "cluster": 16, "upstream_local": 17, "server": 18, "client": 19, "sni": 20, "route": 21,
}  # fmt: skip
"""Places in Istio's default text format (istio/istio pkg/config/model, ``EnvoyTextLogFormat``)."""
_JSON = {
    "flags": "response_flags", "details": "response_code_details", "termination": "connection_termination_details", "authority": "authority",
    "failure": "upstream_transport_failure_reason", "upstream_host": "upstream_host",
    "cluster": "upstream_cluster", "upstream_local": "upstream_local_address", "server": "downstream_local_address",
    "client": "downstream_remote_address", "sni": "requested_server_name", "route": "route_name",
}  # fmt: skip


def parse_log(text: str, connections: Iterable[Connection]) -> dict[Connection, LogLine]:
    """The lines about `connections`, by connection; of several lines the last.

    Reads Istio's default text and JSON formats. Lines of other formats, and other lines, are passed over.
    """
    wanted = set(connections)
    return {(entry.client, entry.server): entry for entry in parse_lines(text) if (entry.client, entry.server) in wanted}


def parse_lines(text: str) -> Iterator[LogLine]:
    """Every line of the formats that are known."""
    for line in text.splitlines():
        entry = _parse_line(line.strip())
        if entry:
            yield entry


def _parse_line(line: str) -> LogLine | None:
    if line.startswith("{"):
        try:
            values = json.loads(line)
        except ValueError:
            return None
        fields = {name: values.get(key) for name, key in _JSON.items()}
        fields |= {"start": values.get("start_time"), "request": " ".join(str(values[k]) for k in ("method", "path") if values.get(k))}
    elif line.startswith("["):
        tokens = _TOKEN.findall(line)
        if len(tokens) <= max(_TEXT.values()):
            return None
        fields = {name: tokens[place].strip('"') for name, place in _TEXT.items()}
        fields |= {"start": tokens[0].strip("[]"), "request": " ".join(word for word in tokens[1].strip('"').split()[:2] if word != "-")}
    else:
        return None
    return LogLine(line, **{name: "" if value in (None, "-") else str(value) for name, value in fields.items()})


# -- the verdict --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Whether the far end got the request and answered: `word` is ``allowed``, ``blocked``, or ``unknown`` where nothing tells.

    `by` says who stopped a blocked request: ``mesh``, ``dns``, ``far end``, ``network`` (nobody answered), ``client`` (curl refused the far
    end's certificate) or ``unknown``; None when it was allowed.
    `via` says which way an allowed request took: ``registered`` (the sidecar's cluster of that host), ``passthrough``, ``gateway`` (the
    sidecar's cluster of another host, a Service of the cluster), ``no sidecar``, or ``unknown``; None when it was blocked.
    """

    word: str
    by: str | None
    via: str | None
    reason: str


_OWN_ANSWERS = ("", "RBAC: access denied", "no healthy upstream", "upstream connect error or disconnect", "upstream request timeout")
"""How the bodies begin of answers that Envoy makes by itself."""
_REFUSED = re.compile(r"refused|connect_error:_111", re.IGNORECASE)
_NO_LINE = "no access log line (access logs off, or the request did not pass the sidecar)"
PASSTHROUGH = ("PassthroughCluster", "AllowAnyDynamicDNSCluster")
"""The sidecar's clusters for what nobody declares and the mode lets out."""


def judge(request: Request, answer: Answer, line: LogLine | None, sidecar: bool) -> Verdict:
    """The verdict on one request, from curl's answer and the sidecar's log line (None when there is none)."""
    if answer.rc in _RESOLVE or answer.unheard_by_dns:
        return _blocked("dns", f"{request.target[1]} has no address: {answer.error}")
    if line:
        return _judge_logged(request, answer, line)
    return _judge_unlogged(request, answer, sidecar)


def _judge_logged(request: Request, answer: Answer, line: LogLine) -> Verdict:
    via, flags = _via(request, line), line.flags.split(",")
    behind = "unknown" if via == "gateway" else "far end"  # who stopped what went on from the sidecar's next hop
    next_hop = line.upstream_host or "the next hop"
    if line.cluster == "BlackHoleCluster":
        return _blocked("mesh", f"no host is declared for port {request.target[2]}: BlackHoleCluster, flags {line.flags}")
    if line.route == "block_all":
        return _blocked("mesh", f"the host is not declared: route block_all, {line.details}")
    if "UF" in flags:
        by = "mesh" if via == "gateway" else "far end" if _REFUSED.search(line.failure) else "network"
        return _blocked(by, f"the sidecar could not connect to {next_hop} ({line.cluster}): {line.failure or line.flags}")
    if "UH" in flags:
        return _blocked("mesh", f"the sidecar has no address for it: {line.cluster}, flags {line.flags}")
    # Inside TLS and TCP the sidecar sees no status (details are empty then), so an answer came from behind it.
    if answer.status and line.details not in ("", "via_upstream"):
        return _blocked(behind if line.connected else "mesh", f"the sidecar answered {answer.status} by itself: {line.details}, flags {line.flags or '-'}")
    if answer.status and via == "gateway" and request.scheme == "http" and _is_own_answer(answer):
        return _blocked("mesh", f"the gateway answered {answer.status} by itself ({answer.body.strip()[:60] or 'empty body'}): {line.cluster}")
    if answer.rc in _CERTIFICATE:
        return _blocked("client", f"{answer.error}; {line.cluster}")
    if answer.status or (request.scheme == "tcp" and line.connected and (via != "gateway" or answer.gave_up or answer.received)):
        return Verdict("allowed", None, via, line.cluster)
    if not line.connected:
        by = "network" if answer.gave_up and line.cluster else "unknown"
        return _blocked(by, f"the sidecar had no connection to {next_hop} ({line.cluster or 'no cluster'}): {answer.error}")
    return _blocked(behind, f"connected by {line.cluster}, no answer: {answer.error}")


def _judge_unlogged(request: Request, answer: Answer, sidecar: bool) -> Verdict:
    via, missing = ("unknown", _NO_LINE) if sidecar else ("no sidecar", "the pod has no sidecar")
    if answer.status and sidecar and request.scheme == "http" and _is_own_answer(answer):
        if answer.headers.get("server") == "envoy" and "x-envoy-upstream-service-time" not in answer.headers:
            return _blocked("mesh", f"an answer of the sidecar (server envoy, {answer.body.strip()[:60] or 'empty body'}); {missing}")
    if answer.rc in _CERTIFICATE:
        return _blocked("client", f"{answer.error}; {missing}")
    if answer.status:
        return Verdict("allowed", None, via, missing)
    if answer.rc == _CONNECT:
        return _blocked("far end" if _REFUSED.search(answer.error or "") else "network", f"{answer.error}; {missing}")
    if not answer.connection:
        return _blocked("network" if answer.gave_up else "unknown", f"{answer.error}; {missing}")
    if request.scheme == "tcp" and (answer.received or not sidecar):
        return Verdict("allowed", None, via, f"the far end {'spoke' if answer.received else 'took the connection'}; {missing}")
    if request.scheme == "tcp" and answer.gave_up:
        return Verdict("unknown", None, None, f"the sidecar took the connection, nothing tells whether the far end did: {missing}")
    return _blocked("unknown" if sidecar else "far end", f"{answer.error or 'closed without a word'}; {missing}")


def _blocked(by: str, reason: str) -> Verdict:
    return Verdict("blocked", by, None, reason)


def _is_own_answer(answer: Answer) -> bool:
    body = answer.body.strip()
    return answer.status in (403, 404, 502, 503, 504) and any(body.startswith(text) if text else not body for text in _OWN_ANSWERS)


def _via(request: Request, line: LogLine) -> str:
    if line.cluster in PASSTHROUGH:
        return "passthrough"
    if not line.host:
        return "unknown"
    host = request.target[1]
    named = line.host == host or line.host.startswith(f"{host}.") or line.host.startswith("*.")
    return "gateway" if ".svc." in line.host and not named else "registered"


# -- the result ---------------------------------------------------------------------------------------------------------------------


def is_met(request: Request, verdict: Verdict) -> bool | None:
    """Whether the expectation is met; None without one.

    That a request was blocked is not proven by a far end that was reached and is down or not believed: it fails the expectation `blocked`.
    """
    if request.expect is None:
        return None
    return verdict.word == request.expect and verdict.by not in ("far end", "client")


def row(request: Request, answer: Answer, line: LogLine | None, verdict: Verdict, attempts: int) -> dict[str, Any]:
    """One row of the result, evidence included."""
    return {
        "url": request.url,
        "proxy": request.proxy or None,
        "result": str(answer.status) if answer.status else _tcp_result(answer) if request.scheme == "tcp" else f"exit {answer.rc}",
        "verdict": verdict.word,
        "by": verdict.by,
        "via": verdict.via,
        "reason": verdict.reason,
        "expect": request.expect,
        "met": is_met(request, verdict),
        "attempts": attempts,
        "status": answer.status,
        "rc": answer.rc,
        "error": answer.error,
        "seconds": answer.seconds,
        "local": answer.connection and answer.connection[0],
        "remote": answer.connection and answer.connection[1],
        "seen_as": answer.seen_as,
        "decorator": answer.decorator,
        "log": {
            "flags": line.flags, "details": line.details, "failure": line.failure, "cluster": line.cluster, "route": line.route,
            "sni": line.sni, "upstream_host": line.upstream_host, "line": line.line,
        } if line else None,
    }  # fmt: skip


def _tcp_result(answer: Answer) -> str:
    """Held open until curl's own time was over, closed before that, or not connected at all."""
    if not answer.connection:
        return f"exit {answer.rc}"
    return "open" if answer.gave_up else "closed"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as aligned lines of plain text, a line of headings first."""
    lines = [("REQUEST", "RESULT", "VERDICT", "EXPECTED", "VIA", "EVIDENCE")]
    for r in rows:
        verdict = r["verdict"] + _BY.get(r["by"], "")
        wanted = r["expect"] and r["expect"] + (f" {r['expect_via']}" if r.get("expect_via") else "")
        expected = "-" if wanted is None else wanted if r["met"] else f"{wanted}: NO"
        seen = f"; the far end saw {r['seen_as']}" if r["seen_as"] else ""
        way = f"gateway {r['way']}" if r.get("way") not in (None, "direct", "gateway") else r["via"] or "-"
        lines.append((r["url"] + (" by proxy" if r.get("proxy") else ""), r["result"], verdict, expected, way, r["reason"] + seen))
    return aligned(lines)


_BY = {
    "pod": " by the pod", "gateway": " by the gateway", "gateway policy": " by the gateway's policy", "mesh": " by the mesh",
    "network": " by the network", "far end": " by the far end", "client": " by the client", "dns": " by DNS",
}  # fmt: skip


def complaint(rows: Sequence[Mapping[str, Any]], source: Source) -> str:
    """The message of a task whose expectations were not all met: how many, the rows of those, and the objects behind them."""
    unmet = [r for r in rows if r["met"] is False]
    verb = "was" if len(unmet) == 1 else "were"
    advice = [f"{r['url']}: {r['why']} {'Fix: ' + r['fix'] if r.get('fix') else ''}".rstrip() for r in unmet if r.get("why")]
    return "\n".join([f"{len(unmet)} of {len(rows)} requests {verb} not as expected (from pod {source.namespace}/{source.pod}):", *table(unmet), *advice])


def warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What meets its expectation and proves little."""
    hollow = [r["url"] for r in rows if r["met"] and r["by"] == "dns"]
    return [f"{url} was blocked as expected, but by DNS, which proves nothing about the mesh: check the name." for url in hollow]
