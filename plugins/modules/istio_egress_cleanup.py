#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_egress_cleanup
short_description: Take back everything that this collection made in a mesh
version_added: 0.1.0
description:
  - Finds what the modules of this collection made, in a namespace or in the whole cluster, by the label C(app.kubernetes.io/managed-by=istio-egress)
    and by the annotations that keep what was there before, and takes it back.
  - Objects of the collection are deleted. In objects of others (the mesh config, Sidecar resources, pod templates, the injector's values) what was
    there before is put back, unless somebody changed it since.
  - It goes in an order in which no request is lost that gets out at the end, which is NetworkPolicies, modes, ranges around sidecars, the clients' ways
    to gateways, the rest of those ways, declared hosts, gateways that the collection deployed. Each step waits until the sidecars concerned follow.
  - Test sources and their namespaces, which the role P(meshops.istio_egress.test_source#role) makes, are left to that role. The playbook
    C(meshops.istio_egress.cleanup) does both.
  - Nothing else is touched. In check mode the result lists what would go.
options:
  namespace:
    description:
      - Namespace whose clients are meant; what was made for them in the namespaces of gateways goes, too, and what concerns the mesh stays.
      - Without it everything in the cluster is meant, the mode and the ranges of the mesh included.
    type: str
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.istio
  - meshops.istio_egress.wait
  - meshops.istio_egress.attributes
seealso:
  - module: meshops.istio_egress.istio_outbound_mode
  - module: meshops.istio_egress.istio_egress_bypass
  - module: meshops.istio_egress.istio_egress_gateway
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: See what would go, of a namespace
  meshops.istio_egress.istio_egress_cleanup:
    namespace: demo
  check_mode: true
  register: found

- name: Take back what was made for a namespace
  meshops.istio_egress.istio_egress_cleanup:
    namespace: demo

- name: Take back everything in the cluster
  meshops.istio_egress.istio_egress_cleanup:
"""

RETURN = r"""
kept:
  description: What is of this collection and stays, with the reason.
  returned: success
  type: list
  elements: str
  sample: ["Gateway istio-system/egress-istio-egressgateway stays, since VirtualService istio-system/egress-web.shop-a is bound to it"]
objects:
  description: The objects that were (in check mode, would be) deleted or put back.
  returned: success
  type: list
  elements: dict
  sample: [{kind: ServiceEntry, namespace: demo, name: egress-default-tls, action: delete}]
steps:
  description: What was (in check mode, would be) done, in order, a line each.
  returned: success
  type: list
  elements: str
  sample: ["- sidecar        demo/egress-mode  the mode of namespace demo is left to others again"]
follow_seconds:
  description: How long sidecars and rollouts took to follow, in all steps together.
  returned: success
  type: float
  sample: 1.4
requests:
  description: How many requests were sent to the API server.
  returned: success
  type: int
  sample: 31
"""

from ansible_collections.meshops.istio_egress.plugins.module_utils import _cleanup, _plan
from ansible_collections.meshops.istio_egress.plugins.module_utils._apply import converge
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError, if_allowed
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, WAIT_OPTIONS
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import MANAGED_BY, MANAGED_BY_LABEL
from ansible_collections.meshops.istio_egress.plugins.module_utils._rollouts import Onlooker
from ansible_collections.meshops.istio_egress.plugins.module_utils._watcher import Watcher
from ansible_collections.meshops.istio_egress.plugins.module_utils._writing import WritingModule

OPTIONS = {"namespace": {"type": "str"}, "istio_namespace": ISTIO_OPTIONS["istio_namespace"], **WAIT_OPTIONS}


def main() -> None:
    module = WritingModule(OPTIONS)
    params = module.params
    with module.errors_in_plain_words():
        cluster, kept = module.cluster(), []

        def make_plan() -> _plan.Plan:
            live = {kind: _list(cluster, kind, params) for kind in _cleanup.KINDS if kind != "Secret"}
            secrets, unseen = _labelled(cluster, "Secret")
            records, unseen_records = _labelled(cluster, "ConfigMap")
            live["ConfigMap"] += [o for o in records if o["metadata"]["namespace"] != params["istio_namespace"]]
            plan, stays = _cleanup.plan({**live, "Secret": secrets}, params["namespace"], params["istio_namespace"])
            kept[:] = [*stays, *unseen, *unseen_records]
            return plan

        watcher = Watcher(cluster, params["wait_timeout"], params["istio_namespace"])
        onlooker = Onlooker(cluster, params["wait_timeout"], params["istio_namespace"])
        plan, outcome = converge(make_plan, cluster, module.check_mode, onlooker.beside(watcher.follow) if module.looks else None)
        module.warn_all([*watcher.warnings, *onlooker.warnings])
        module.finish(plan, outcome, kept=kept)


def _list(cluster: Cluster, kind: str, params: dict) -> list:
    """All objects of a kind, of ConfigMaps those beside the control plane; none of a kind that the cluster does not know (Istio is gone)."""
    try:
        return cluster.list(kind, params["istio_namespace"] if kind == "ConfigMap" else None)
    except ClusterError as error:
        if error.is_gone:
            return []
        raise


def _labelled(cluster: Cluster, kind: str) -> tuple[list, list[str]]:
    """The objects of a kind with our label; what is said where the account may not list any."""
    found = if_allowed(cluster.list, kind, labels=f"{MANAGED_BY_LABEL}={MANAGED_BY}")
    if found is None:
        return [], [f"{kind}s of the collection stay, if there are any, since the account may not list {kind.lower()}s"]
    return found, []


if __name__ == "__main__":
    main()
