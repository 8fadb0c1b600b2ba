#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_egress_gateway_deploy
short_description: Find an Istio egress gateway, or deploy one
version_added: 0.1.0
description:
  - Looks for an egress gateway, however it was installed (istioctl, Helm with any release name, by hand, the Kubernetes Gateway API). A gateway is a
    Service whose pods run Istio's proxy as C(router); names of objects decide nothing about that.
  - Gateways of all purposes run the same proxy, so which of them is for egress is told by the first of these signs. This module made it; it has port
    15443 or the class C(istio-east-west), then it is for east-west traffic; istioctl's component; the word egress, ingress or eastwest in its usual
    labels (C(istio), C(app), C(app.kubernetes.io/name), the name of its Gateway), in the Service's name, in the namespace's name; a VirtualService
    sends clients of the mesh there, then it is for egress; a Service of type C(LoadBalancer) or C(NodePort), then it is for ingress. One without
    any sign is not used unless it is named. The result lists all that were found, with the sign.
  - Where there is none, one is deployed, with ServiceAccount, Deployment, Service, PodDisruptionBudget and, when asked for, HorizontalPodAutoscaler.
    Istio's injector fills in the proxy. The task waits until it serves.
  - One that this module made is kept as the options have it; what is not given stays as it is. One of somebody else is used and not changed.
  - A pod of it that ends takes requests until clients have learnt that it goes, and ends when its connections have ended, so that a rolling restart
    loses no request.
options:
  namespace:
    description:
      - Namespace of the gateway. It must exist.
      - Without it all namespaces are looked through, and a new gateway comes into that of O(istio_namespace).
        A namespace of its own is better where TLS is originated, since the gateway may read the Secrets beside it.
    type: str
  name:
    description:
      - Name of the gateway's Service, and of all objects of one that is deployed. Without it any egress gateway that is found will do, and a
        new one is called V(istio-egressgateway).
    type: str
  ports:
    description:
      - Ports of the Service, for a new gateway 80 and 443. They lead to the same port of the pods, those below 1024 to one that is 8000 higher.
      - Ports that the Service has beside them stay, since routes of others may need them.
    type: list
    elements: int
  replicas:
    description:
      - Number of pods, for a new gateway 2.
    type: int
  autoscale:
    description:
      - Lets a HorizontalPodAutoscaler set the number of pods. O(replicas) takes it away again.
    type: dict
    suboptions:
      min:
        description:
          - The least number of pods.
        type: int
        default: 2
      max:
        description:
          - The greatest number of pods.
        type: int
        required: true
      cpu:
        description:
          - CPU that the pods shall use on average, in percent of what they request.
        type: int
        default: 80
  resources:
    description:
      - C(requests) and C(limits) of the proxy, as in a container of Kubernetes. For a new gateway those that istioctl sets.
    type: dict
  drain_timeout:
    description:
      - Seconds that a pod which ends leaves to open connections, for a new gateway 60. It ends earlier when there are none left.
    type: int
  read_secrets:
    description:
      - Whether the gateway's account may read the Secrets of its namespace, for a new gateway V(true). istiod hands a gateway the key of a client
        certificate (C(credentialName)) only then; a CA certificate alone it hands out without. A change takes effect when istiod asks again, after one
        to five minutes.
      - The account that runs the task must have these rights itself, or the right to C(escalate).
    type: bool
  revision:
    description:
      - Revision of the control plane whose injector makes the proxy, as in the label C(istio.io/rev); V(default) for one installed without a revision, which
        is also what a new gateway gets. A change replaces the pods.
    type: str
  state:
    description:
      - V(present) finds or deploys a gateway. V(absent) removes one that this module made, and refuses while hosts are sent through it.
    type: str
    choices: [present, absent]
    default: present
  wait:
    description:
      - Whether the task returns only when the gateway serves, that is when the rollout is done, each proxy is ready and the Service leads to it.
    type: bool
    default: true
  wait_timeout:
    description:
      - How many seconds to wait for that before the task fails. The objects that were written stay.
    type: int
    default: 120
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.istio
  - meshops.istio_egress.attributes
seealso:
  - module: meshops.istio_egress.istio_egress_gateway
  - name: Installing gateways
    description: What Istio's documentation says about gateways, injection and their namespaces.
    link: https://istio.io/latest/docs/setup/additional-setup/gateway/
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: Find the egress gateway, or deploy one
  meshops.istio_egress.istio_egress_gateway_deploy:
  register: egress

