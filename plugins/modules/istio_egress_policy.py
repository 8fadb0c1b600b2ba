#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_egress_policy
short_description: Apply all egress rules of a namespace from one document, and bring the document of before back
version_added: 0.1.0
description:
  - Takes one document with everything that a namespace may send out of the mesh, which is the mode, the hosts, the ways through egress gateways, and the
    ranges around the sidecar. It plans all of it at once and applies it in an order in which no request that is allowed before and after gets lost.
  - What is added comes first, then what is taken away. A mode that opens comes first of all, a mode that closes last of all.
  - The document is recorded in the namespace, in a ConfigMap, together with the one before it. O(state=restored) brings that one back, from any machine.
  - When the API server refuses a step, the steps before it are undone. When proxies do not follow in time, or the connection breaks, the task fails and
    what was written stays; running it again finishes it, and O(state=restored) takes it back.
  - The objects are those of M(meshops.istio_egress.istio_outbound_mode), M(meshops.istio_egress.istio_egress_host),
    M(meshops.istio_egress.istio_egress_gateway) and M(meshops.istio_egress.istio_egress_bypass) with the same policy name. A document takes over
    what these modules have declared under its name.
options:
  namespace:
    description:
      - Namespace of the workloads. The same document can be applied to several namespaces.
    type: str
    required: true
  name:
    description:
      - Name of the policy, which the objects carry in the label C(istio-egress.meshops.io/policy). Several policies can live in one namespace, as long as
        one of them at most sets the mode, or all set the same.
    type: str
    default: default
  policy:
    description:
      - The document. A file of a repository is read with C(lookup('ansible.builtin.file', 'shop.yml') | from_yaml).
      - Required with O(state=present) and O(state=rendered), ignored else.
    type: dict
    suboptions:
      mode:
        description:
          - The mode of the namespace. Without it the mode is left alone; one that an earlier document of the policy set is taken back.
        type: str
        choices: [ALLOW_ANY, REGISTRY_ONLY]
      hosts:
        description:
          - Host entries that workloads reach directly, as in M(meshops.istio_egress.istio_egress_host).
        type: list
        elements: raw
        default: []
      export_to:
        description:
          - Namespaces whose sidecars see O(policy.hosts), V(.) for O(namespace) itself, V(*) for all.
        type: list
        elements: str
        default: ['.']
      gateways:
        description:
          - Host entries that go through egress gateways. Each item is a set of hosts and how they go, with the options of
            M(meshops.istio_egress.istio_egress_gateway).
        type: list
        elements: dict
        default: []
        suboptions:
          gateway:
            description: The egress gateway, as namespace and name of its Service.
            type: str
            default: istio-system/istio-egressgateway
          hosts:
            description: Host entries that go through it, or the word V(everything).
            type: list
            elements: raw
            required: true
          export_to:
            description: Namespaces of the clients, V(.) for O(namespace) itself, V(*) for all.
            type: list
            elements: str
            default: ['.']
          hop:
            description: How a request travels from the sidecar to the gateway.
            type: str
            choices: [auto, mutual_tls, plain]
            default: auto
          tls:
            description: Whether the gateway puts TLS around what workloads send as HTTP.
            type: str
            choices: [none, simple, mutual]
            default: none
          credential:
            description: Secret in the namespace of the gateway with CA and client certificate for O(policy.gateways[].tls).
            type: str
            default: ""
          tls_port:
            description: Port of the host to which the gateway speaks TLS.
            type: int
            default: 443
          tls_verify:
            description: Whether the certificate of the host is checked.
            type: bool
            default: true
          allow_from:
            description: Who may use the hosts at the gateway, each a namespace or a service account such as V(demo/sleep).
            type: list
            elements: raw
            default: []
          allow_from_mode:
            description: With V(shadow), the gateway counts whom it would refuse, and lets everybody through.
            type: str
            choices: [enforce, shadow]
            default: enforce
      bypass:
        description:
          - Ranges that go around the sidecar, by workload, as in M(meshops.istio_egress.istio_egress_bypass). A change starts new pods of the workload.
        type: list
        elements: dict
        default: []
        suboptions:
          workload:
            description: Kind and name, such as V(deployment/web).
            type: str
            required: true
          include:
            description: The ranges that go by the sidecar; all others go around it.
            type: list
            elements: str
          exclude:
            description: The ranges that go around the sidecar.
            type: list
            elements: str
          exclude_ports:
            description: Destination ports that go around the sidecar.
            type: list
            elements: str
  purge:
    description:
      - Whether hosts that the policy declares, directly or through gateways, and that the document does not list are taken away.
    type: bool
    default: true
  max_delete:
    description:
      - The most hosts that may be taken away, in any state. When there are more, the task fails before it writes anything.
    type: int
  trial:
    description:
      - Whether a document that is new is recorded as being on trial. It is until the task runs without this option, which is to be done when a proof by
        M(meshops.istio_egress.istio_egress_check) has passed. RV(trial) tells, also a later run, that O(state=restored) is what a proof that fails asks for.
      - A document that comes after one on trial has the one before that as its way back.
    type: bool
    default: false
  state:
    description:
      - V(present) applies the document. The same document again repairs what others have changed, and changes nothing where nothing differs.
      - V(restored) applies the document that was recorded before the last change; where there was none, everything of the policy is taken back. Running it
        again changes nothing, since it goes back one step only.
      - V(absent) takes back everything of the policy, and its record.
      - V(rendered) returns the objects that the document means as RV(manifests), and asks no cluster.
    type: str
    choices: [present, restored, absent, rendered]
    default: present
  revision:
    description:
      - Revision of the control plane whose mesh config has the mode and the ranges that hold where the document says nothing.
    type: str
    default: default
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.istio
  - meshops.istio_egress.wait
  - meshops.istio_egress.attributes
