#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_egress_bypass
short_description: Lead IP ranges around the sidecars of an Istio mesh
version_added: 0.1.0
description:
  - Sets which destinations of a workload do not pass its sidecar, by annotations in the pod template, and waits until new pods are ready with them.
    Without O(workload) it sets the mesh's default for new pods, in the values that Istio's injector makes sidecars of.
  - What goes around the sidecar is not subject to the mode of the mesh, to declared hosts or to any policy, and leaves no trace in logs and counters
    of the mesh. Ranges are no protection.
  - Each of O(include), O(exclude) and O(exclude_ports) replaces what there was, as Istio does; nothing is merged. What is not given is as it was
    before this module came. The result shows the whole that is in force, and which running pods have something else.
  - What was there before is kept in an annotation of the object that is changed, so that O(state=absent) takes back exactly what was done.
  - Ranges that Istio would refuse are refused before anything is written; ranges that lead the cluster's own Services or pods around the sidecar are
    set with a warning.
  - Without O(include), O(exclude) and O(exclude_ports) the task reads and changes nothing.
options:
  namespace:
    description:
      - Namespace of O(workload).
    type: str
  workload:
    description:
      - The workload whose pods get the ranges, as kind and name (V(deployment/web), V(statefulset/db), V(daemonset/agent)). A name alone is a Deployment.
      - Its pods are replaced by new ones, in the way that its update strategy says.
      - Without it the ranges are the default for all pods that start from now on and say nothing themselves. Running pods keep what they have.
    type: str
  include:
    description:
      - IP ranges that pass the sidecar; all others go around it. V(*) means that everything passes it, which is Istio's default.
      - To let only the mesh's own traffic pass the sidecar, list the ranges of the cluster's Services and pods.
      - A list, or text with several ranges in it.
    type: list
    elements: str
  exclude:
    description:
      - IP ranges that go around the sidecar, also those that are within O(include). An empty list means none.
    type: list
    elements: str
  exclude_ports:
    description:
      - Ports that go around the sidecar, whatever the address. An empty list means none.
    type: list
    elements: str
  state:
    description:
      - V(present) sets what is given. V(absent) takes back what this module set before in the same place, and does nothing where it set nothing.
    type: str
    choices: [present, absent]
    default: present
  revision:
    description:
      - Revision of the control plane whose injector is meant, as in the label C(istio.io/rev); V(default) for one installed without a revision.
    type: str
    default: default
  wait:
    description:
      - Whether the task returns only when all pods of O(workload) are new ones that are ready and have the ranges, or, without O(workload), when the
        injector gives them to a pod that the API server is asked to try (a dry run; it needs the right to C(create) C(pods) in O(istio_namespace)).
      - With V(false) the task returns after the write.
    type: bool
    default: true
  wait_timeout:
    description:
      - How many seconds to wait before the task fails. What was written stays.
    type: int
    default: 120
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.istio
  - meshops.istio_egress.attributes
seealso:
  - module: meshops.istio_egress.istio_outbound_mode
  - module: meshops.istio_egress.istio_egress_check
  - name: Direct access to external services
    description: What Istio's documentation says about ranges around the sidecar.
    link: https://istio.io/latest/docs/tasks/traffic-management/egress/egress-control/#direct-access-to-external-services
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: Lead a partner's network around the sidecar of one workload
  meshops.istio_egress.istio_egress_bypass:
    namespace: demo
    workload: deployment/sleep
    exclude:
      - 203.0.113.0/24

- name: Let only the mesh's own traffic pass the sidecar, and see which pods are still captured
  meshops.istio_egress.istio_egress_bypass:
    namespace: demo
    workload: deployment/sleep
    include:
      - 10.96.0.0/12
      - 10.244.0.0/16
  register: bypass

- name: Take it back
  meshops.istio_egress.istio_egress_bypass:
    namespace: demo
    workload: deployment/sleep
    state: absent

- name: Read the mesh's default for new pods, and which running pods have something else
  meshops.istio_egress.istio_egress_bypass:
  register: default

- name: Lead a network around the sidecars of all pods that start from now on
  meshops.istio_egress.istio_egress_bypass:
    exclude:
      - 192.0.2.0/24
"""

RETURN = r"""
ranges:
  description:
    - The whole that new pods of the workload (or those that say nothing themselves) get after the task, with the mesh's default where the workload
      says nothing. Null for what could not be read.
  returned: success
  type: dict
  sample: {include: ['*'], exclude: [203.0.113.0/24], exclude_ports: []}
previous:
  description: The same before the task.
  returned: success
  type: dict
  sample: {include: ['*'], exclude: [], exclude_ports: []}
owner:
  description:
    - Who else manages what is written here, the injector's values or the workload. Null for a workload without marks of an owner.
  returned: success
  type: str
  sample: istioctl
owner_values:
  description: Lines for the owner's values that keep the mesh's default when the owner writes it again.
  returned: when O(workload) is not set
  type: str
  sample: |
    global:
      proxy:
        excludeIPRanges: "192.0.2.0/24"
objects:
  description: The objects that were (in check mode, would be) written.
  returned: success
  type: list
  elements: dict
  sample: [{kind: Deployment, namespace: demo, name: sleep, action: update}]
