#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_egress_gateway
short_description: Send hosts through an Istio egress gateway
version_added: 0.1.0
description:
  - Takes a list of host entries and keeps the objects that send them through an egress gateway, for the sidecars of one namespace.
  - The order is make before break. The gateway's side comes first, then the task looks into every gateway proxy and client until all of it is there,
    and only then are clients sent that way. On the way back the clients' route goes first. No request is lost by it.
  - While nobody serves behind the gateway's Service, the task fails before anybody is sent there.
  - Clients resolve none of the hosts in DNS; the gateway does. Its Service needs the ports 80 and 443, no others.
options:
  namespace:
    description:
      - Namespace of the workloads that call the hosts.
    type: str
    required: true
  gateway:
    description:
      - The egress gateway, as namespace and name of its Service. Its pods are found by what that Service selects, however they were installed.
    type: str
    default: istio-system/istio-egressgateway
  hosts:
    description:
      - Host entries, as in M(meshops.istio_egress.istio_egress_host). Exact hosts with HTTP, TLS and TCP ports; TCP needs C(addresses).
      - Hosts that the policy sends through a gateway already are updated, the others are left as they are, unless O(purge=true).
    type: list
    elements: raw
  hop:
    description:
      - How a request travels from the sidecar to the gateway. V(mutual_tls) is the mesh's own TLS, so that the gateway knows who calls; TLS of the
        workload travels inside it, untouched. V(plain) adds nothing to what the workload sends.
      - V(auto) takes V(mutual_tls) for HTTP, where it costs nothing, and for TCP, where there is no other way, and V(plain) for TLS.
    type: str
    choices: [auto, mutual_tls, plain]
    default: auto
  policy:
    description:
      - Name that the objects carry in the label C(istio-egress.meshops.io/policy).
    type: str
    default: default
  purge:
    description:
      - With O(state=present), takes the hosts of this policy and namespace that are not in O(hosts) off their gateways.
      - With O(state=absent), takes all of them off.
    type: bool
    default: false
  state:
    description:
      - V(present) sends the hosts through the gateway. V(absent) stops that. They are then reached as M(meshops.istio_egress.istio_egress_host)
        and the mode have it, which under C(REGISTRY_ONLY) means not at all unless they are declared.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.istio
  - meshops.istio_egress.wait
  - meshops.istio_egress.attributes
seealso:
  - module: meshops.istio_egress.istio_egress_host
  - module: meshops.istio_egress.istio_egress_check
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: Send edition.cnn.com through the egress gateway
  meshops.istio_egress.istio_egress_gateway:
    namespace: demo
    hosts:
      - host: edition.cnn.com
        ports: [80, 443]

- name: Let the gateway know who calls, for TLS and TCP too
  meshops.istio_egress.istio_egress_gateway:
    namespace: demo
    hop: mutual_tls
    hosts:
      - host: edition.cnn.com
        ports: [80, 443]
      - host: db.example.com
        ports: [tcp/5432]
        addresses: [203.0.113.10]

- name: Let edition.cnn.com out directly again
  meshops.istio_egress.istio_egress_gateway:
    namespace: demo
    state: absent
    hosts:
      - edition.cnn.com
"""

RETURN = r"""
hosts:
  description: The hosts that the policy sends through gateways after the task.
  returned: success
  type: list
  elements: dict
  sample:
    - host: edition.cnn.com
      ports: [http/80, tls/443]
      gateway: istio-system/istio-egressgateway
      hop: {http/80: mutual_tls, tls/443: plain}
gateways:
  description: The gateways that the policy's hosts go or went through.
  returned: success
  type: list
  elements: str
  sample: [istio-system/istio-egressgateway]
objects:
  description: The objects that were (in check mode, would be) written.
  returned: success
  type: list
  elements: dict
  sample: [{kind: Gateway, namespace: istio-system, name: egress-istio-egressgateway, action: create}]
steps:
  description: What was (in check mode, would be) done, in order, a line each.
  returned: success
  type: list
  elements: str
  sample: ["+ gateway         istio-system/egress-istio-egressgateway  http-mutual, tls-plain"]
proxies:
  description: The sidecars of the namespace, and those that did not follow yet.
  returned: when O(wait=true), outside check mode
  type: dict
  sample: {total: 3, following: 3, looked_at: 3, pending: []}
verified:
  description: Whether sidecars were read and seen to route as the policy says; V(false) where there was none to look at.
  returned: success
  type: bool
  sample: true
follow_seconds:
  description: How long gateways and sidecars took to follow, in all steps together.
  returned: success
  type: float
  sample: 1.4
requests:
  description: How many requests were sent to the API server, including one for each reading of a proxy.
  returned: success
  type: int
  sample: 24
"""

from ansible_collections.meshops.istio_egress.plugins.module_utils import _gateway, _plan, _policy
from ansible_collections.meshops.istio_egress.plugins.module_utils._apply import converge
from ansible_collections.meshops.istio_egress.plugins.module_utils._egress_gateways import find_gateways
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, WAIT_OPTIONS, EgressModule
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import Watcher

OPTIONS = {
    "namespace": {"type": "str", "required": True},
    "gateway": {"type": "str", "default": "istio-system/istio-egressgateway"},
    "hosts": {"type": "list", "elements": "raw"},
    "hop": {"type": "str", "choices": ["auto", "mutual_tls", "plain"], "default": "auto"},
    "policy": {"type": "str", "default": "default"},
    "purge": {"type": "bool", "default": False},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "istio_namespace": ISTIO_OPTIONS["istio_namespace"],
    **WAIT_OPTIONS,
}


def main() -> None:
    module = EgressModule(OPTIONS, required_if=[("state", "present", ["hosts"])])
    params, namespace = module.params, module.params["namespace"]
    with module.errors_in_plain_words():
        present = params["state"] == "present"
        _policy.check_something_to_remove(params)
        policy = _policy.policy_name(params["policy"])
        listed = _policy.parse_hosts(params["hosts"] or []) if present else ()
        removed = () if present else _policy.parse_names(params["hosts"] or [])
        cluster = module.cluster()
        watcher = Watcher(cluster, params["wait_timeout"], params["istio_namespace"]) if params["wait"] and not module.check_mode else None
        seen: dict = {}

        def make_plan() -> _plan.Plan:
            live = {kind: cluster.list(kind) for kind in _gateway.KINDS}
            before = _gateway.read_routes(live["ServiceEntry"])
            through = {r.gateway for r in before if (r.namespace, r.policy) == (namespace, policy)}
            gateways = find_gateways(cluster, through | ({params["gateway"]} if present else set()), required=params["gateway"] if present else None)
            target = gateways.get(params["gateway"])
            wanted = _gateway.wanted_routes(listed, removed, params["purge"], before, namespace, policy, target, params["hop"])
            _gateway.check(wanted)
            seen.update(wanted=wanted, gateways=gateways)
            return _gateway.plan_gateway(wanted, live, namespace, policy, gateways)

        plan, outcome = converge(make_plan, cluster, module.check_mode, watcher.follow if watcher else None)
        result = _gateway.describe(seen["wanted"], seen["gateways"])
        module.finish(plan, outcome, **result, **module.followed(watcher))


if __name__ == "__main__":
    main()
