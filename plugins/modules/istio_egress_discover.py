#!/usr/bin/python
# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: istio_egress_discover
short_description: Learn what the workloads of a namespace talk to outside the mesh
version_added: 0.1.0
description:
  - Reads the access logs of the sidecars of a namespace, and says which hosts its workloads asked for, how often, who asked, and whether the host is
    declared, was let out undeclared, or was refused.
  - Returns host entries for all that is let out and not declared, ready for M(meshops.istio_egress.istio_egress_host) or
    M(meshops.istio_egress.istio_egress_gateway), others for what is refused, and the declared hosts that nobody asked for.
  - It proposes what was seen by name, that is by the Host header of HTTP or the server name of TLS. Addresses without a name are listed beside, since
    they tell neither whose they are nor whether they stay.
  - It reads and changes nothing. What it can see begins with the oldest line that the node still keeps of each log, which it says.
options:
  namespace:
    description:
      - Namespace of the workloads.
    type: str
    required: true
  workload:
    description:
      - One workload alone, as kind and name (V(deployment/web), V(statefulset/db), V(pod/web-0)). A name alone is a Deployment. By default all of them.
    type: str
  since_seconds:
    description:
      - Only requests of the last so many seconds. By default all that the logs have.
    type: int
  istio_namespace:
    description:
      - Root namespace of the mesh, where istiod runs.
    type: str
    default: istio-system
notes:
  - Needs the rights of C(docs/rbac.md), section istio_egress_discover.
  - Needs access logs in Istio's default format, text or JSON (C(meshConfig.accessLogFile) or a Telemetry resource). A sidecar without them is named in a
    warning.
  - Of TLS that no object declares, the log has the server name only on ports where some TLS host is declared for the namespace. Declare any host on port
    443 before the time that you want to learn from.
  - Pods without a sidecar, and ranges that go around it, leave no trace.
extends_documentation_fragment:
  - meshops.istio_egress.auth
  - meshops.istio_egress.attributes.read_only
seealso:
  - module: meshops.istio_egress.istio_egress_host
  - module: meshops.istio_egress.istio_egress_info
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: What do the workloads of a namespace talk to?
  meshops.istio_egress.istio_egress_discover:
    namespace: demo
  register: seen

- name: Show it
  ansible.builtin.debug:
    var: seen.table

- name: Declare all of it, before the namespace is closed
  meshops.istio_egress.istio_egress_host:
    namespace: demo
    policy: learned
    hosts: "{{ seen.hosts }}"
  when: seen.hosts | length > 0

- name: Fail when a host that has to work was refused in the last hour, after the namespace was closed
  meshops.istio_egress.istio_egress_discover:
    namespace: demo
    since_seconds: 3600
  register: seen
  failed_when: "'api.example.com' in seen.refused | map(attribute='host')"
"""

RETURN = r"""
hosts:
  description: Host entries for what was let out by name and is not declared.
  returned: success
  type: list
  elements: dict
  sample: [{host: httpbin.org, ports: [80]}, {host: www.google.com, ports: [443]}]
refused:
  description:
    - Host entries for what was refused by name, is not declared, and was not let out in the time of the logs. Declare only those that you know, since a
      refusal may be just what was meant.
  returned: success
  type: list
  elements: dict
  sample: [{host: other.example.com, ports: [80]}]
uses:
  description: One entry for each destination, those with a name and most requests first.
  returned: success
  type: list
  elements: dict
  contains:
    host:
      description: The name that was asked for. Null where the log has none.
      type: str
      sample: www.google.com
    port:
      description: The port.
      type: int
      sample: 443
    protocol:
      description: V(HTTP), V(TLS) or V(TCP), as far as the sidecar saw.
      type: str
      sample: TLS
    outcomes:
      description: What the sidecar did, V(declared) (sent it where an object says), V(passed) (let it out although nobody declares it) or V(refused).
      type: list
      elements: str
      sample: [passed]
    requests:
      description: How many requests, for TLS and TCP how many connections.
      type: int
      sample: 12
    workloads:
      description: Who asked, as kind and name.
      type: list
      elements: str
      sample: [deployment/web]
    addresses:
      description: Addresses that it was asked for at, five at most.
      type: list
      elements: str
      sample: [203.0.113.12]
    first:
      description: When it was asked for first, in UTC.
      type: str
      sample: "2026-11-22T07:30:31.487Z"
    last:
      description: When it was asked for last, in UTC.
      type: str
      sample: "2026-11-22T09:12:02.101Z"
    note:
      description: Why no host entry is proposed for it, and what to do. Null where one is, or where it is declared.
      type: str
      sample: "TCP has no name: declare it by one of your own, {host: NAME, addresses: [203.0.113.13], ports: [tcp/5432]}."
unnamed:
  description: The entries of RV(uses) that are not declared, and that no host entry can be proposed for.
  returned: success
  type: list
  elements: dict
  sample: []