steps:
  description: What was (in check mode, would be) done, in order, a line each.
  returned: success
  type: list
  elements: str
  sample: ["~ deployment     demo/sleep  exclude nothing → 203.0.113.0/24, by new pods"]
proxies:
  description:
    - The pods with a sidecar, how many have the ranges that are in force for new ones, and which have others and are captured accordingly.
      A pod that is ending counts until it has ended.
  returned: when O(wait=true), outside check mode
  type: dict
  sample: {total: 2, looked_at: 2, following: 1, pending: [{pod: demo/sleep-1, reason: 'was started with exclude nothing, until it has ended'}]}
verified:
  description: Whether ready pods, or a pod that the injector was tried with, were seen to have the ranges; V(false) where there was none to look at.
  returned: success
  type: bool
  sample: true
follow_seconds:
  description: How long that took.
  returned: success
  type: float
  sample: 4.1
requests:
  description: How many requests were sent to the API server.
  returned: success
  type: int
  sample: 9
"""

from ansible_collections.meshops.istio_egress.plugins.module_utils import _bypass, _control_plane
from ansible_collections.meshops.istio_egress.plugins.module_utils._apply import converge
from ansible_collections.meshops.istio_egress.plugins.module_utils._bypass_warnings import manager_of, warn_of_cluster, warn_of_manager
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, WAIT_OPTIONS
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Plan
from ansible_collections.meshops.istio_egress.plugins.module_utils._rollouts import Onlooker
from ansible_collections.meshops.istio_egress.plugins.module_utils._writing import WritingModule

OPTIONS = {
    "namespace": {"type": "str"},
    "workload": {"type": "str"},
    **_bypass.OPTIONS,
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    **ISTIO_OPTIONS,
    **WAIT_OPTIONS,
}


def main() -> None:
    module = WritingModule(OPTIONS, required_together=[("namespace", "workload")])
    params = module.params
    with module.errors_in_plain_words():
        given = _bypass.parse(params) if params["state"] == "present" else None
        scope = _Mesh(module, given) if params["workload"] is None else _Workload(module, given)
        onlooker = Onlooker(scope.cluster, params["wait_timeout"], params["istio_namespace"]) if module.looks else None
        plan, outcome = converge(scope.plan, scope.cluster, module.check_mode, onlooker.follow if onlooker else None)
        result = scope.returns(plan)
        if given:
            module.warn_all(scope.warnings(plan))
        module.finish(plan, outcome, **result, **module.followed(onlooker))


class _Mesh:
    """The default for new pods: values of an injector that somebody installed."""

    def __init__(self, module: WritingModule, given: dict | None) -> None:
        self._params, self._given, self.cluster = module.params, given, module.cluster()

    def plan(self) -> Plan:
        self._live = _control_plane.injector_config_map(self.cluster, self._params["istio_namespace"], self._params["revision"])
        return _bypass.plan_mesh(self._live, self._given)

    def returns(self, plan: Plan) -> dict:
        self._texts = _bypass.of_values(plan.changes[-1].object if plan else self._live)
        self._owner = _control_plane.owner_of_injector(self._live, {_bypass.SETTINGS[o].value: text for o, text in self._texts.items()})
        return {
            "ranges": _bypass.as_lists(self._texts),
            "previous": _bypass.as_lists(_bypass.of_values(self._live)),
            "owner": self._owner.name,
            "owner_values": self._owner.values,
        }

    def warnings(self, plan: Plan) -> list[str]:
        """Values that the owner does not know of are lost when they are written again; those that are back where they were are not."""
        found = warn_of_cluster(self.cluster, None, {"new pods": self._texts})
        if plan and _bypass.is_ours(plan.changes[-1].object) and self._owner.overwritten:
            found.append(
                f"The values of the injector are managed by {self._owner.name}, and the ranges will be overwritten {self._owner.overwritten}. "
                f"To keep them, add there:\n{self._owner.values}"
            )
        return found


class _Workload:
    """A workload: annotations in its pod template."""

    def __init__(self, module: WritingModule, given: dict | None) -> None:
        self._params, self._given, self._namespace = module.params, given, module.params["namespace"]
        self._kind, self._name = _bypass.parse_workload(self._params["workload"])
        self.cluster = module.cluster()

    def plan(self) -> Plan:
        live = self.cluster.get(self._kind, self._namespace, self._name)
        if live is None:
            raise _bypass.missing(self._kind, self._name, self._namespace)
        self._live = live
        self._default = _bypass.of_values(_control_plane.injector_if_any(self.cluster, self._params["istio_namespace"], self._params["revision"]))
        return _bypass.plan_workload(live, self._given, self._default)

    def returns(self, plan: Plan) -> dict:
        self._texts = self._whole(plan.changes[-1].object if plan else self._live)
        manager = manager_of(self._live)
        return {
            "ranges": _bypass.as_lists(self._texts),
            "previous": _bypass.as_lists(self._whole(self._live)),
            "owner": manager[0] if manager else None,
        }

    def warnings(self, plan: Plan) -> list[str]:
        whose = f"{self._kind} {self._namespace}/{self._name}"
        found = warn_of_cluster(self.cluster, self._namespace, {whose: self._texts})
        return found + (warn_of_manager(self._live, self._given) if plan else [])

    def _whole(self, workload: dict) -> dict:
        return _bypass.in_force(_bypass.of_template(workload), self._default)


if __name__ == "__main__":
    main()