- name: Send a host through it
  meshops.istio_egress.istio_egress_gateway:
    namespace: demo
    gateway: "{{ egress.gateway }}"
    hosts:
      - edition.cnn.com

- name: A gateway in a namespace of its own that grows with its load
  meshops.istio_egress.istio_egress_gateway_deploy:
    namespace: istio-egress
    name: payments-egress
    autoscale:
      max: 6
    resources:
      requests: {cpu: 500m, memory: 256Mi}
      limits: {memory: 1Gi}

- name: Remove it, when no host goes through it any more
  meshops.istio_egress.istio_egress_gateway_deploy:
    namespace: istio-egress
    name: payments-egress
    state: absent
"""

RETURN = r"""
gateway:
  description: Namespace and name of the gateway's Service, as the option O(meshops.istio_egress.istio_egress_gateway#module:gateway) takes it.
  returned: success
  type: str
  sample: istio-system/istio-egressgateway
made_here:
  description: Whether the gateway is of this module, which may then change and remove it.
  returned: success
  type: bool
  sample: false
installed_by:
  description: Who installed the gateway, told by the marks that installers leave.
  returned: with O(state=present)
  type: str
  sample: istioctl
found_by:
  description: Why this gateway was taken.
  returned: with O(state=present)
  type: str
  sample: "label operator.istio.io/component: EgressGateways"
found:
  description: All gateways that were there before the task, of any purpose, and what tells the purpose.
  returned: with O(state=present)
  type: list
  elements: dict
  sample:
    - gateway: istio-system/istio-ingressgateway
      purpose: ingress
      reason: "label operator.istio.io/component: IngressGateways"
      installed_by: istioctl
      ready: 1
ports:
  description: The ports of its Service, and where they lead in the pods.
  returned: with O(state=present)
  type: list
  elements: dict
  sample: [{port: 80, target_port: 8080, name: http2}, {port: 443, target_port: 8443, name: https}]
replicas:
  description: How many pods it shall have.
  returned: with O(state=present), where it is known
  type: int
  sample: 2
ready:
  description: How many of its proxies are ready.
  returned: with O(state=present)
  type: int
  sample: 2
objects:
  description: The objects that were (in check mode, would be) written.
  returned: success
  type: list
  elements: dict
  sample: [{kind: Deployment, namespace: istio-system, name: istio-egressgateway, action: create}]
steps:
  description: What was (in check mode, would be) done, in order, a line each.
  returned: success
  type: list
  elements: str
  sample: ["+ deployment     istio-system/istio-egressgateway  2 replicas", "  wait           gateway istio-system/istio-egressgateway serves"]
proxies:
  description: The proxies of the gateway, and those that are not ready.
  returned: when O(wait=true), outside check mode
  type: dict
  sample: {total: 2, following: 2, looked_at: 2, pending: []}
verified:
  description: Whether the gateway was seen to serve.
  returned: success
  type: bool
  sample: true
follow_seconds:
  description: How long it took until it served.
  returned: success
  type: float
  sample: 4.5
requests:
  description: How many requests were sent to the API server.
  returned: success
  type: int
  sample: 24