unused:
  description: Hosts and ports that this collection declared for the namespace, and that nobody asked for in the time of the logs.
  returned: success
  type: list
  elements: dict
  sample: [{host: old.example.com, ports: [tls/443], object: ServiceEntry demo/egress-web-443-1}]
pods:
  description:
    - The sidecars whose logs were read, each with C(pod), C(workload), C(since) (its oldest line, or null without one) and C(logs) (whether it writes an
      access log, null where that is not known).
  returned: success
  type: list
  elements: dict
  sample: [{pod: web-6d5f7c9b8-x2x7k, workload: deployment/web, since: "2026-11-22T07:00:02.120Z", logs: true}]
table:
  description: The uses as lines of text, for printing.
  returned: success
  type: list
  elements: str
  sample: ["DESTINATION         PROTOCOL  REQUESTS  OUTCOME  WORKLOADS       LAST SEEN"]
"""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _discovery, _explain, _info, _sidecars, _source
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._injected import PROXY
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import ISTIO_OPTIONS, EgressModule
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import ask_for, sidecars, workloads
from ansible_collections.meshops.istio_egress.plugins.module_utils._traffic import parse_lines
from ansible_collections.meshops.istio_egress.plugins.module_utils._watcher import PARALLEL

OPTIONS = {
    "namespace": {"type": "str", "required": True},
    "workload": {"type": "str"},
    "since_seconds": {"type": "int"},
    "istio_namespace": ISTIO_OPTIONS["istio_namespace"],
}


def writes_access_log(cluster: Cluster, namespace: str, pod: str) -> bool | None:
    """Whether the listener that takes what nobody declares has an access log; None where that may not be seen."""
    try:
        answer = ask_for(cluster, namespace, pod, "config_dump?resource=dynamic_listeners&name_regex=^virtualOutbound$")
        return '"access_log"' in json.dumps(answer)
    except ClusterError as error:
        if error.status != 403 and not error.is_gone:
            raise
        return None


def declared(cluster: Cluster, namespace: str, root_namespace: str) -> list[dict[str, Any]]:
    """The hosts that are declared for the namespace."""
    world = _explain.World({kind: cluster.list_visible(kind, namespace) for kind in ("ServiceEntry", "Sidecar")}, root_namespace)
    return _info.hosts_of(namespace, world, _sidecars.effective(world.of("Sidecar"), namespace, {}, root_namespace))


def inside(cluster: Cluster, namespace: str) -> dict[str, str]:
    """What has an address of the cluster, as far as it may be seen."""
    found = {}
    for service in cluster.list_visible("Service", namespace):
        for address in service["spec"].get("clusterIPs") or ():
            found[address] = f"Service {_explain.name_of(service)}"
    for pod in cluster.list_visible("Pod", namespace):
        found[(pod.get("status") or {}).get("podIP")] = f"Pod {_explain.name_of(pod)}"
    return found


def main() -> None:
    module = EgressModule(OPTIONS)
    params, namespace = module.params, module.params["namespace"]
    with module.errors_in_plain_words():
        if params["since_seconds"] is not None and params["since_seconds"] < 1:
            raise _source.SourceError(f"since_seconds is {params['since_seconds']}.\nUse 1 or more, or leave it out for all that the logs have.")
        cluster = module.cluster()
        pods = cluster.list("Pod", namespace)
        pods = workloads(_source.pods_of(pods, namespace, params["workload"]) if params["workload"] else pods)
        owners = {p["metadata"]["name"]: "/".join(_source.owners(p)[-1]) for p in pods}
        proxies = [proxy.pod for proxy in sidecars(pods)]

        def read(pod: str) -> _discovery.Log | None:
            try:
                text = cluster.log(namespace, pod, PROXY, since_seconds=params["since_seconds"])
            except ClusterError as error:
                if not error.is_gone:  # the pod may end meanwhile
                    raise
                return None
            return _discovery.read(owners[pod], parse_lines(text))

        with ThreadPoolExecutor(PARALLEL) as pool:
            logs = {pod: log for pod, log in zip(proxies, pool.map(read, proxies), strict=True) if log}
            silent = [pod for pod, log in logs.items() if log.since is None]
            writes = dict(zip(silent, pool.map(lambda pod: writes_access_log(cluster, namespace, pod), silent), strict=True))
        seen = _discovery.joined(logs.values())
        unclear = any(use.outcomes != {_discovery.DECLARED} for use in seen.values())
        found = _discovery.discover(seen, declared(cluster, namespace, params["istio_namespace"]), inside(cluster, namespace) if unclear else {})
        module.warn_all(_discovery.warnings(namespace, owners, [name for name in owners if name not in proxies], writes))
        module.exit_json(
            changed=False,
            hosts=found.hosts,
            refused=found.refused,
            uses=found.rows,
            unnamed=found.unnamed,
            unused=found.unused,
            pods=[{"pod": pod, "workload": owners[pod], "since": log.since, "logs": writes.get(pod, True)} for pod, log in logs.items()],
            table=_discovery.table(found),
        )


if __name__ == "__main__":
    main()
