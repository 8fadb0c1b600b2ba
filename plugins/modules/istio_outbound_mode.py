#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_outbound_mode
short_description: Read and set what an Istio mesh does with destinations that it does not know
version_added: 0.1.0
description:
  - Sets C(outboundTrafficPolicy.mode), for the whole mesh in the ConfigMap that istiod reads, for a namespace or a workload in a C(Sidecar) resource.
  - In the mesh config only the mode changes; every other byte of that text stays as it was.
    Text in which the mode cannot be changed alone, or that istiod would refuse, is left alone and the task fails with the reason.
  - Waits until the sidecars concerned have the mode in their own configuration, and says which do not and why.
  - What was there before is kept in an annotation of the object that is changed, so that O(state=absent) takes back exactly what was done.
  - Without O(mode) the task reads and changes nothing.
options:
  mode:
    description:
      - V(ALLOW_ANY) lets requests to unknown destinations pass. V(REGISTRY_ONLY) refuses them, HTTP with status 502, TLS and TCP by closing the connection.
      - V(ALLOW_ANY_DYNAMIC_DNS) lets them pass and looks HTTP hosts up by name; it needs Istio 1.31 and can only be set for the whole mesh.
    type: str
    choices: [ALLOW_ANY, REGISTRY_ONLY, ALLOW_ANY_DYNAMIC_DNS]
  namespace:
    description:
      - Namespace that the mode is for. Without it the mode is that of the whole mesh.
    type: str
  selector:
    description:
      - Labels of the pods in O(namespace) that the mode is for. Without it the mode is for all of its pods.
    type: dict
  state:
    description:
      - V(present) sets O(mode). V(absent) takes back what this module set before in the same scope, and does nothing where it set nothing.
    type: str
    choices: [present, absent]
    default: present
  revision:
    description:
      - Revision of the control plane whose mesh config is meant, as in the label C(istio.io/rev); V(default) for one installed without a revision.
    type: str
    default: default
  wait_drain:
    description:
      - Also waits until the sidecars have closed the connections of their former configuration. Without it, a connection that is open to a destination
        that is refused now lives on for the mesh's drain time, 45 seconds by default.
    type: bool
    default: false
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.istio
  - meshops.istio_egress.wait
  - meshops.istio_egress.attributes
seealso:
  - module: meshops.istio_egress.istio_egress_host
  - module: meshops.istio_egress.istio_egress_check
  - name: OutboundTrafficPolicy
    description: Reference of the mesh config.
    link: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-OutboundTrafficPolicy
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: Read the mode of the mesh, and who owns it
  meshops.istio_egress.istio_outbound_mode:
  register: mesh

- name: Refuse unknown destinations for the workloads of one namespace
  meshops.istio_egress.istio_outbound_mode:
    namespace: demo
    mode: REGISTRY_ONLY

- name: Let one workload of it reach anything
  meshops.istio_egress.istio_outbound_mode:
    namespace: demo
    selector:
      app: sleep
    mode: ALLOW_ANY

- name: Take both back
  meshops.istio_egress.istio_outbound_mode:
    namespace: demo
    selector: "{{ item }}"
    state: absent
  loop:
    - app: sleep
    - {}

- name: Refuse unknown destinations in the whole mesh, and end the connections that are open to them
  meshops.istio_egress.istio_outbound_mode:
    mode: REGISTRY_ONLY
    wait_drain: true
  register: tightened

- name: Put back what was there before
  meshops.istio_egress.istio_outbound_mode:
    mode: "{{ tightened.previous_mode }}"
"""

RETURN = r"""
mode:
  description: The mode of the scope after the task (in check mode, as it would be). Null where it is the mesh's and that could not be read.
  returned: success
  type: str
  sample: REGISTRY_ONLY
previous_mode:
  description: The mode of the scope before the task.
  returned: success
  type: str
  sample: ALLOW_ANY
source:
  description: What sets the mode.
  returned: success
  type: str
  sample: Sidecar demo/egress-mode
owner:
  description: Who manages the mesh config, where the scope is the mesh.
  returned: when O(namespace) is not set
  type: str
  sample: istioctl
owner_values:
  description: Lines for the owner's values that keep the mode when the owner writes the mesh config again.
  returned: when O(namespace) is not set
  type: str
  sample: |
    meshConfig:
      outboundTrafficPolicy:
        mode: REGISTRY_ONLY
objects:
  description: The objects that were (in check mode, would be) written.
  returned: success
  type: list
  elements: dict
  sample: [{kind: ConfigMap, namespace: istio-system, name: istio, action: update}]
steps:
  description: What was (in check mode, would be) done, in order, a line each.
  returned: success
  type: list
  elements: str
  sample: ["~ configmap      istio-system/istio  mode ALLOW_ANY → REGISTRY_ONLY"]
proxies:
  description: The sidecars of the scope, how many have the mode, and which do not and why.
  returned: when O(wait=true), outside check mode
  type: dict
  sample: {total: 3, looked_at: 2, following: 2, pending: [{pod: demo/a, reason: Sidecar demo/x sets ALLOW_ANY}]}
verified:
  description: Whether sidecars were read and seen to have the mode; V(false) where there was none to look at.
  returned: success
  type: bool
  sample: true
follow_seconds:
  description: How long the sidecars took to follow.
  returned: success
  type: float
  sample: 0.6
draining:
  description:
    - Sidecars that serve connections of their former configuration still. Until they are through, at the end of the mesh's drain time (45 seconds by
      default), a connection that was open before goes on even to a destination that is refused now. O(wait_drain=true) waits for it.
  returned: when the mode changed and O(wait=true), outside check mode
  type: list
  elements: str
  sample: [demo/sleep-69966f8ffb-9rz8x]
