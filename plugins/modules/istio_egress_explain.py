#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_egress_explain
short_description: Say why a workload of an Istio mesh reaches a host or not
version_added: 0.1.0
description:
  - Follows one request through the pod, its sidecar and the egress gateways on its way, and says whether the far end would get it, which object
    decides at each hop, which objects were passed over for it, and what to write to change it.
  - The verdict rests on the proxies' own configuration, read from them, not on what the objects ask for. The objects give names and reasons.
  - It sends no request. Whether the far end is up, and what the network does, is shown by M(meshops.istio_egress.istio_egress_check).
options:
  namespace:
    description:
      - Namespace of the workload.
    type: str
    required: true
  workload:
    description:
      - The workload that would make the request, as kind and name (V(deployment/sleep), V(statefulset/db), V(pod/sleep-0)). A name alone is a Deployment.
      - The newest of its running and ready pods is looked at.
    type: str
    default: sleep
  container:
    description:
      - Container that would make the request; init containers count, too. By default the first one that is not C(istio-proxy).
    type: str
  host:
    description:
      - Host name or IP address that the workload asks for. Give this or O(urls).
      - In the other modules O(host) is the API server. Here that is O(api_host).
    type: str
  port:
    description:
      - Port that the workload dials, V(443) by default.
    type: int
  protocol:
    description:
      - What the workload sends. V(tls) is told apart by the server name in the handshake, V(tcp) by address and port alone.
      - By default V(http) for port 80, V(tls) for 443, V(tcp) for any other.
    type: str
    choices: [http, tls, tcp]
  path:
    description:
      - Path of an HTTP request, for routes and policies that look at it; V(/) by default.
    type: str
  address:
    description:
      - Address that O(host) has for the workload. By default it is looked up in the workload's container.
    type: str
  urls:
    description:
      - Many requests in one task, in place of O(host) and what goes with it, such as V(https://www.google.com/) or V(tcp://db.example.com:5432), as
        M(meshops.istio_egress.istio_egress_check) takes them. What the requests have in common is read once.
      - An item may hold several, separated by white space, such as the text of a survey.
    type: list
    elements: str
  api_host:
    description:
      - URL of the API server, such as V(https://api.example.com:6443), where it is not that of the kubeconfig.
      - Can also be set by E(K8S_AUTH_HOST).
    type: str
notes:
  - Needs the rights of C(docs/rbac.md), section istio_egress_explain; without the right to read other namespaces' objects their names are missing.
  - One pod of a gateway is read for all of its kind. Fault injection of less than all requests, rate limits, Lua, WebAssembly and external authorization
    decide at the time of a request, and are not foreseen.
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.istio
  - meshops.istio_egress.attributes.read_only
seealso:
  - module: meshops.istio_egress.istio_egress_check
  - module: meshops.istio_egress.istio_egress_host
  - module: meshops.istio_egress.istio_egress_gateway
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: Why does the workload not reach www.google.com?
  meshops.istio_egress.istio_egress_explain:
    namespace: demo
    workload: deployment/sleep
    host: www.google.com
    port: 443
  register: why

- name: Show it
  ansible.builtin.debug:
    var: why.picture

- name: Follow several requests at once
  meshops.istio_egress.istio_egress_explain:
    namespace: demo
    urls:
      - http://httpbin.org/headers
      - https://www.google.com/
  register: ways

- name: Stop when one of them would not get out
  ansible.builtin.assert:
    that: ways.explanations | map(attribute='verdict') | unique == ['allowed']
    fail_msg: "{{ ways.picture }}"

- name: Stop when a host that must stay closed is open
  meshops.istio_egress.istio_egress_explain:
    namespace: demo
    host: other.example.com
    port: 80
  register: closed
  failed_when: closed.verdict != 'blocked'
"""

RETURN = r"""
verdict:
  description: V(allowed) when the far end would get the request, as far as the mesh decides that, V(blocked) when not.
  returned: with O(host)
  type: str
  sample: blocked
by:
  description: Who stops a blocked request, V(pod), V(dns), V(mesh) (the sidecar), V(gateway) or V(gateway policy). Null when it is allowed.
  returned: with O(host)
  type: str
  sample: mesh
via:
  description: V(direct), or the pod of the last egress gateway on the way, as namespace and name.
  returned: with O(host)
  type: str
  sample: direct
address:
  description: The address of the far end that the request would go to, where it is known. Null otherwise.
  returned: with O(host)
  type: str
  sample: 203.0.113.12
reason:
  description: The reason in one sentence.
  returned: with O(host)
  type: str
  sample: >-
    www.google.com port 443 (tls) is not declared for demo/sleep-6d5f7c9b8-x2x7k, and under mode REGISTRY_ONLY (Sidecar demo/default)
    the sidecar closes the connection (BlackHoleCluster).
fix:
  description: What to write to change it, as an option of a module or a host entry. Empty where there is nothing to fix.
  returned: with O(host)
  type: str
  sample: "istio_egress_host with namespace: demo, hosts: [{host: www.google.com, ports: [443]}]."
path:
  description: The hops of the request, in order.
  returned: with O(host)
  type: list
  elements: dict
  contains:
    hop:
      description: V(pod), V(sidecar), V(route), V(cluster), V(gateway), V(policy), V(gateway route), V(workload) or V(host).
      type: str
      sample: route
    at:
      description: The pod that it happens in, or the host.
      type: str
      sample: demo/sleep-6d5f7c9b8-x2x7k
    what:
      description: The listener, filter chain, route, cluster or address.
      type: str
      sample: route table 80, host httpbin.org:80
    object:
      description: The object that decides it, as kind and namespace/name. Null where none does.
      type: str
      sample: VirtualService demo/httpbin
    lost:
      description: Objects that name the host, too, and were passed over, each with C(object) and C(why).
      type: list
      elements: dict
      sample: [{object: ServiceEntry shared/httpbin, why: not exported to namespace demo (exportTo .)}]
notes:
  description: What limits the answer, such as a name that could not be looked up.
  returned: with O(host)
  type: list
  elements: str
  sample: []
explanations:
  description: For each of O(urls), in their order, the URL and all that is returned with O(host), with a C(picture) of its own.
  returned: with O(urls)
  type: list
  elements: dict
  sample:
    - {url: https://www.google.com/, verdict: allowed, by: null, via: direct, address: 203.0.113.12, ...}
picture:
  description: The way as lines of text, for printing; that of each of O(urls) one below the other.
  returned: success
  type: list
  elements: str
  sample: ["tls://www.google.com:443", " =X= blocked: www.google.com port 443 (tls) is not declared for demo/sleep-6d5f7c9b8-x2x7k, ..."]
addresses:
  description: The addresses that the host has for the workload. Null where that could not be found out.
  returned: with O(host)
  type: list
  elements: str
  sample: [203.0.113.12]
pod:
  description: The pod that was looked at.
  returned: success
  type: str
  sample: sleep-6d5f7c9b8-x2x7k
"""

from concurrent.futures import ThreadPoolExecutor, wait

from ansible_collections.meshops.istio_egress.plugins.module_utils import _explain, _path, _traffic
from ansible_collections.meshops.istio_egress.plugins.module_utils._inquiry import Inquiry
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import AUTH_OPTIONS, ISTIO_OPTIONS, EgressModule

OPTIONS = {
    "namespace": {"type": "str", "required": True},
    "workload": {"type": "str", "default": "sleep"},
    "container": {"type": "str"},
    "host": {"type": "str"},
    "port": {"type": "int"},
    "protocol": {"type": "str", "choices": ["http", "tls", "tcp"]},
    "path": {"type": "str"},
    "address": {"type": "str"},
    "urls": {"type": "list", "elements": "str"},
    "api_host": AUTH_OPTIONS["host"],
    "istio_namespace": ISTIO_OPTIONS["istio_namespace"],
}
OF_ONE = ("host", "port", "protocol", "path", "address")
AT_ONCE = 8
"""Names that are looked up at a time, and pieces of the sidecar's configuration that are read meanwhile."""


def asked_of(params: dict) -> list[tuple[str, _path.Call]]:
    """The requests that are asked about, each with its URL; that of `host` has none. Raises ExplainError or TrafficError."""
    if params["urls"] is not None:
        return [(request.url, _explain.call_of(request.url, *request.target)) for request in _traffic.parse_requests(params["urls"])]
    port, path = (default if params[option] is None else params[option] for option, default in (("port", 443), ("path", "/")))
    return [("", _explain.parse_call(params["host"], port, params["protocol"], path, params["address"]))]


def main() -> None:
    module = EgressModule(OPTIONS, required_one_of=[("host", "urls")], mutually_exclusive=[("urls", option) for option in OF_ONE])
    params, namespace = module.params, module.params["namespace"]
    with module.errors_in_plain_words():
        asked = asked_of(params)
        cluster = module.cluster(host=params["api_host"])
        inquiry = Inquiry(cluster, params["istio_namespace"])
        with ThreadPoolExecutor(AT_ONCE) as pool:
            world = pool.submit(inquiry.world, namespace)
            source, pod = _explain.choose_pod(inquiry.pods(namespace), namespace, params["workload"], params["container"])
            sidecar = inquiry.configuration(pod) if source.sidecar else None
            meanwhile = [pool.submit(sidecar.listeners, port, True) for port in {call.port for _url, call in asked}] if sidecar else []
            hosts = [] if params["address"] else list(dict.fromkeys(call.host for _url, call in asked))
            found = dict(zip(hosts, pool.map(lambda host: inquiry.resolve(pod, source.container, host), hosts), strict=True))
            wait(meanwhile)
        explanations = []
        for url, call in asked:
            addresses = [params["address"]] if params["address"] else found[call.host]
            result = _explain.explain(call, addresses, pod, source.container, sidecar, inquiry.neighbour, world.result())
            named = {"url": url} if url else {}
            explanations.append({**named, "addresses": addresses, "picture": _explain.picture(call, result), **result.as_dict()})
        module.warn_all(inquiry.warnings)
        if params["urls"] is not None:
            module.exit_json(changed=False, pod=source.pod, explanations=explanations, picture=[line for e in explanations for line in e["picture"]])
        module.exit_json(changed=False, pod=source.pod, **explanations[0])


if __name__ == "__main__":
    main()
