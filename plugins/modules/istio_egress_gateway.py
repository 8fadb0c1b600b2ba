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
  - Clients resolve none of the hosts in DNS; the gateway does. Its Service needs the ports 80 and 443, and no others but for TCP with O(hop=plain).
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
      - Host entries, as in M(meshops.istio_egress.istio_egress_host), with HTTP, TLS and TCP ports; TCP needs C(addresses).
      - A wildcard needs the key C(backend), the one host that serves all of it and that the gateway therefore can dial.
      - The key C(allow_from) of an entry takes the place of the option of that name.
      - The word V(everything) sends all that is not the mesh's own to the gateway, by top-level domain. HTTP on port 80 and TLS on port 443 are caught;
        plain TCP, other ports and bare addresses are not, and stay refused by the mode C(REGISTRY_ONLY). The gateway lets out the hosts that are listed
        (in the same task or others, for the same O(namespace) and O(gateway)), and the configuration of the clients does not grow with them.
      - Hosts that the policy sends through a gateway already are updated, the others are left as they are, unless O(purge=true).
    type: list
    elements: raw
  export_to:
    description:
      - Namespaces of the clients. V(.) is O(namespace) itself, where the clients' objects are kept in any case; V(*) means all namespaces.
    type: list
    elements: str
    default: ["."]
  hop:
    description:
      - How a request travels from the sidecar to the gateway. V(mutual_tls) is the mesh's own TLS, so that the gateway knows who calls; TLS of the
        workload travels inside it, untouched. V(plain) adds nothing to what the workload sends.
      - TCP with V(plain) needs a port of its own on the gateway's Service. It is added where M(meshops.istio_egress.istio_egress_gateway_deploy) made the
        gateway, else the task fails with the lines to add.
      - V(auto) takes V(mutual_tls) for HTTP, where it costs nothing, for TCP, where there is no other way, and for all ports of a host that has
        C(allow_from). It takes V(plain) for TLS.
    type: str
    choices: [auto, mutual_tls, plain]
    default: auto
  tls:
    description:
      - Whether the gateway puts TLS around what workloads send as HTTP. V(simple) checks the host's certificate, V(mutual) also shows one of its own.
      - Ports of a host that speak TLS already are passed through untouched.
    type: str
    choices: [none, simple, mutual]
    default: none
  credential:
    description:
      - Secret in the namespace of the gateway. With O(tls=simple) it has V(ca.crt), the CA of the host's certificate; without it the gateway takes the
        CAs of its own image. With O(tls=mutual) it is required, and also has V(tls.crt) and V(tls.key).
    type: str
    default: ""
  tls_port:
    description:
      - Port of the host to which the gateway speaks TLS.
    type: int
    default: 443
  tls_verify:
    description:
      - Whether the certificate of the host is checked against CA and name.
      - V(false) cannot be combined with O(credential), which Istio refuses.
    type: bool
    default: true
  allow_from:
    description:
      - Who may use the hosts at the gateway, each a namespace (V(demo)), a service account (V(demo/sleep)), or a dictionary with C(namespace) and
        C(service_account). Nobody else may, whatever namespace asks. Without it, everybody who is sent there may.
      - Others get status 403 for HTTP, and a closed connection for TLS and TCP. The gateway looks at a TCP caller when its first bytes arrive, so what
        a server says before that, such as the greeting of a mail server, is heard by everybody. It needs the hop V(mutual_tls), which V(auto) then takes.
      - A new host is guarded before anybody is sent there. For a host that goes through the gateway already, connections that are open keep what they
        had, HTTP until their next answer, TLS and TCP until Istio's drain time of 45 seconds is over.
      - A change of it ends open TLS and TCP connections through this gateway, of other hosts too, after that drain time.
    type: list
    elements: raw
    default: []
  allow_from_mode:
    description:
      - With V(shadow), the gateway lets everybody through and counts whom it would have refused, see RV(shadow_denied). V(enforce) refuses.
    type: str
    choices: [enforce, shadow]
    default: enforce
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

- name: Send example.com through it as HTTP, and let the gateway put TLS around it
  meshops.istio_egress.istio_egress_gateway:
    namespace: demo
    hosts:
      - host: other.example.com
        ports: [80]
    tls: simple

