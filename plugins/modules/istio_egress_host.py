#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_egress_host
short_description: Declare the hosts that workloads of an Istio mesh may reach
version_added: 0.1.0
description:
  - Takes a list of host entries and keeps the Istio C(ServiceEntry) objects that declare them, for the sidecars of one namespace or of more.
  - Under the mode C(REGISTRY_ONLY) (see M(meshops.istio_egress.istio_outbound_mode)) sidecars let out what is declared and nothing else.
  - Any number of hosts is one task with one list request. Hosts with the same ports share an object (256 at most), so adding or removing one is one write,
    and nothing is written when nothing differs.
  - Objects of other policies and other owners are never touched.
options:
  namespace:
    description:
      - Namespace of the workloads that call the hosts. The objects are kept there.
    type: str
    required: true
  hosts:
    description:
      - Host entries. An entry is a dictionary, or a string for a host with the port 443 (V(www.google.com)) or with ports of its own (V(httpbin.org:80)).
      - A string may hold several entries separated by white space, as the text field of a survey gives them.
      - Entries of hosts that the policy declares already are updated, the others are left as they are, unless O(purge=true).
    type: list
    elements: raw
    suboptions:
      host:
        description:
          - An exact host (V(edition.cnn.com)), a wildcard for everything below a domain (V(*.wikipedia.org)), an IP, a CIDR (V(198.51.100.0/24)),
            or a name of your own for O(hosts[].addresses).
        type: str
        required: true
      ports:
        description:
          - Destination ports. V(80) is HTTP and V(443) is TLS; others need a protocol, as V(tcp/5432) or a dictionary with C(number) and C(protocol).
          - Protocols are V(HTTP), V(HTTP2), V(GRPC), V(TLS), V(HTTPS), V(TCP) and V(MONGO). V(TLS) and V(HTTPS) mean the same for traffic that leaves.
          - For an IP or CIDR a port without a protocol is TCP, since neither Host header nor SNI carries an address range.
        type: list
        elements: raw
        default: [443]
      addresses:
        description:
          - IPs and CIDRs of the far end. Needed for TCP, where nothing else tells hosts apart. Not for HTTP with a CIDR, where Istio does not look at it.
        type: list
        elements: str
      resolution:
        description:
          - How a sidecar finds the far end. V(auto) takes V(dns) for exact hosts, V(static) for single addresses of HTTP and TLS hosts,
            and V(none) (the address that the client dials) for wildcards, ranges and TCP. The result says what was taken and why.
          - Changing a host that is in use from V(static) to V(dns) can lose requests, since Istio takes the addresses away before the proxy has new ones;
            from V(static) to V(none), and from there to V(dns), loses none.
          - V(dns_round_robin) keeps connections when the answers of DNS change; V(dynamic_dns) looks wildcards up by name, on Istio 1.30 and newer.
        type: str
        choices: [auto, none, static, dns, dns_round_robin, dynamic_dns]
        default: auto
      capture_port:
        description:
          - Declares a TCP port without addresses all the same. Every connection to that port, whatever its destination, then goes to this host.
          - On a port that the mesh also uses for HTTP, HTTP requests go by their Host header all the same.
        type: bool
        default: false
      owner:
        description: Who asked for the host. Kept on the object, as are the next three.
        type: str
      ticket:
        description: The request that it was asked for with.
        type: str
      reason:
        description: Why the host is needed.
        type: str
      expires:
        description:
          - Date after which the entry should be gone, as V(2027-01-31). The task warns about entries that are past it; it does not remove them.
        type: str
  export_to:
    description:
      - Namespaces whose sidecars see the hosts of this task, V(.) for O(namespace) itself, V(*) for all.
    type: list
    elements: str
    default: ['.']
  policy:
    description:
      - Name that the objects carry in the label C(istio-egress.meshops.io/policy). Several policies can live in one namespace, each with hosts of its own.
    type: str
    default: default
  purge:
    description:
      - With O(state=present), removes the hosts of this policy in this namespace that are not in O(hosts).
      - With O(state=absent), removes all hosts of this policy in this namespace.
    type: bool
    default: false
  state:
    description:
      - V(present) declares the hosts. V(absent) removes them with all of their ports; the rest of an entry is ignored then.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.istio
  - meshops.istio_egress.wait
  - meshops.istio_egress.attributes
seealso:
  - module: meshops.istio_egress.istio_outbound_mode
  - module: meshops.istio_egress.istio_egress_check
  - name: ServiceEntry
    description: Reference of the objects that the module writes.
    link: https://istio.io/latest/docs/reference/config/networking/service-entry/
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: Let the workloads of demo reach three hosts
  meshops.istio_egress.istio_egress_host:
    namespace: demo
    hosts:
      - www.google.com
      - host: httpbin.org
        ports: [80]
      - host: edition.cnn.com
        ports: [80, 443]
        owner: team-web
        ticket: NET-1234
        expires: 2027-01-31