"""

from ansible_collections.meshops.istio_egress.plugins.module_utils import _egress_gateways, _gateway, _gateway_workload
from ansible_collections.meshops.istio_egress.plugins.module_utils._apply import converge
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, WAIT_OPTIONS
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Plan
from ansible_collections.meshops.istio_egress.plugins.module_utils._writing import WritingModule

OPTIONS = {
    "namespace": {"type": "str"},
    "name": {"type": "str"},
    "ports": {"type": "list", "elements": "int"},
    "replicas": {"type": "int"},
    "autoscale": {
        "type": "dict",
        "options": {"min": {"type": "int", "default": 2}, "max": {"type": "int", "required": True}, "cpu": {"type": "int", "default": 80}},
    },
    "resources": {"type": "dict"},
    "drain_timeout": {"type": "int"},
    "read_secrets": {"type": "bool", "no_log": False},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    **ISTIO_OPTIONS,
    "revision": {"type": "str"},  # without a default: a gateway that is there stays with its own
    **WAIT_OPTIONS,
}


def main() -> None:
    module = WritingModule(OPTIONS, mutually_exclusive=[("replicas", "autoscale")])
    with module.errors_in_plain_words():
        settings = _gateway_workload.parse(module.params)
        cluster = module.cluster()
        present = module.params["state"] == "present"
        task = _Present(module, cluster, settings) if present else _Absent(module, cluster)
        watcher = _egress_gateways.ServiceWatcher(cluster, module.params["wait_timeout"]) if present and module.looks else None
        plan, outcome = converge(task.plan, cluster, module.check_mode, watcher.follow if watcher else None)
        result = task.returns(plan)
        if present:
            result |= module.followed(watcher)
        if watcher:
            result["ready"] = watcher.proxies["following"]
        module.finish(plan, outcome, **result)


class _Present:
    """A gateway that is found, or else deployed."""

    def __init__(self, module: WritingModule, cluster: Cluster, settings: _gateway_workload.Settings) -> None:
        self._module, self._cluster, self._settings = module, cluster, settings
        self._name, self._namespace = module.params["name"], module.params["namespace"]
        self._istio_namespace = module.params["istio_namespace"]

    def plan(self) -> Plan:
        self._found = _egress_gateways.discover(self._cluster, self._namespace, self._istio_namespace)
        place = self._namespace or self._istio_namespace, self._name or _gateway_workload.DEFAULT_NAME
        if self._name:
            self._chosen = next((f for f in self._found if f.place == place), None)
        else:
            self._chosen = _gateway_workload.choose(self._found, self._istio_namespace)
        if self._chosen and not self._chosen.made_here:
            return self._use(self._chosen)
        self._place = self._chosen.place if self._chosen else place
        self._live = _egress_gateways.read_workload(self._cluster, *self._place)
        return _gateway_workload.plan_present(*self._place, self._settings, self._live)

    def _use(self, found: _gateway_workload.Found) -> Plan:
        """Somebody else's, as it is. What it lacks is an error where it was named, and a warning where any one will do."""
        self._place, self._live = found.place, {"Service": found.service, "Deployment": found.deployment}
        unmet = _gateway_workload.unmet(found, self._settings)
        if unmet and self._name:
            raise _gateway.GatewayError(f"{unmet}\nChange it where it was installed, leave the options out, or give the name of a new gateway.")
        if unmet:
            self._module.warn_all([f"{unmet} Change it where it was installed, or give the name of a new gateway."])
        return Plan((_gateway_workload.serving(found.reference),))

    def returns(self, plan: Plan) -> dict:
        now = {**self._live, **{change.kind: change.after for change in plan.final()}}
        if not self._chosen:
            self._module.warn_all(_gateway_workload.doubts(self._found, self._place))
        why = "it was named" if self._name else self._chosen.reason if self._chosen else "there was none for egress"
        found = [f.describe() for f in self._found]
        ready = self._chosen.ready if self._chosen else 0
        return {"found_by": why, "found": found, "ready": ready, **_gateway_workload.describe(now["Service"], now["Deployment"])}


class _Absent:
    """A gateway that was made here is removed, unless somebody goes through it."""

    def __init__(self, module: WritingModule, cluster: Cluster) -> None:
        self._module, self._cluster = module, cluster

    def plan(self) -> Plan:
        params = self._module.params
        self._place = params["namespace"] or params["istio_namespace"], params["name"] or _gateway_workload.DEFAULT_NAME
        if not params["name"]:
            made = _egress_gateways.made_here(self._cluster, params["namespace"], params["istio_namespace"])
            if len(made) > 1:
                names = ", ".join("/".join(place) for place in made)
                raise _gateway.GatewayError(f"There are {len(made)} gateways of this module: {names}.\nSay with namespace and name which one shall go.")
            if not made:
                return Plan()
            [self._place] = made
        live = _egress_gateways.read_workload(self._cluster, *self._place)
        plan = _gateway_workload.plan_absent(live)
        if plan:
            routes = _gateway.read_routes(self._cluster.list("ServiceEntry"))
            _gateway_workload.check_unused(*self._place, routes, self._cluster.list("VirtualService"))
        return plan

    def returns(self, plan: Plan) -> dict:
        return {"gateway": "/".join(self._place), "made_here": bool(plan)}


if __name__ == "__main__":
    main()
