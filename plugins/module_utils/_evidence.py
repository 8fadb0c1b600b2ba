# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What lies behind the sidecar of a request: the gateway's own log line, the address that the far end saw, redirection.

Pure: a verdict that rests on the sidecar's log (`_traffic`) goes in, one that knows the way and who stopped the request comes out. Where there is no
log, what the proxies' configuration says (`_explain`) takes its place, and the row says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _traffic
from ansible_collections.meshops.istio_egress.plugins.module_utils._explain import Explanation
from ansible_collections.meshops.istio_egress.plugins.module_utils._traffic import Answer, LogLine, Request, Verdict

BYPASS = "bypass"
"""Went around a sidecar that is there."""
BY_RULES = ("mesh", "gateway", "gateway policy", "pod")
"""Who stops a request by what somebody wrote, which can be named."""
_DIRECT = ("registered", "passthrough", "no sidecar", BYPASS)
_REFUSED = re.compile(r"refused|connect_error:_111", re.IGNORECASE)


@dataclass(frozen=True)
class Evidence:
    """What is known of a request beside curl's answer and the sidecar's line.

    `gateway` is the gateway pod (namespace/pod) that the sidecar sent it to, `passed` that one's line about it; `around` why redirection leads it past
    the sidecar; `told` what the proxies' configuration says, asked where a log line is missing. `pods` gives the pod of an address of the cluster.
    """

    own_address: str = ""
    gateway: str = ""
    passed: LogLine | None = None
    around: str = ""
    told: Explanation | None = None
    pods: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """The verdict with all evidence. `way` is direct, or the gateway (namespace/pod); `missing` is what would have told more."""

    verdict: Verdict
    way: str | None
    missing: tuple[str, ...]


def find(request: Request, answer: Answer, line: LogLine | None, verdict: Verdict, sidecar: bool, evidence: Evidence) -> Finding:
    """What became of the request, from all there is."""
    missing = []
    if evidence.around and not line:
        verdict = _around(verdict, evidence)
    elif line and evidence.gateway:
        verdict = _at_gateway(answer, verdict, evidence)
        if not evidence.passed:
            missing.append(f"the access log line of gateway {evidence.gateway}")
    elif not line and sidecar and answer.connection:
        missing.append("the sidecar's access log line")
        verdict = _by_configuration(request, verdict, evidence)
    way = _way(verdict, evidence)
    if verdict.word == "allowed":
        told = answer.seen_as
        seen = "direct" if told and told == evidence.own_address else evidence.pods.get(told or "")
        if seen and way and seen != way:
            verdict = replace(verdict, reason=f"{verdict.reason}; but the far end saw {told}, which is {seen if seen != 'direct' else 'the pod itself'}")
            verdict = replace(verdict, via="unknown" if seen == "direct" else "gateway")
        way = seen or way
        if not told:
            missing.append("the address that the far end saw")
    return Finding(verdict, way, tuple(missing))


def is_met(request: Request, verdict: Verdict, way: str | None) -> bool | None:
    """Whether the expectation is met; None without one.

    That a request was blocked is not proven by a far end that was reached and is down or not believed: it fails the expectation `blocked`. A way that
    is not known meets none.
    """
    if request.expect is None:
        return None
    if verdict.word != request.expect or verdict.by in ("far end", "client"):
        return False
    return request.via is None or (way is not None and (way == "direct") == (request.via == "direct"))


def pair(requests: Iterable[tuple[Any, LogLine]], lines: Iterable[LogLine]) -> dict[Any, LogLine]:
    """A gateway's lines by key, from (key, the sidecar's line).

    They are about the same connection between the two proxies, and where that carries several requests, about the same one and not begun before
    it. The request id is of no use: a gateway that takes its peers for the edge of the mesh makes a new one.
    """
    left, found = sorted(lines, key=lambda line: line.start), {}
    for key, line in sorted(requests, key=lambda r: r[1].start):
        for match in left:
            if match.client == line.upstream_local and (match.request, match.authority) == (line.request, line.authority) and match.start >= line.start:
                found[key] = match
                left.remove(match)
                break
    return found


def _around(verdict: Verdict, evidence: Evidence) -> Verdict:
    reason = f"{evidence.around}; {verdict.reason.partition('; no access log')[0]}"
    if verdict.word == "unknown":
        return Verdict("allowed", None, BYPASS, reason)
    return replace(verdict, via=BYPASS if verdict.word == "allowed" else None, by="far end" if verdict.by == "unknown" else verdict.by, reason=reason)


