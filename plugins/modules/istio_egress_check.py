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
  - Makes requests with C(curl) in a running pod of a workload, and says of each whether the far end answered or who stopped it, and by which way it went,
    with the evidence, that is the HTTP status, curl's exit code, the address that the far end saw where it tells, and the lines of the access logs of
    the sidecar and of the egress gateway.
  - Without O(requests) it derives them from the host entries that are declared for the namespace, one for each host and port, which must pass by the way
    declared, and refusals around them, which must happen.
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
  image:
    description:
      - Image with C(sh), C(sleep) and C(curl), such as V(docker.io/curlimages/curl:8.16.0). Where the workload's container has no curl, a short-lived pod of
        it makes the requests, with the workload's labels, service account, DNS and injection. It is never ready, so no Service sends it traffic, and is
        removed before the task ends.
      - With derived requests, a second one, with a service account that was made for it, asks for the hosts that name in C(allow_from) who may use them,
        and must be refused.
      - Without it, such a container is an error, and nobody else asks for such hosts. In check mode no pod is made, either.
    type: str
  requests:
    description:
      - What to ask for. An item is a dictionary, or a string of one or more URLs separated by white space, as the text field of a survey gives them.
      - When it is left out, requests are derived from the host entries of this collection that the namespace sees. Each exact host and port must pass,
        directly or through the gateway, as declared, or be refused where its C(allow_from) leaves out the workload. Where the mode is C(REGISTRY_ONLY), or
        with O(refuse_undeclared), there must be refused, an undeclared host (asked for at the address of a declared one), each host on an undeclared port,
        plain HTTP where only TLS is declared, and see O(refuse_others). Where none of the hosts has a name to be asked for, an address that nobody has must
        be refused.
    type: list
    elements: raw
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
      via:
        description:
          - The way that an allowed request must take. V(direct) from the workload, or V(gateway), through an egress gateway. A way that nothing tells meets
            neither.
          - It implies O(requests[].expect=allowed).
        type: str
        choices: [direct, gateway]
      proxy:
        description:
          - An HTTP proxy that is asked for the URL, as V(http://proxy.example.com:3128). For C(https) it is asked with CONNECT.
          - The mesh sees a TCP connection to the proxy, so the verdict is about that, and about what came back through it.
        type: str
  refuse_undeclared:
    description:
      - With derived requests, whether undeclared hosts must be refused whatever the mode is. The task then fails where the mode lets them out.
      - With V(false) their refusal is tried only where the mode is C(REGISTRY_ONLY), and elsewhere a warning says that it was not.
    type: bool
    default: false
  refuse_others:
    description:
      - With derived requests, whether hosts and ports that a ServiceEntry of another owner opens for the namespace must be refused, since no declared
        host entry has them. This finds holes that others make in a policy.
    type: bool
    default: true
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
  - A short-lived pod needs the rights to C(get), C(create) and C(delete) C(pods) besides, one with another service account those to C(create) and C(delete)
    C(serviceaccounts).
  - Needs the rights to C(list) C(pods), C(create) C(pods/exec) and C(get) C(pods/log) in O(namespace), and in the namespace of an egress gateway for what
    that one says. Without the last, or where access logs are off, verdicts rest on what curl saw and on the proxies' own configuration, and say so.
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.istio
  - meshops.istio_egress.attributes.read_only
seealso:
  - module: meshops.istio_egress.istio_egress_explain
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

- name: One host goes through the gateway, another directly
  meshops.istio_egress.istio_egress_check:
    namespace: demo
    requests:
      - url: https://edition.cnn.com/
        via: gateway
      - url: http://httpbin.org/
        via: direct

- name: Everything that is declared for the namespace is open by its way, and nothing around it
  meshops.istio_egress.istio_egress_check:
    namespace: demo
    workload: deployment/sleep

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
    proxy:
      description: The proxy that was asked for it. Null without one.
      type: str
      sample: http://proxy.example.com:3128
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
        - Who stopped it, V(mesh) (the sidecar), V(gateway), V(gateway policy) (an AuthorizationPolicy there), V(pod), V(dns), V(far end), V(network)
          (nobody answered), V(client) (curl refused the certificate) or V(unknown). Null when it was allowed.
      type: str
      sample: mesh
    via:
      description:
        - The way it took according to the sidecar, V(registered) (as a declared host), V(passthrough) (undeclared), V(gateway), V(bypass) (around the
          sidecar), V(no sidecar) or V(unknown). Null when it was blocked.
      type: str
      sample: registered
    way:
      description: V(direct), or the gateway's pod as namespace and name. Null when it was blocked, or nothing tells.
      type: str
      sample: istio-system/istio-egressgateway-66f9856dd6-5rk9s
    reason:
      description: What the verdict rests on.
      type: str
      sample: "no host is declared for port 443: BlackHoleCluster, flags UH"
    expect:
      description: What was expected, if anything.
      type: str
      sample: blocked
    expect_via:
      description: The way that was expected, if any.
      type: str
      sample: gateway
    rule:
      description: What a derived request proves. Null for one that was listed.
      type: str
      sample: a declared host on an undeclared port
    why:
      description:
        - For a request that a rule stopped, or that did not meet its expectation, the object behind it, as M(meshops.istio_egress.istio_egress_explain)
          names it. Null otherwise.
      type: str
      sample: ServiceEntry shared/cnn lets edition.cnn.com out directly, to 203.0.113.10:443.
    fix:
      description: What to write to have it otherwise. Null where there is nothing to say.
      type: str
      sample: "istio_egress_host with namespace: demo, hosts: [{host: www.google.com, ports: [443]}]."
    missing:
      description: Evidence that would have told more, and was not there.
      type: list
      elements: str
      sample: [the address that the far end saw]
    gateway:
      description: The gateway's pod that the sidecar sent the request to, allowed or not. Null where it sent it to none.
      type: str
      sample: istio-system/istio-egressgateway-66f9856dd6-5rk9s
    gateway_log:
      description: What that gateway's access log says about the same request, found by its id, or for TLS and TCP by the connection. Null when there is none.
      type: dict
      sample: {cluster: 'outbound|443||edition.cnn.com', details: '', failure: '', flags: '-', sni: edition.cnn.com}
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
notes:
  description: What the derived requests leave out. Empty for requests that were listed.
  returned: when requests were made, also when an expectation was not met
  type: list
  elements: str
  sample: ["*.example.com is a wildcard, and no request was made for it: list one for a name below it in requests."]
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

import time
from contextlib import ExitStack

from ansible_collections.meshops.istio_egress.plugins.module_utils import _derive, _explain, _path, _short_lived, _source, _traffic
from ansible_collections.meshops.istio_egress.plugins.module_utils._inquiry import Inquiry
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, EgressModule
from ansible_collections.meshops.istio_egress.plugins.module_utils._prober import Prober

START_WAIT = 60
"""Seconds for a short-lived pod to start."""

OPTIONS = {
    "namespace": {"type": "str", "required": True},
    "workload": {"type": "str", "default": "sleep"},
    "container": {"type": "str"},
    "image": {"type": "str"},
    "requests": {"type": "list", "elements": "raw"},
    "refuse_undeclared": {"type": "bool", "default": False},
    "refuse_others": {"type": "bool", "default": True},
    "timeout": {"type": "int", "default": 10},
    "insecure": {"type": "bool", "default": False},
    "retries": {"type": "int", "default": 0},
    "delay": {"type": "int", "default": 2},
    "istio_namespace": ISTIO_OPTIONS["istio_namespace"],
}


def derived(inquiry: Inquiry, source: _source.Source, pod: dict, undeclared: bool, others: bool) -> _derive.Derived:
    """The requests that prove what is declared, for the mode that the pod's sidecar has."""
    world = inquiry.world(source.namespace)
    nowhere = _path.Call(_path.TCP, _derive.NOBODY, 9)
    arrival = _path.Arrival(nowhere, nowhere.host, nowhere.port)  # at the sidecar, whatever ranges the pod leads around it: what gets out there is a hole
    refuses = source.sidecar and _path.through(inquiry.configuration(pod), arrival, True, _explain.identity(pod)).stopped
    account = pod["spec"].get("serviceAccountName") or "default"
    return _derive.derive(world.of("ServiceEntry"), source.namespace, account, refuses, others, world.sidecar_of(pod), undeclared)


def ask(prober: Prober, requests: list[_traffic.Request], retries: int, delay: int) -> list[dict]:
    """The rows of all requests; those that do not meet their expectation are asked again."""
    rows = prober.rows(requests, 1)
    for attempt in range(2, retries + 2):
        again = [i for i, row in enumerate(rows) if row["met"] is False]
        if not again:
            break
        time.sleep(delay)
        for i, row in zip(again, prober.rows([requests[i] for i in again], attempt), strict=True):
            rows[i] = row
    return rows


def main() -> None:
    module = EgressModule(OPTIONS)
    params, namespace = module.params, module.params["namespace"]
    with module.errors_in_plain_words():
        for option, least in (("timeout", 1), ("retries", 0), ("delay", 0)):
            if params[option] < least:
                raise _traffic.TrafficError(f"{option} is {params[option]}.\nUse {least} or more.")
        listed = None if params["requests"] is None else _traffic.parse_requests(params["requests"])
        cluster = module.cluster()
        inquiry = Inquiry(cluster, params["istio_namespace"])
        source = _source.choose_source(inquiry.pods(namespace), namespace, params["workload"], params["container"])
        pod = next(p for p in inquiry.pods(namespace) if p["metadata"]["name"] == source.pod)
        made = _derive.Derived(listed) if listed else derived(inquiry, source, pod, params["refuse_undeclared"], params["refuse_others"])
        image = "" if module.check_mode else params["image"] or ""
        notes, warnings = list(made.notes), []

        def answers(asker: tuple[_source.Source, dict], requests: tuple[_traffic.Request, ...]) -> list[dict]:
            prober = Prober(cluster, inquiry, *asker, params["timeout"], params["insecure"])
            rows = ask(prober, list(requests), params["retries"], params["delay"])
            warnings.extend(w for w in prober.warnings if w not in warnings)
            return rows

        with ExitStack() as pods:
            asker = (source, pod)
            if image and not _short_lived.has_client(cluster, source):
                asker = pods.enter_context(_short_lived.stand_in(cluster, pod, image, START_WAIT))
            rows = answers(asker, made.requests)
            if made.strangers and image:
                stranger = pods.enter_context(_short_lived.stand_in(cluster, pod, image, START_WAIT, stranger=True))
                rows += answers(stranger, made.strangers)
            elif made.strangers:
                hosts = ", ".join(sorted({r.host for r in made.strangers}))
                notes.append(f"That no other identity may use {hosts} was not tried: name an image with curl in image, for a short-lived pod that has another.")
        if not rows:
            raise _traffic.TrafficError(f"Nothing could be asked for, so nothing is proven: {' '.join(notes)}\nList requests, or set refuse_undeclared.")
        module.warn_all(warnings + inquiry.warnings + _traffic.warnings(rows) + notes)
        result = {"checks": rows, "table": _traffic.table(rows), "notes": notes, "pod": asker[0].pod}
        result["passed"] = all(row["met"] is not False for row in rows)
        if not result["passed"]:
            module.fail_json(msg=_traffic.complaint(rows, asker[0]), **result)
        module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