- name: Let one service account alone use the database
  meshops.istio_egress.istio_egress_gateway:
    namespace: demo
    hosts:
      - host: db.example.com
        ports: [tcp/5432]
        addresses: [203.0.113.10]
        allow_from: [demo/sleep]

- name: Send all subdomains to the one host that serves them
  meshops.istio_egress.istio_egress_gateway:
    namespace: demo
    hosts:
      - host: "*.wikipedia.org"
        backend: www.wikipedia.org

- name: Send everything to the gateway, which lets out two hosts
  meshops.istio_egress.istio_egress_gateway:
    namespace: demo
    hosts:
      - everything
      - httpbin.org:80
      - www.google.com

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
everything:
  description: The default route, where there is one; hosts below these top-level domains go to the gateway.
  returned: when the policy has one
  type: dict
  sample: {gateway: istio-system/istio-egressgateway, domains: [com, dev, io, net, org]}
shadow_denied:
  description:
    - How many requests and connections the gateway's ready pods let through since they started although C(allow_from) says otherwise, by the
      counters of their proxies. It is what V(enforce) would have refused.
  returned: when O(allow_from_mode=shadow) and O(wait=true), outside check mode
  type: int
  sample: 3
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
  sample: ["+ gateway         istio-system/egress-istio-egressgateway  http-mutual, http-nowhere, tls-plain"]
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
unresolved:
  description: Hosts that have no address in the gateway, since DNS does not know them or did not answer; requests to them fail. A warning tells where.
  returned: when a host has no address
  type: list
  elements: str
  sample: [no-such-host.example.com]
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
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_credential import check_credentials
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_plan import plan_gateway
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, WAIT_OPTIONS
from ansible_collections.meshops.istio_egress.plugins.module_utils._writing import WritingModule

OPTIONS = {
    "namespace": {"type": "str", "required": True},
    **_gateway.OPTIONS,
    "policy": {"type": "str", "default": "default"},
    "purge": {"type": "bool", "default": False},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "istio_namespace": ISTIO_OPTIONS["istio_namespace"],
    **WAIT_OPTIONS,
}


def main() -> None:
    module = WritingModule(OPTIONS, required_if=[("state", "present", ["hosts"])])
    params, namespace = module.params, module.params["namespace"]
    with module.errors_in_plain_words():
        present = params["state"] == "present"
        _policy.check_something_to_remove(params)
        policy = _policy.policy_name(params["policy"])
        everything, hosts = _gateway.split_everything(params["hosts"] or [])
        listed = _gateway.parse_routes({**params, "hosts": hosts}, namespace, policy) if present else []
        removed = () if present else _policy.parse_names(hosts)
        asked = _gateway.DefaultRoute(namespace, policy, params["gateway"], _gateway.DOMAINS, _policy.export_to(params["export_to"]))
        cluster = module.cluster()
        watcher = module.watcher()
        seen: dict = {}

        def make_plan() -> _plan.Plan:
            live = {kind: cluster.list(kind) for kind in _gateway.KINDS}
            routes, defaults = _gateway.read_routes(live["ServiceEntry"]), _gateway.read_defaults(live["VirtualService"])
            wanted = _gateway.wanted_routes(listed, removed, params["purge"], routes, namespace, policy)
            without = params["purge"] or (everything and not present)
            default = _gateway.wanted_default(asked if everything and present else None, without, defaults, wanted, namespace, policy)
            _gateway.check(wanted, [r for r in routes if (r.namespace, r.policy) != (namespace, policy)])
            through = {r.gateway for r in (*routes, *defaults) if (r.namespace, r.policy) == (namespace, policy)}
            required = {params["gateway"]} if present else set()
            gateways = find_gateways(cluster, through | required, required)
            seen.update(wanted=wanted, gateways=gateways, default=default, warnings=check_credentials(cluster, listed))
            return plan_gateway(wanted, default, live, namespace, policy, gateways)

        plan, outcome = converge(make_plan, cluster, module.check_mode, watcher.follow if watcher else None)
        module.warn_all(seen["warnings"])
        result = _gateway.describe(seen["wanted"], seen["gateways"], seen["default"])
        if watcher and present and params["allow_from_mode"] == "shadow":
            gateway = seen["gateways"][params["gateway"]]
            result["shadow_denied"] = watcher.shadow_denied(gateway.namespace, gateway.selector)
        module.finish(plan, outcome, **result, **module.followed(watcher))


if __name__ == "__main__":
    main()
