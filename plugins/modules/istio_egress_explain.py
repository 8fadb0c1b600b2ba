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
      - Host name or IP address that the workload asks for.
      - In the other modules O(host) is the API server. Here that is O(api_host).
    type: str
    required: true
  port:
    description:
      - Port that the workload dials.
    type: int
    default: 443
  protocol:
    description:
      - What the workload sends. V(tls) is told apart by the server name in the handshake, V(tcp) by address and port alone.
      - By default V(http) for port 80, V(tls) for 443, V(tcp) for any other.
    type: str
    choices: [http, tls, tcp]
  path:
    description:
      - Path of an HTTP request, for routes and policies that look at it.
    type: str
    default: /
  address:
    description:
      - Address that O(host) has for the workload. By default it is looked up in the workload's container.
    type: str
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
  returned: success
  type: str
  sample: blocked
by:
  description: Who stops a blocked request, V(pod), V(dns), V(mesh) (the sidecar), V(gateway) or V(gateway policy). Null when it is allowed.
  returned: success
  type: str
  sample: mesh
via:
  description: V(direct), or the pod of the last egress gateway on the way, as namespace and name.
  returned: success
  type: str
  sample: direct
address:
  description: The address of the far end that the request would go to, where it is known. Null otherwise.
  returned: success
  type: str
  sample: 203.0.113.12
reason:
  description: The reason in one sentence.
  returned: success
  type: str
  sample: >-
    www.google.com port 443 (tls) is not declared for demo/sleep-6d5f7c9b8-x2x7k, and under mode REGISTRY_ONLY (Sidecar demo/default)
    the sidecar closes the connection (BlackHoleCluster).
fix:
  description: What to write to change it, as an option of a module or a host entry. Empty where there is nothing to fix.
  returned: success
  type: str
  sample: "istio_egress_host with namespace: demo, hosts: [{host: www.google.com, ports: [443]}]."
path:
  description: The hops of the request, in order.
  returned: success
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
  returned: success
  type: list
  elements: str
  sample: []
picture:
  description: The way as lines of text, for printing.
  returned: success
  type: list
  elements: str
  sample: ["tls://www.google.com:443", " =X= blocked: www.google.com port 443 (tls) is not declared for demo/sleep-6d5f7c9b8-x2x7k, ..."]
addresses:
  description: The addresses that the host has for the workload. Null where that could not be found out.
  returned: success
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

from ansible_collections.meshops.istio_egress.plugins.module_utils import _explain
from ansible_collections.meshops.istio_egress.plugins.module_utils._inquiry import Inquiry
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import AUTH_OPTIONS, ISTIO_OPTIONS, EgressModule

OPTIONS = {
    "namespace": {"type": "str", "required": True},
    "workload": {"type": "str", "default": "sleep"},
    "container": {"type": "str"},
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 443},
    "protocol": {"type": "str", "choices": ["http", "tls", "tcp"]},
    "path": {"type": "str", "default": "/"},
    "address": {"type": "str"},
    "api_host": AUTH_OPTIONS["host"],
    "istio_namespace": ISTIO_OPTIONS["istio_namespace"],
}


def main() -> None:
    module = EgressModule(OPTIONS)
    params, namespace = module.params, module.params["namespace"]
    with module.errors_in_plain_words():
        call = _explain.parse_call(params["host"], params["port"], params["protocol"], params["path"], params["address"])
        cluster = module.cluster(host=params["api_host"])
        inquiry = Inquiry(cluster, params["istio_namespace"])
        with ThreadPoolExecutor(2) as pool:
            world = pool.submit(inquiry.world, namespace)
            source, pod = _explain.choose_pod(inquiry.pods(namespace), namespace, params["workload"], params["container"])
            sidecar = inquiry.configuration(pod) if source.sidecar else None
            meanwhile = [pool.submit(sidecar.listeners, call.port, True)] if sidecar else []
            addresses = [params["address"]] if params["address"] else inquiry.resolve(pod, source.container, call.host)
            wait(meanwhile)
            result = _explain.explain(call, addresses, pod, source.container, sidecar, inquiry.neighbour, world.result())
        module.warn_all(inquiry.warnings)
        module.exit_json(changed=False, addresses=addresses, pod=source.pod, picture=_explain.picture(call, result), **result.as_dict())


if __name__ == "__main__":
    main()