drain_seconds:
  description: How long the sidecars took to close the connections of their former configuration.
  returned: when O(wait_drain=true)
  type: float
  sample: 45.2
requests:
  description: How many requests were sent to the API server, including one for each reading of a sidecar.
  returned: success
  type: int
  sample: 5
"""

from ansible_collections.meshops.istio_egress.plugins.module_utils import _control_plane, _meshconfig, _mode
from ansible_collections.meshops.istio_egress.plugins.module_utils._apply import converge
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, if_allowed
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, WAIT_OPTIONS
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Plan, Wait
from ansible_collections.meshops.istio_egress.plugins.module_utils._writing import WritingModule

OPTIONS = {
    "mode": {"type": "str", "choices": list(_meshconfig.MODES)},
    "namespace": {"type": "str"},
    "selector": {"type": "dict"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "wait_drain": {"type": "bool", "default": False},
    **ISTIO_OPTIONS,
    **WAIT_OPTIONS,
}


def main() -> None:
    module = WritingModule(OPTIONS, required_by={"selector": ["namespace"]})
    with module.errors_in_plain_words():
        cluster = module.cluster()
        result = _Namespace(module, cluster) if module.params["namespace"] else _Mesh(module, cluster)
        watcher = module.watcher()
        plan, outcome = converge(result.plan, cluster, module.check_mode, watcher.follow if watcher else None)
        drain = {}
        if watcher and plan and watcher.verified:
            waits = [step for step in plan.steps if isinstance(step, Wait)]
            if module.params["wait_drain"]:
                drain["drain_seconds"] = sum(watcher.drained(step) for step in waits)
            drain["draining"] = [str(proxy) for step in waits for proxy in watcher.draining(step)]
        result.warn(plan)
        module.finish(plan, outcome, **result.returns(plan), **drain, **module.followed(watcher))


class _Mesh:
    """The whole mesh: a key in the ConfigMap of a control plane that somebody installed."""

    def __init__(self, module: WritingModule, cluster: Cluster) -> None:
        self._module, self._cluster, self._params = module, cluster, module.params
        if self._params["mode"] == _meshconfig.ALLOW_ANY_DYNAMIC_DNS:
            place = self._params["istio_namespace"], self._params["revision"]
            _mode.check_mode_name(self._params["mode"], False, if_allowed(_control_plane.istiod_version, cluster, *place))

    def plan(self) -> Plan:
        self._live = _control_plane.mesh_config_map(self._cluster, self._params["istio_namespace"], self._params["revision"])
        self._before = _mode.mesh_mode(self._live)
        mode = None if self._params["state"] == "absent" else self._params["mode"] or self._before.mode
        return _mode.plan_mesh(self._live, mode, self._params["revision"])

    def returns(self, plan: Plan) -> dict:
        after = _mode.mesh_mode(plan.changes[-1].object if plan else self._live)
        owner = _control_plane.owner_of_mesh_config(self._live, after.mode)
        return {"mode": after.mode, "previous_mode": self._before.mode, "source": after.source, "owner": owner.name, "owner_values": owner.values}

    def warn(self, plan: Plan) -> None:
        """A mode that somebody's values do not know is lost when they write the mesh config again; one that is back where it was is not."""
        after = plan.changes[-1].object if plan else self._live
        owner = _control_plane.owner_of_mesh_config(self._live, _mode.mesh_mode(after).mode)
        if plan and _mode.differs_from_owner(after) and owner.overwritten:
            self._module.warn(
                f"The mesh config is managed by {owner.name}, and the mode will be overwritten {owner.overwritten}. To keep it, add there:\n{owner.values}"
            )


class _Namespace:
    """A namespace or a workload: a Sidecar resource."""

    def __init__(self, module: WritingModule, cluster: Cluster) -> None:
        self._cluster, self._params = cluster, module.params
        self._selector = {str(k): str(v) for k, v in (self._params["selector"] or {}).items()}
        _mode.check_mode_name(self._params["mode"], True, None)

    def plan(self) -> Plan:
        self._live = self._cluster.list_visible("Sidecar", self._params["namespace"])
        self._mesh = self._mode_of_mesh()
        self._before = self._in_force(self._live)
        mode = None if self._params["state"] == "absent" else self._params["mode"]
        if self._params["state"] == "present" and not self._params["mode"]:
            return _mode.read_only(self._before, self._params["namespace"], self._selector)
        return _mode.plan_scope(self._live, self._params["namespace"], self._selector, mode, self._params["istio_namespace"], self._mesh)

    def returns(self, plan: Plan) -> dict:
        after = self._before
        for change in plan.changes:
            left = [r for r in self._live if r is not change.before]
            after = self._in_force(left + ([change.after] if change.after else []))
        before = self._before
        return {"mode": after.mode if after else None, "previous_mode": before.mode if before else None, "source": after.source if after else None}

    def warn(self, plan: Plan) -> None:
        pass

    def _in_force(self, resources: list) -> _mode.InForce | None:
        return _mode.scope_mode(resources, self._params["namespace"], self._selector, self._params["istio_namespace"], self._mesh)

    def _mode_of_mesh(self) -> _mode.InForce | None:
        """None for an account that may not read the mesh config: a namespace's own mode does not depend on it."""
        read = if_allowed(_control_plane.mesh_config_map, self._cluster, self._params["istio_namespace"], self._params["revision"])
        return _mode.mesh_mode(read) if read else None


if __name__ == "__main__":
    main()