seealso:
  - module: meshops.istio_egress.istio_egress_discover
  - module: meshops.istio_egress.istio_egress_check
  - module: meshops.istio_egress.istio_egress_cleanup
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: All that demo may send out
  meshops.istio_egress.istio_egress_policy:
    namespace: demo
    name: web
    policy:
      mode: REGISTRY_ONLY
      hosts:
        - httpbin.org:80
        - host: www.google.com
          owner: team-web
          ticket: NET-1234
      gateways:
        - hosts:
            - host: edition.cnn.com
              ports: [80, 443]
    max_delete: 5

- name: The objects of it, for a repository
  meshops.istio_egress.istio_egress_policy:
    namespace: demo
    name: web
    state: rendered
    policy:
      mode: REGISTRY_ONLY
      hosts: [www.google.com]
  register: egress

- name: Bring back what was before the last change
  meshops.istio_egress.istio_egress_policy:
    namespace: demo
    name: web
    state: restored

- name: Take all of it back
  meshops.istio_egress.istio_egress_policy:
    namespace: demo
    name: web
    state: absent
"""

RETURN = r"""
policy:
  description: The document that is applied after the task, without what is as by default; empty when there is none.
  returned: success
  type: dict
  sample: {mode: REGISTRY_ONLY, hosts: [httpbin.org:80]}
before:
  description: The document that O(state=restored) would bring back; empty when that takes everything back, missing when there is no way back.
  returned: when a change of the document is recorded
  type: dict
  sample: {hosts: [httpbin.org:80]}
trial:
  description: Whether the document is on trial, that is, new and not yet applied without O(trial).
  returned: success
  type: bool
  sample: false
hosts:
  description: The hosts that the policy declares for the direct way after the task, and what was decided for each.
  returned: success
  type: list
  elements: dict
  sample:
    - host: httpbin.org
      ports: [http/80]
      resolution: DNS
      addresses: []
      export_to: [.]
      object: egress-web-http-80
      chosen: [port 80 is HTTP]
through_gateways:
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
manifests:
  description: The objects that the document means in a cluster that has none of them.
  returned: with O(state=rendered)
  type: list
  elements: dict
  sample: [{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: egress-mode, namespace: demo}}]
pod_annotations:
  description: The annotations that pod templates of workloads need for O(policy.bypass), by workload.
  returned: with O(state=rendered)
  type: dict
  sample: {Deployment/web: {traffic.sidecar.istio.io/excludeOutboundIPRanges: 203.0.113.0/24}}
objects:
  description: The objects that were (in check mode, would be) written.
  returned: except with O(state=rendered)
  type: list
  elements: dict
  sample: [{kind: ServiceEntry, namespace: demo, name: egress-web-http-80, action: create}]
