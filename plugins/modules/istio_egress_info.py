#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_egress_info
short_description: Show the egress of an Istio mesh, namespace by namespace
version_added: 0.1.0
description:
  - Shows for each namespace the outbound mode that is written and the one that each sidecar really has, the hosts that its workloads may reach, directly or
    through a gateway, who declared them, and findings, that is what is odd or does not do what it looks like.
  - It reads objects, pods and proxies, and changes nothing.
options:
  namespace:
    description:
      - The namespace to show. By default every namespace that has a sidecar.
    type: str
  revision:
    description:
      - Revision of the control plane whose mesh config is read.
    type: str
    default: default
notes:
  - Needs the rights of C(docs/rbac.md), section istio_egress_info. What may not be read is left out, with a warning.
  - Of more than 100 sidecars in a namespace, every n-th is read; the others have the mode null and are not judged.
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.istio
  - meshops.istio_egress.attributes.read_only
seealso:
  - module: meshops.istio_egress.istio_egress_explain
  - module: meshops.istio_egress.istio_egress_check
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: What may the workloads of a namespace reach?
  meshops.istio_egress.istio_egress_info:
    namespace: demo
  register: egress

- name: Show it
  ansible.builtin.debug:
    var: egress.table

- name: Fail when an entry of somebody else opens more than the policies say
  ansible.builtin.assert:
    that: egress.findings | selectattr('code', 'equalto', 'opened-by-others') | list | length == 0
"""

RETURN = r"""
namespaces:
  description: One entry for each namespace.
  returned: success
  type: list
  elements: dict
  contains:
    namespace:
      description: Its name.
      type: str
      sample: demo
    mode:
      description: The outbound mode that is written for its workloads. Null where the mesh config cannot be read.
      type: str
      sample: REGISTRY_ONLY
    source:
      description: The object that the mode is written in.
      type: str
      sample: Sidecar demo/default
    proxies:
      description:
        - Its sidecars, each with C(pod), C(mode) (in force), C(written) and C(source) (for this pod), C(around) (ranges and ports that go around it) and
          C(unread) (why it could not be read, or null).
      type: list
      elements: dict
      sample: [{pod: sleep-6d5f7c9b8-x2x7k, mode: REGISTRY_ONLY, written: REGISTRY_ONLY, source: Sidecar demo/default, around: {}, unread: null}]
    hosts:
      description:
        - Hosts that its workloads may reach, each with C(host), C(ports), C(gateway) (or null), C(managed) (by this collection), C(owner), C(object), and
          where a host entry has them, C(requested_by), C(ticket), C(reason) and C(expires).
      type: list
      elements: dict
      sample: [{host: www.google.com, ports: [tls/443], gateway: null, managed: true, owner: 'policy "web"', object: ServiceEntry demo/egress-web-443-1}]
    gateways:
      description: The gateways that hosts go through, as namespace and name of their Services.
      type: list
      elements: str
      sample: [istio-system/istio-egressgateway]
    findings:
      description: The findings of this namespace, as below.
      type: list
      elements: dict
      sample: []
findings:
  description: The findings of all namespaces, the worst first.
  returned: success
  type: list
  elements: dict
  contains:
    namespace:
      description: The namespace that it concerns.
      type: str
      sample: demo
    code:
      description:
        - V(mode-not-in-force), V(not-imported), V(gateway-down), V(opened-by-others), V(no-sidecar), V(bypass), V(expired), V(declared-twice),
          V(not-enforced) or V(not-read).
      type: str
      sample: opened-by-others
    level:
      description: V(error), V(warning) or V(info).
      type: str
      sample: warning
    object:
      description: The object that it is about.
      type: str
      sample: ServiceEntry team/legacy
    message:
      description: What is odd.
      type: str
      sample: "It opens other.example.com http/80 for demo, which no policy declares (owner: team-web)."
    fix:
      description: The way out.
      type: str
      sample: Have its owner remove it or set exportTo, or declare other.example.com with istio_egress_host.
table:
  description: All of it as lines of text, for printing.
  returned: success
  type: list
  elements: str
  sample: ["demo: REGISTRY_ONLY (Sidecar demo/default), 1 sidecars"]
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _control_plane, _info, _mode
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError, if_allowed
from ansible_collections.meshops.istio_egress.plugins.module_utils._inquiry import Inquiry
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, EgressModule
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import sidecars, workloads
from ansible_collections.meshops.istio_egress.plugins.module_utils._watcher import PARALLEL, SAMPLE, Watcher

OPTIONS = {"namespace": {"type": "str"}, **ISTIO_OPTIONS}


def see(watcher: Watcher, pods: list[Mapping[str, Any]]) -> list[_info.Seen]:
    """The pods of a namespace that are workloads, with what their sidecars have."""
    running = workloads(pods)
    proxies = {proxy.pod: proxy for proxy in sidecars(running)}
    step = max(1, -(-len(proxies) // SAMPLE))
    looked_at = set(list(proxies)[::step])

    def one(pod: Mapping[str, Any]) -> _info.Seen:
        name = pod["metadata"]["name"]
        if name not in proxies:
            return _info.Seen(pod, False)
        if name not in looked_at:
            return _info.Seen(pod, True, unread=f"one in {step} is read")
        try:
            return _info.Seen(pod, True, watcher.read(proxies[name]).mode)
        except ClusterError as error:
            return _info.Seen(pod, True, unread=f"{error.status} {error.reason}")

    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(one, running))


def mesh_mode(cluster: Cluster, istio_namespace: str, revision: str, warnings: list[str]) -> tuple[str, str] | None:
    config_map = if_allowed(_control_plane.mesh_config_map, cluster, istio_namespace, revision)
    if config_map is None:
        warnings.append("The mesh config could not be read (403); modes that come from it are not known.")
        return None
    in_force = _mode.mesh_mode(config_map)
    return in_force.mode, in_force.source


def gateways_ready(inquiry: Inquiry, references: set[str]) -> dict[str, bool | None]:
    """Whether a gateway proxy is ready in the namespace of each gateway's Service; None where that may not be seen."""
    return {reference: if_allowed(inquiry.serves, *reference.split("/", 1)) for reference in references}


def main() -> None:
    module = EgressModule(OPTIONS)
    params, namespace = module.params, module.params["namespace"]
    with module.errors_in_plain_words():
        cluster = module.cluster()
        inquiry = Inquiry(cluster, params["istio_namespace"])
        watcher = Watcher(cluster, 0, params["istio_namespace"])
        pods = cluster.list("Pod", namespace)
        spaces = [namespace] if namespace else sorted({p.namespace for p in sidecars(pods)})
        world = inquiry.world(namespace or "default")
        mesh = mesh_mode(cluster, params["istio_namespace"], params["revision"], inquiry.warnings)
        ready = gateways_ready(inquiry, _info.gateways(world))
        today = date.today()
        found = []
        for space in spaces:
            seen = see(watcher, [p for p in pods if p["metadata"]["namespace"] == space])
            found.append(_info.overview(space, seen, world, mesh, ready, today))
        module.warn_all(inquiry.warnings)
        findings = sorted((f for s in found for f in s["findings"]), key=lambda f: _info.LEVELS.index(f["level"]))
        module.exit_json(changed=False, namespaces=found, findings=findings, table=_info.lines(found))


if __name__ == "__main__":
    main()
