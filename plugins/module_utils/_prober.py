# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Makes real requests from one pod, and gathers the evidence about each: logs of sidecar and gateways, redirection, and
where a log has nothing, the proxies' configuration.

It runs commands and reads logs through `_cluster`; what they mean is the business of `_traffic` and `_evidence`.
"""

from __future__ import annotations

import itertools
import random
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _evidence, _explain, _source, _traffic
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError, if_allowed
from ansible_collections.meshops.istio_egress.plugins.module_utils._injected import PROXY
from ansible_collections.meshops.istio_egress.plugins.module_utils._inquiry import Inquiry
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import routers

AT_ONCE = 10
"""Requests in flight, each in an exec of its own that makes one after the other. Each is a process in a container whose memory may be limited."""
LOG_WAIT = 5.0
"""Seconds after which a line that is not in a proxy's log is taken as missing. Istio's proxies write their buffer out every second, and
a busy node takes longer to hand it on."""
CONNECT_WAIT = 11.0
"""The same for a request that curl gave up: a sidecar that is still connecting to the far end writes its line when its own time for that, 10 s, is over."""

Answers = list[_traffic.Answer]
Lines = dict[_traffic.Connection, _traffic.LogLine]


class Prober:
    """Makes requests from one pod. Keeps what is worth a warning in `warnings`."""

    def __init__(self, cluster: Cluster, inquiry: Inquiry, source: _source.Source, pod: Mapping[str, Any], timeout: int, insecure: bool) -> None:
        self._cluster, self._inquiry, self._source, self._pod = cluster, inquiry, source, pod
        self._timeout, self._insecure = timeout, insecure
        self._world: _explain.World | None = None
        self._logless = False
        self.warnings: list[str] = []

    def rows(self, requests: list[_traffic.Request], attempt: int) -> list[dict[str, Any]]:
        """A row for each request, in the order asked."""
        started = time.monotonic()
        answers = self._answers(requests)
        unheard = [i for i, answer in enumerate(answers) if answer.unheard_by_dns]  # a DNS that is slow says nothing about the mesh
        for i, answer in zip(unheard, self._answers([requests[i] for i in unheard]), strict=True):
            answers[i] = answer
        lines = self._sidecar_lines(answers, started)
        gateways, passed = self._gateway_lines(answers, lines, started)
        rows = []
        for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            line = lines.get(answer.connection)
            judged = _traffic.judge(request, answer, line, self._source.sidecar)
            evidence = self._evidence(request, answer, line, gateways.get(number), passed.get(number))
            found = _evidence.find(request, answer, line, judged, self._source.sidecar, evidence)
            row = _evidence.row(request, answer, line, found, evidence, attempt)
            if self._source.sidecar and (row["met"] is False or row["by"] in _evidence.BY_RULES):
                row |= _evidence.advice(row, evidence.told or self._told(request, answer))
            rows.append(row)
        return rows

    def _answers(self, requests: list[_traffic.Request]) -> Answers:
        if not requests:
            return []
        shares = [requests[first::AT_ONCE] for first in range(min(AT_ONCE, len(requests)))]
        ports = itertools.accumulate((len(share) * _traffic.PORTS_EACH for share in shares), initial=random.choice(_traffic.PORTS))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answered = list(pool.map(self._ask, shares, ports))
        return [answered[i % AT_ONCE][i // AT_ONCE] for i in range(len(requests))]

    def _ask(self, requests: list[_traffic.Request], port: int) -> Answers:
        source, token = self._source, secrets.token_hex(8)
        command = _traffic.command(requests, self._timeout, self._insecure, token, port)
        try:
            _rc, out, err = self._cluster.exec(source.namespace, source.pod, source.container, command, _traffic.seconds_at_most(requests, self._timeout) + 20)
        except ClusterError as error:
            if error.reason != "NotStarted":
                raise
            raise _traffic.TrafficError(f"{source} cannot run sh: {error.message}.\n{_traffic.NEEDS}") from error
        return _traffic.parse_output(requests, token, out, err)

    # -- logs -----------------------------------------------------------------------------------------------------------------------

    def _sidecar_lines(self, answers: Answers, started: float) -> Lines:
        """The sidecar's log lines about the connections of `answers`; those that go around it have none."""
        if not self._source.sidecar or self._logless:
            return {}
        wanted = [a for a in answers if a.connection and not self._around(a)]
        found: Lines = {}
        ended = time.monotonic()
        while missing := [a for a in wanted if a.connection not in found]:
            if time.monotonic() > ended + (CONNECT_WAIT if any(a.gave_up for a in missing) else LOG_WAIT):
                self._logless = not found  # another try would wait for nothing again
                break
            text = self._log(self._source.namespace, self._source.pod, started)
            if text is None:
                self._logless = True
                break
            found |= _traffic.parse_log(text, [a.connection for a in missing])
            if any(a.connection not in found for a in missing):
                time.sleep(0.3)
        return found

    def _gateway_lines(self, answers: Answers, lines: Lines, started: float) -> tuple[dict[int, Mapping[str, Any]], dict[int, _traffic.LogLine]]:
        """(the gateway's pod, that gateway's line) by the number of the request, for those that the sidecar sent to one."""
        gateways: dict[int, Mapping[str, Any]] = {}
        for number, answer in enumerate(answers):
            line = lines.get(answer.connection)
            pod = self._gateway_behind(line) if line else None
            if pod is not None:
                gateways[number] = pod
        found: dict[int, _traffic.LogLine] = {}
        ended = time.monotonic()
        while missing := {n: p for n, p in gateways.items() if n not in found}:
            for pod in {p["metadata"]["name"]: p for p in missing.values()}.values():
                text = self._log(pod["metadata"]["namespace"], pod["metadata"]["name"], started)
                if text is None:
                    return gateways, found
                mine = [(n, lines[answers[n].connection]) for n, p in missing.items() if p is pod]
                found |= _evidence.pair(mine, _traffic.parse_lines(text))
            if all(n in found for n in missing) or time.monotonic() > ended + LOG_WAIT:
                break
            time.sleep(0.3)
        return gateways, found

    def _gateway_behind(self, line: _traffic.LogLine) -> Mapping[str, Any] | None:
        """The gateway pod that the sidecar's next hop is."""
        names = line.host.split(".")
        if len(names) < 3 or names[2] != "svc":
            return None
        address = line.upstream_host.rpartition(":")[0].strip("[]")
        pods = if_allowed(self._inquiry.pods, names[1])
        if pods is None:
            self._warn(f"Not allowed to list pods in namespace {names[1]} (403): what its gateway says about requests is missing.")
            return None
        return next((p for p in pods if (p.get("status") or {}).get("podIP") == address and routers([p])), None)

    def _log(self, namespace: str, pod: str, started: float) -> str | None:
        log = if_allowed(self._cluster.log, namespace, pod, PROXY, since_seconds=int(time.monotonic() - started) + 2)
        if log is None:
            self._warn(f"Not allowed to read the proxy's log in pod {namespace}/{pod} (403): verdicts rest on what curl saw and on configuration.")
        return log

    # -- what else tells ------------------------------------------------------------------------------------------------------------

    def _evidence(
        self, request: _traffic.Request, answer: _traffic.Answer, line: _traffic.LogLine | None, gateway: Mapping[str, Any] | None, passed: Any
    ) -> _evidence.Evidence:
        around = self._around(answer) if self._source.sidecar else ""
        told = self._told(request, answer) if self._source.sidecar and not line and not around and answer.connection else None
        return _evidence.Evidence(
            own_address=(self._pod.get("status") or {}).get("podIP") or "",
            gateway=f"{gateway['metadata']['namespace']}/{gateway['metadata']['name']}" if gateway else "",
            passed=passed,
            around=around,
            told=told,
            pods=self._inquiry.gateway_addresses(),
        )

    def _around(self, answer: _traffic.Answer) -> str:
        """Why redirection leads a connection past the sidecar; empty when it does not."""
        if not answer.connection:
            return ""
        address, _colon, port = answer.connection[1].rpartition(":")
        return _explain.around(self._pod, self._source.container, address.strip("[]"), int(port))[0]

    def _told(self, request: _traffic.Request, answer: _traffic.Answer) -> _explain.Explanation | None:
        """What the proxies' configuration says of a request that no log line tells about."""
        call = _explain.call_of(request.url, *request.target)
        address = answer.connection[1].rpartition(":")[0].strip("[]") if answer.connection else None
        try:
            self._world = self._world or self._inquiry.world(self._source.namespace)
            sidecar = self._inquiry.configuration(self._pod)
            return _explain.explain(call, [address] if address else None, self._pod, self._source.container, sidecar, self._inquiry.neighbour, self._world)
        except ClusterError as error:
            self._warn(f"The proxies' configuration could not be read ({error.status} {error.reason}): verdicts without a log line rest on what curl saw.")
            return None

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