steps:
  description: What was (in check mode, would be) done, in order, a line each.
  returned: except with O(state=rendered)
  type: list
  elements: str
  sample: ["+ serviceentry   demo/egress-web-http-80  1 host: httpbin.org"]
proxies:
  description: The sidecars of the namespace, and those that did not follow yet.
  returned: when O(wait=true), outside check mode
  type: dict
  sample: {total: 3, following: 3, looked_at: 3, pending: []}
rollouts:
  description: The same for the pods of workloads with O(policy.bypass).
  returned: when O(wait=true) and there are any, outside check mode
  type: dict
  sample: {total: 1, following: 1, looked_at: 1, pending: []}
verified:
  description: Whether proxies were read and seen to do what the document says; V(false) where there was none to look at.
  returned: except with O(state=rendered)
  type: bool
  sample: true
unresolved:
  description: Hosts that have no address in sidecars or gateways, since DNS does not know them or did not answer; requests to them fail. A warning tells where.
  returned: when a host has no address
  type: list
  elements: str
  sample: [no-such-host.example.com]
follow_seconds:
  description: How long gateways, sidecars and rollouts took to follow, in all steps together.
  returned: except with O(state=rendered)
  type: float
  sample: 1.4
requests:
  description: How many requests were sent to the API server, including one for each reading of a proxy.
  returned: except with O(state=rendered)
  type: int
  sample: 24