def _at_gateway(answer: Answer, verdict: Verdict, evidence: Evidence) -> Verdict:
    """The verdict on a request that the sidecar sent to a gateway, by the gateway's own line."""
    line, name = evidence.passed, f"gateway {evidence.gateway}"
    if verdict.by == "client":
        return verdict
    if verdict.word == "allowed":
        return replace(verdict, via="gateway", reason=f"{verdict.reason}, {name}" + (f", {line.cluster}" if line and line.cluster else ""))
    if not line:
        said = "own answer" in verdict.reason or "by itself" in verdict.reason
        return replace(verdict, by="gateway" if said or verdict.by == "unknown" else verdict.by, reason=f"{verdict.reason} ({name})")
    told = f"{line.details} {line.termination}"
    if "rbac_access_denied" in told:
        named = re.search(r"matched_policy\[ns\[(.+?)\]-policy\[(.+?)\]", told)
        policy = f"AuthorizationPolicy {named[1]}/{named[2]}" if named else "no ALLOW rule takes it"
        return Verdict("blocked", "gateway policy", None, f"{name} refused it: {policy}")
    flags = line.flags.split(",")
    if "UF" in flags:
        by = "far end" if _REFUSED.search(line.failure) else "network"
        if "CERTIFICATE" in line.failure.upper() or "TLS" in line.failure.upper():
            by = "gateway"
        return Verdict("blocked", by, None, f"{name} could not connect to {line.upstream_host or 'the far end'} ({line.cluster}): {line.failure or line.flags}")
    if set(flags) & {"NR", "NC", "UH", "NFCF"} or not line.cluster:
        why = {"NR": "it has no route", "NC": "there is no cluster", "UH": "it has no address", "NFCF": "no filter chain fits"}
        text = next((why[f] for f in flags if f in why), line.details or line.termination or "it led nowhere")
        return Verdict("blocked", "gateway", None, f"{name}: {text} ({line.details or line.flags or '-'}{', ' + line.cluster if line.cluster else ''})")
    if answer.status and line.details not in ("", "via_upstream") and not line.connected:
        return Verdict("blocked", "gateway", None, f"{name} answered {answer.status} by itself: {line.details}")
    if line.connected:
        by = "far end" if not answer.gave_up or line.connected else "network"
        return Verdict("blocked", by, None, f"{name} was connected to {line.upstream_host} ({line.cluster}): {answer.error or line.details or 'no answer'}")
    return Verdict("blocked", "network" if answer.gave_up else "gateway", None, f"{name} had no connection to {line.cluster}: {answer.error}")


def _by_configuration(request: Request, verdict: Verdict, evidence: Evidence) -> Verdict:
    """A verdict without the sidecar's line, as far as the proxies' configuration tells more than curl."""
    told = evidence.told
    if told is None:
        return verdict
    basis = "by the proxies' configuration, without an access log"
    if verdict.word == "allowed" and told.allowed:
        via = "gateway" if told.via != "direct" else "passthrough" if told.passes else "registered"
        return replace(verdict, via=via, reason=f"{told.cluster or told.reason} ({basis})")
    if verdict.word == "allowed":
        return replace(verdict, reason=f"{verdict.reason}; but {basis} it would be blocked: {told.reason}")
    if not told.allowed and verdict.by in ("unknown", "mesh", None):
        return Verdict("blocked", told.by, None, f"{told.reason.rstrip('.')} ({basis})")
    if told.allowed and verdict.by == "unknown" and not (request.scheme == "http" and verdict.word == "blocked"):
        reason = f"the proxies would let it through: {told.reason.rstrip('.')}; {verdict.reason}"
        return replace(verdict, by="far end" if verdict.word == "blocked" else None, reason=reason)
    return verdict


def _way(verdict: Verdict, evidence: Evidence) -> str | None:
    if verdict.word != "allowed":
        return None
    if verdict.via == "gateway":
        return evidence.gateway or (evidence.told.via if evidence.told else "") or "gateway"
    return "direct" if verdict.via in _DIRECT else None


def row(request: Request, answer: Answer, line: LogLine | None, found: Finding, evidence: Evidence, attempts: int) -> dict[str, Any]:
    """One row of the result, evidence included."""
    passed = evidence.passed
    return {
        **_traffic.row(request, answer, line, found.verdict, attempts),
        "met": is_met(request, found.verdict, found.way),
        "way": found.way,
        "expect_via": request.via,
        "rule": request.rule or None,
        "why": None,
        "fix": None,
        "missing": list(found.missing),
        "gateway": evidence.gateway or None,
        "gateway_log": {
            "flags": passed.flags, "details": passed.details or passed.termination, "failure": passed.failure, "cluster": passed.cluster,
            "sni": passed.sni, "upstream_host": passed.upstream_host, "line": passed.line,
        } if passed else None,
    }  # fmt: skip


def advice(row: Mapping[str, Any], told: Explanation | None) -> dict[str, Any]:
    """The objects behind a result, and what to write; nothing where the proxies' configuration does not say what was seen (it changed since)."""
    if told is None or told.verdict != row["verdict"] or (row["by"] == "far end"):
        return {}
    return {"why": told.reason, "fix": told.fix or None}
