#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_egress_check
short_description: Prove by real requests what a workload of an Istio mesh can reach
version_added: 0.1.0
description:
  - Makes requests with C(curl) in a running pod of a workload, and says of each whether the far end answered or who stopped it, with the evidence,
    that is the HTTP status, curl's exit code, the address that the far end saw where it tells, and the line of the sidecar's access log.
  - With expectations the task fails when one is not met. Without them it reports.
  - A redirect is an answer; it is not followed. Every request is a connection of its own.
  - The requests are made in check mode too.
options:
  namespace:
    description:
      - Namespace of the workload.
    type: str
    required: true
  workload:
    description:
      - The workload whose pod makes the requests, as kind and name (V(deployment/sleep), V(statefulset/db), V(pod/sleep-0)). A name alone is a Deployment.
      - The newest of its running and ready pods is taken.
    type: str
    default: sleep
  container:
    description:
      - Container that has C(sh) and C(curl) 7.54 or newer. By default the first one that is not C(istio-proxy).
    type: str
  requests:
    description:
      - What to ask for. An item is a dictionary, or a string of one or more URLs separated by white space, as the text field of a survey gives them.
    type: list
    elements: raw
    required: true
    suboptions:
      url:
        description:
          - V(http://httpbin.org/headers), V(https://www.google.com/), or V(tcp://db.example.com:5432).
          - For V(tcp) the connection is opened and held for 2 seconds, without a word from our side.
        type: str
        required: true
      expect:
        description:
          - V(allowed) is met when the far end answered, with any status. For V(tcp), when the connection was accepted.
          - V(blocked) is met when the request was stopped on the way. A far end that was reached and is down, or whose certificate is refused,
            does not meet it. A name without an address does, with a warning, since it proves nothing about the mesh.
        type: str
        choices: [allowed, blocked]
  timeout:
    description:
      - Seconds for one request. Ten are made at the same time, more than that one after the other.
    type: int
    default: 10
  insecure:
    description:
      - Whether certificates of far ends that the container does not trust are accepted.
    type: bool
    default: false
  retries:
    description:
      - How often requests that did not meet their expectation are made again, while a change is still on its way to the sidecars.
    type: int
    default: 0
  delay:
    description:
      - Seconds between tries.
    type: int
    default: 2
notes:
  - Needs the rights to C(list) C(pods), C(create) C(pods/exec) and C(get) C(pods/log) in O(namespace). Without the last, or where access logs are off,
    verdicts rest on what curl saw, and say so.
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.attributes.read_only
seealso:
  - module: meshops.istio_egress.istio_outbound_mode
  - module: meshops.istio_egress.istio_egress_host
  - name: Accessing external services
    description: What Istio's documentation says about requests that are allowed and blocked.
    link: https://istio.io/latest/docs/tasks/traffic-management/egress/egress-control/
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: Two hosts are open, everything else is closed
  meshops.istio_egress.istio_egress_check:
    namespace: demo
    workload: deployment/sleep
    requests:
      - url: http://httpbin.org/headers
        expect: allowed
      - url: https://www.google.com/
        expect: allowed
      - url: https://other.example.com/
        expect: blocked
      - url: tcp://203.0.113.10:5432
        expect: blocked

- name: Report what comes of a list, as typed into a survey
  meshops.istio_egress.istio_egress_check:
    namespace: demo
    requests:
      - |
        http://httpbin.org/
        https://edition.cnn.com/
  register: proof

- name: Show it
  ansible.builtin.debug:
    var: proof.table
"""

RETURN = r"""
checks:
  description: One row per request, in the order asked.
  returned: when requests were made, also when an expectation was not met
  type: list
  elements: dict
  contains:
    url:
      description: The request.
      type: str
      sample: https://www.google.com/
    result:
      description: Status, or curl's exit code when there was no HTTP answer; V(open), V(closed) or the exit code for TCP.
      type: str
      sample: exit 35
    verdict:
      description:
        - V(allowed), V(blocked), or V(unknown) for a TCP connection that a sidecar took without a line in its log. V(unknown) meets no expectation.
      type: str
      sample: blocked
    by:
      description:
        - Who stopped it, V(mesh), V(dns), V(far end), V(network) (nobody answered), V(client) (curl refused the certificate) or V(unknown).
          Null when it was allowed.
      type: str
      sample: mesh
    via:
      description:
        - The way it took according to the sidecar, V(registered) (as a declared host), V(passthrough) (undeclared), V(gateway), V(no sidecar) or V(unknown).
          Null when it was blocked.
      type: str
      sample: registered
    reason:
      description: What the verdict rests on.
      type: str
      sample: "no host is declared for port 443: BlackHoleCluster, flags UH"
    expect:
      description: What was expected, if anything.
      type: str
      sample: blocked
    met:
      description: Whether the expectation was met. Null without one.
      type: bool
      sample: true
    attempts:
      description: How often the request was made.
      type: int
      sample: 1
    status:
      description: HTTP status. Null without an HTTP answer.
      type: int
      sample: 200
    rc:
      description: Exit code of curl.
      type: int
      sample: 35
    error:
      description: What curl said about its exit code.
      type: str
      sample: "curl: (35) OpenSSL SSL_connect: Connection reset by peer in connection to www.google.com:443"
    seconds:
      description: How long the request took.
      type: float
      sample: 0.021
    local:
      description: Address and port that the request was sent from.
      type: str
      sample: 10.244.0.7:10240
    remote:
      description: Address and port that it was sent to.
      type: str
      sample: 203.0.113.12:443
    seen_as:
      description: The address that the far end saw, where its answer is JSON with the key C(client) or C(origin).
      type: str
      sample: 10.244.0.7
    decorator:
      description: The header C(x-envoy-decorator-operation) as the far end got it, where it echoes headers.
      type: str
      sample: httpbin.org:80/*
    log:
      description:
        - What the sidecar's access log says about exactly this connection, found by the addresses of its two ends. Null when there is no such line.
        - Read in Istio's default formats, text and JSON.
      type: dict
      sample: {cluster: BlackHoleCluster, details: '', failure: '', flags: UH, line: '[2026-11-22T02:00:00.000Z] "- - -" 0 UH ...'}
passed:
  description: Whether every expectation was met.
  returned: when requests were made, also when an expectation was not met
  type: bool
  sample: true
table:
  description: The rows as lines of text, for printing.
  returned: when requests were made, also when an expectation was not met
  type: list
  elements: str
  sample:
    - "REQUEST                  RESULT   VERDICT              EXPECTED  VIA         EVIDENCE"
    - "http://httpbin.org/      200      allowed              allowed   registered  outbound|80||httpbin.org; the far end saw 10.244.0.7"
    - "https://www.google.com/  exit 35  blocked by the mesh  blocked   -           no host is declared for port 443: BlackHoleCluster, flags UH"
pod:
  description: The pod that made the requests.
  returned: when requests were made, also when an expectation was not met
  type: str
  sample: sleep-6d5f7c9b8-x2x7k
"""

import itertools
import random
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.meshops.istio_egress.plugins.module_utils import _traffic
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import EgressModule

AT_ONCE = 10
"""Requests in flight, each in an exec of its own that makes one after the other. Each is a process in a container whose memory may be limited."""
LOG_WAIT = 3.0
"""Seconds after which a line that is not in the sidecar's log is taken as missing. Istio's proxies write their buffer out every second."""
CONNECT_WAIT = 11.0
"""The same for a request that curl gave up: a sidecar that is still connecting to the far end writes its line when its own time for that, 10 s, is over."""

OPTIONS = {
    "namespace": {"type": "str", "required": True},
    "workload": {"type": "str", "default": "sleep"},
    "container": {"type": "str"},
    "requests": {"type": "list", "elements": "raw", "required": True},
    "timeout": {"type": "int", "default": 10},
    "insecure": {"type": "bool", "default": False},
    "retries": {"type": "int", "default": 0},
    "delay": {"type": "int", "default": 2},
}


class Prober:
    """Makes requests from one pod. Keeps what is worth a warning in `warnings`."""

    def __init__(self, cluster: Cluster, source: _traffic.Source, timeout: int, insecure: bool) -> None:
        self.cluster, self.source, self.timeout, self.insecure = cluster, source, timeout, insecure
        self.warnings: list[str] = []

    def rows(self, requests: list[_traffic.Request], attempt: int) -> list[dict]:
        started = time.monotonic()
        shares = [requests[first::AT_ONCE] for first in range(min(AT_ONCE, len(requests)))]
        ports = itertools.accumulate((len(share) * _traffic.PORTS_EACH for share in shares), initial=random.choice(_traffic.PORTS))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answered = list(pool.map(self._ask, shares, ports))
        answers = [answered[i % AT_ONCE][i // AT_ONCE] for i in range(len(requests))]
        lines = self._log_lines(answers, started)
        rows = []
        for request, answer in zip(requests, answers, strict=True):
            line = lines.get(answer.connection)
            rows.append(_traffic.row(request, answer, line, _traffic.judge(request, answer, line, self.source.sidecar), attempt))
        return rows

    def _ask(self, requests: list[_traffic.Request], port: int) -> list[_traffic.Answer]:
        source, token = self.source, secrets.token_hex(8)
        command = _traffic.command(requests, self.timeout, self.insecure, token, port)
        try:
            _rc, out, err = self.cluster.exec(source.namespace, source.pod, source.container, command, _traffic.seconds_at_most(requests, self.timeout) + 20)
        except ClusterError as error:
            if error.reason != "NotStarted":
                raise
            raise _traffic.TrafficError(f"{source} cannot run sh: {error.message}.\n{_traffic.NEEDS}") from error
        return _traffic.parse_output(requests, token, out, err)

    def _log_lines(self, answers: list[_traffic.Answer], started: float) -> dict[_traffic.Connection, _traffic.LogLine]:
        """The sidecar's log lines about the connections of `answers`."""
        source, ended = self.source, time.monotonic()
        missing, found = [answer for answer in answers if answer.connection and source.sidecar], {}
        while missing and time.monotonic() < ended + (CONNECT_WAIT if any(answer.gave_up for answer in missing) else LOG_WAIT):
            try:
                log = self.cluster.log(source.namespace, source.pod, _traffic.SIDECAR, since_seconds=int(time.monotonic() - started) + 2)
            except ClusterError as error:
                if error.status != 403:
                    raise
                self.warnings.append(f"Not allowed to read the sidecar's log in pod {source.namespace}/{source.pod} (403): verdicts rest on what curl saw.")
                break
            found |= _traffic.parse_log(log, [answer.connection for answer in missing])
            missing = [answer for answer in missing if answer.connection not in found]
            time.sleep(0.3 if missing else 0)
        return found


def main() -> None:
    module = EgressModule(OPTIONS)
    params, namespace = module.params, module.params["namespace"]
    with module.errors_in_plain_words():
        for option, least in (("timeout", 1), ("retries", 0), ("delay", 0)):
            if params[option] < least:
                raise _traffic.TrafficError(f"{option} is {params[option]}.\nUse {least} or more.")
        requests = _traffic.parse_requests(params["requests"])
        cluster = module.cluster()
        source = _traffic.choose_source(cluster.list("Pod", namespace), namespace, params["workload"], params["container"])
        prober = Prober(cluster, source, params["timeout"], params["insecure"])
        rows = prober.rows(requests, 1)
        for attempt in range(2, params["retries"] + 2):
            again = [i for i, row in enumerate(rows) if row["met"] is False]
            if not again:
                break
            time.sleep(params["delay"])
            for i, row in zip(again, prober.rows([requests[i] for i in again], attempt), strict=True):
                rows[i] = row
        module.warn_all(prober.warnings + _traffic.warnings(rows))
        result = {"checks": rows, "table": _traffic.table(rows), "passed": all(row["met"] is not False for row in rows), "pod": source.pod}
        if not result["passed"]:
            module.fail_json(msg=_traffic.complaint(rows, source), **result)
        module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