- name: A wildcard, a range and a database
  meshops.istio_egress.istio_egress_host:
    namespace: demo
    policy: data
    hosts:
      - host: '*.wikipedia.org'
      - host: 203.0.113.0/24
        ports: [tcp/9000]
      - host: db.example.com
        ports: [tcp/5432]
        addresses: [203.0.113.10]

- name: Keep exactly these hosts, remove what the policy declared before
  meshops.istio_egress.istio_egress_host:
    namespace: demo
    purge: true
    hosts:
      - www.google.com

- name: Take a host back
  meshops.istio_egress.istio_egress_host:
    namespace: demo
    state: absent
    hosts:
      - www.google.com

- name: Take back all that the policy declared in the namespace
  meshops.istio_egress.istio_egress_host:
    namespace: demo
    policy: data
    state: absent
    purge: true
"""

RETURN = r"""
hosts:
  description: The hosts that the policy declares in the namespace after the task, and what was decided for each.
  returned: success
  type: list
  elements: dict
  sample:
    - host: httpbin.org
      ports: [http/80]
      resolution: DNS
      addresses: []
      export_to: ['.']
      object: egress-default-80-1
      chosen: ["port 80 is HTTP"]
objects:
  description: The objects that were (in check mode, would be) written.
  returned: success
  type: list
  elements: dict
  sample: [{kind: ServiceEntry, namespace: demo, name: egress-default-80-1, action: create}]
steps:
  description: What was (in check mode, would be) done, in order, a line each.
  returned: success
  type: list
  elements: str
  sample: ["+ serviceentry   demo/egress-default-80-1  1 host: httpbin.org"]
proxies:
  description: The sidecars that should see the hosts, and those that did not have them yet.
  returned: when O(wait=true), outside check mode
  type: dict
  sample: {total: 3, following: 3, looked_at: 3, pending: []}
verified:
  description: Whether sidecars were read and seen to have what the policy declares; V(false) where there was none to look at.
  returned: success
  type: bool
  sample: true
unresolved:
  description: Hosts that have no address in sidecars, since DNS does not know them or did not answer; requests to them fail. A warning tells where.
  returned: when a declared host has no address
  type: list
  elements: str
  sample: [no-such-host.example.com]
follow_seconds:
  description: How long the sidecars took to follow after the write.
  returned: success
  type: float
  sample: 0.4
requests:
  description: How many requests were sent to the API server, including one for each reading of a sidecar.
  returned: success
  type: int
  sample: 2
"""

from datetime import date

from ansible_collections.meshops.istio_egress.plugins.module_utils import _lint, _objects, _plan, _policy
from ansible_collections.meshops.istio_egress.plugins.module_utils._apply import converge
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, WAIT_OPTIONS
from ansible_collections.meshops.istio_egress.plugins.module_utils._writing import WritingModule

OPTIONS = {
    "namespace": {"type": "str", "required": True},
    "hosts": {"type": "list", "elements": "raw"},
    "export_to": {"type": "list", "elements": "str", "default": ["."]},
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
        _policy.check_something_to_remove(params)
        policy, present = _policy.policy_name(params["policy"]), params["state"] == "present"
        export_to = _policy.export_to("." if name == namespace else name for name in params["export_to"])
        listed = _policy.parse_hosts(params["hosts"] or []) if present else ()
        unlisted = set() if present else set(_policy.parse_names(params["hosts"] or []))
        module.warn_all(_lint.expired(listed, date.today()))
        cluster = module.cluster()
        watcher = module.watcher()
        seen: dict = {}

        def make_plan() -> _plan.Plan:
            live = cluster.list_visible("ServiceEntry", namespace)
            module.warn_all(_lint.check_clashes([_objects.Declared(e, export_to) for e in listed], live, namespace, policy))
            wanted = _plan.wanted_hosts(listed, unlisted, params["purge"], export_to, live, namespace, policy)
            seen.update(live=live, wanted=wanted)
            return _plan.plan_hosts(wanted, live, namespace, policy)

        plan, outcome = converge(make_plan, cluster, module.check_mode, watcher.follow if watcher else None)
        chosen = {entry.host: entry.chosen for entry in listed}
        module.finish(plan, outcome, hosts=_plan.describe_hosts(seen["wanted"], seen["live"], namespace, policy, chosen), **module.followed(watcher))


if __name__ == "__main__":
    main()