"""

from datetime import date

from ansible_collections.meshops.istio_egress.plugins.module_utils import _bypass, _control_plane, _document, _gateway, _lint, _mode, _plan, _policy
from ansible_collections.meshops.istio_egress.plugins.module_utils._apply import converge
from ansible_collections.meshops.istio_egress.plugins.module_utils._bypass_warnings import warn_of_cluster, warn_of_manager
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, if_allowed
from ansible_collections.meshops.istio_egress.plugins.module_utils._document import Document
from ansible_collections.meshops.istio_egress.plugins.module_utils._document_plan import (
    Around,
    Place,
    Planned,
    Task,
    gateways_of,
    plan_task,
    pod_annotations,
    rendered,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._egress_gateways import find_gateways
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_credential import check_credentials
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, WAIT_OPTIONS
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import MANAGED_BY, MANAGED_BY_LABEL
from ansible_collections.meshops.istio_egress.plugins.module_utils._rollouts import Onlooker
from ansible_collections.meshops.istio_egress.plugins.module_utils._watcher import Watcher
from ansible_collections.meshops.istio_egress.plugins.module_utils._writing import WritingModule

OPTIONS = {
    "namespace": {"type": "str", "required": True},
    "name": {"type": "str", "default": "default"},
    "policy": {"type": "dict", "options": _document.OPTIONS},
    "purge": {"type": "bool", "default": True},
    "max_delete": {"type": "int"},
    "trial": {"type": "bool", "default": False},
    "state": {"type": "str", "choices": ["present", "restored", "absent", "rendered"], "default": "present"},
    **ISTIO_OPTIONS,
    **WAIT_OPTIONS,
}


def main() -> None:
    module = WritingModule(OPTIONS, required_if=[("state", "present", ["policy"]), ("state", "rendered", ["policy"])])
    params, state = module.params, module.params["state"]
    with module.errors_in_plain_words():
        place = Place(params["namespace"], _policy.policy_name(params["name"]), params["istio_namespace"])
        asked = params["policy"] if state in ("present", "rendered") else {}
        listed = _document.parse(asked, place.namespace, place.policy)
        if state == "rendered":
            module.exit_json(changed=False, policy=_document.essence(asked), manifests=rendered(listed, place), pod_annotations=pod_annotations(listed))
        cluster, seen = module.cluster(), {}

        def make_plan() -> _plan.Plan:
            records = _document.records(cluster.list("ConfigMap", place.namespace, labels=f"{MANAGED_BY_LABEL}={MANAGED_BY}"))
            own = records.pop(place.policy, None) or cluster.get("ConfigMap", place.namespace, _document.record_name(place.policy))
            others = {name: _document.parse(_document.read_record(o).document, place.namespace, name) for name, o in records.items()}

            def look(before: Document, after: Document) -> Around:
                seen.update(around=_around(cluster, place, params["revision"], before, after, others), warnings=check_credentials(cluster, after.routes))
                return seen["around"]

            seen["planned"] = plan_task(own, Task(state, _document.essence(asked), params["purge"], params["max_delete"], params["trial"]), look, place)
            return seen["planned"].plan

        watcher = module.watcher()
        onlooker = Onlooker(cluster, params["wait_timeout"], params["istio_namespace"])
        plan, outcome = converge(make_plan, cluster, module.check_mode, onlooker.beside(watcher.follow) if watcher else None)
        planned = seen["planned"]
        around = seen["around"]
        ranges = _warn_of_ranges(cluster, planned, around, place.namespace)
        module.warn_all([*seen["warnings"], *planned.warnings, *ranges, *_lint.expired(planned.document.entries, date.today()), *onlooker.warnings])
        if state == "restored" and planned.was == planned.now:
            module.warn(f'Policy "{place.policy}" of namespace {place.namespace} has no document of before on record, so nothing was brought back.')
        module.finish(plan, outcome, **_result(planned, around, place), **_followed(module, watcher, onlooker, plan))


def _around(cluster: Cluster, place: Place, revision: str, before: Document, after: Document, others: dict[str, Document]) -> Around:
    """What is live and of concern. Nothing is read that neither document speaks of, so that an account needs no rights for it."""
    namespace, control_plane = place.namespace, (place.istio_namespace, revision)
    live = {"ServiceEntry": cluster.list_visible("ServiceEntry", namespace)}
    mine = [r for r in _gateway.read_routes(live["ServiceEntry"]) if (r.namespace, r.policy) == (namespace, place.policy)]
    through = {r.gateway for r in mine} | gateways_of(before) | gateways_of(after)
    if through:
        live |= {kind: cluster.list(kind) for kind in _gateway.KINDS if kind != "ServiceEntry"}
    mesh = None
    sidecars: list = []
    if before.mode or after.mode:
        sidecars = cluster.list_visible("Sidecar", namespace)
        mesh = if_allowed(_control_plane.mesh_config_map, cluster, *control_plane)
    workloads = {(kind, name): cluster.get(kind, namespace, name) for kind, name in {*before.ranges, *after.ranges}}
    ranges = _control_plane.injector_if_any(cluster, *control_plane) if workloads else None
    return Around(
        live,
        tuple(sidecars),
        {workload: obj for workload, obj in workloads.items() if obj},
        find_gateways(cluster, through, gateways_of(after)),
        others,
        _mode.mesh_mode(mesh) if mesh else None,
        _bypass.of_values(ranges),
    )


def _warn_of_ranges(cluster: Cluster, planned: Planned, around: Around, namespace: str) -> list[str]:
    changed = {(c.object["kind"], c.object["metadata"]["name"]): c.object for c in planned.plan.changes}
    ranges, warnings = {}, []
    for workload, given in sorted(planned.document.ranges.items()):
        live = around.workloads[workload]
        ranges[f"{live['kind']} {namespace}/{workload[1]}"] = _bypass.in_force(_bypass.of_template(changed.get(workload, live)), around.ranges)
        warnings += warn_of_manager(live, given) if workload in changed else []
    return warn_of_cluster(cluster, namespace, ranges) + warnings


def _result(planned: Planned, around: Around, place: Place) -> dict:
    ways = _gateway.describe(planned.routes, (), planned.everything)
    chosen = {entry.host: entry.chosen for entry in planned.document.hosts}
    return {
        "policy": dict(planned.now.document) if planned.now else {},
        **({"before": dict(planned.now.before)} if planned.now and planned.now.before is not None else {}),
        "trial": planned.now is not None and planned.now.trial,
        "hosts": _plan.describe_hosts(planned.hosts, around.live["ServiceEntry"], place.namespace, place.policy, chosen),
        "through_gateways": ways["hosts"],
        **({"everything": ways["everything"]} if planned.everything else {}),
    }


def _followed(module: WritingModule, watcher: Watcher | None, onlooker: Onlooker, plan: _plan.Plan) -> dict:
    """What was seen by those who had something to look at: the one of proxies, and the one of new pods."""
    rollouts = [step for step in plan.steps if isinstance(step, _bypass.Rollout)]
    if watcher is None or not rollouts:
        return module.followed(watcher)
    others = any(isinstance(step, _plan.Wait) and step not in rollouts for step in plan.steps)
    return {**module.followed(watcher), "rollouts": onlooker.proxies, "verified": onlooker.verified and (watcher.verified or not others)}


if __name__ == "__main__":
    main()
