# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Everything that the collection made, found by its label and its annotations, and the order in which it goes.

Pure: live objects go in, a Plan comes out. First what blocks (NetworkPolicies, modes), then what leads around (ranges), then the clients' ways to
gateways, which must have ended before the rest of those ways goes; then the hosts; then gateways that were deployed. So no request that gets out at
the end is lost on the way there. Nothing without our label is deleted; of what others own, our change alone is taken back.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _bypass, _gateway, _gateway_workload, _mode, _sidecars
from ansible_collections.meshops.istio_egress.plugins.module_utils._control_plane import DEFAULT_REVISION, MESH_KEY
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_objects import guard_objects, origination_objects
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Object
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import (
    EVERYTHING_SCOPE,
    KNOWN_SCOPE,
    SCOPE_LABEL,
    id_of,
    is_ours,
    marks_of,
    policy_of,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait, plan_hosts

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
ROUTING = ("VirtualService", "DestinationRule", "Gateway", "AuthorizationPolicy")
"""What makes up the ways through gateways, in the order in which it can go when no client takes them any more."""
KINDS = (*dict.fromkeys(("NetworkPolicy", "Sidecar", "ServiceEntry", *ROUTING, *_gateway_workload.KINDS, *WORKLOADS)), "Secret", "ConfigMap")

Live = Mapping[str, list[Object]]
"""All objects by kind, of every kind in KINDS; of ConfigMaps those of the control plane's namespace and those with our label, of Secrets the latter."""


def plan(live: Live, namespace: str | None, istio_namespace: str) -> tuple[Plan, list[str]]:
    """The steps, and what stays although it is ours, with the reason. `namespace` None means all of them."""
    ours = {kind: [o for o in live[kind] if is_ours(o) and _concerns(o, namespace)] for kind in KINDS}
    steps: list[Change | Wait] = [Change(o, None) for o in ours["NetworkPolicy"]]
    steps += [*_modes(live, namespace, istio_namespace), *_ranges(live, namespace)]
    clients = [v for v in ours["VirtualService"] if _is_clients(v)]
    steps += [Change(v, None, "clients no longer go to the gateway") for v in clients]
    steps += _left(clients)
    staying = [v for v in live["VirtualService"] if v not in ours["VirtualService"]]
    shared, kept = _shared([*ours["Gateway"], *_gateways_of(ours, live)], staying)
    of_hosts = _of_hosts_that_go(ours, live)
    for kind in ROUTING:
        found = shared if kind == "Gateway" else [o for o in ours[kind] if o not in clients]
        steps += [Change(o, None) for o in (*found, *(o for o in live[kind] if id_of(o) in of_hosts and o not in found))]
    for place, policy in sorted({(o["metadata"]["namespace"], policy_of(o)) for o in ours["ServiceEntry"] if policy_of(o)}):
        steps += plan_hosts((), live["ServiceEntry"], place, policy).steps
    steps += [Change(o, None) for o in ours["ServiceEntry"] if not policy_of(o)]
    steps += [Change(o, None, "certificates that a gateway showed") for o in ours["Secret"]]
    steps += [Change(o, None, "the record of a policy") for o in ours["ConfigMap"]]
    for kind in reversed(_gateway_workload.KINDS):
        for obj in filter(_gateway_workload.is_ours, ours[kind]):
            users = _users(obj, [v for v in live["VirtualService"] if v not in ours["VirtualService"]])
            if users:
                kept.append(f"{kind} {_name(obj)} stays, since clients of {', '.join(users)} go through this gateway")
            else:
                steps.append(Change(obj, None))
    return Plan(tuple(steps)), sorted(set(kept))


def _concerns(obj: Mapping[str, Any], namespace: str | None) -> bool:
    """Whether the object is of the namespace, or stands elsewhere for its clients."""
    scope = marks_of(obj).get(SCOPE_LABEL)
    return namespace in (None, obj["metadata"]["namespace"]) or (scope == namespace and scope not in (KNOWN_SCOPE, EVERYTHING_SCOPE))


def _modes(live: Live, namespace: str | None, istio_namespace: str) -> list[Change | Wait]:
    """The mode of the mesh first, since namespaces may go back to it."""
    steps: list[Change | Wait] = []
    mesh = None
    for config_map in live["ConfigMap"]:
        name = config_map["metadata"]["name"]
        if not re.fullmatch(r"istio(-.+)?", name) or MESH_KEY not in (config_map.get("data") or {}):
            continue
        revision = name.removeprefix("istio").removeprefix("-") or DEFAULT_REVISION
        back = _mode.plan_mesh(config_map, None, revision) if namespace is None else Plan()
        steps += back.steps if back else ()
        if revision == DEFAULT_REVISION:
            mesh = _mode.mesh_mode(back.changes[-1].object if back else config_map)
    for resource in live["Sidecar"]:
        if namespace in (None, resource["metadata"]["namespace"]):
            own = [r for r in live["Sidecar"] if r["metadata"]["namespace"] in (resource["metadata"]["namespace"], istio_namespace)]
            back = _mode.plan_scope(own, resource["metadata"]["namespace"], _sidecars.selector_of(resource), None, istio_namespace, mesh)
            if back and back.changes[0].before == resource:
                steps += back.steps
    return steps


def _ranges(live: Live, namespace: str | None) -> list[Change | Wait]:
    steps: list[Change | Wait] = []
    default = dict.fromkeys(_bypass.SETTINGS)
    if namespace is None:
        for config_map in live["ConfigMap"]:
            if _bypass.is_ours(config_map):
                steps += _bypass.plan_mesh(config_map, None).steps
    workloads = [o for kind in WORKLOADS for o in live[kind] if _bypass.is_ours(o) and namespace in (None, o["metadata"]["namespace"])]
    return [*steps, *(step for o in workloads for step in _bypass.plan_workload(o, None, default).steps)]


def _is_clients(virtual_service: Mapping[str, Any]) -> bool:
    return "mesh" in (virtual_service["spec"].get("gateways") or ["mesh"])


def _left(virtual_services: Iterable[Mapping[str, Any]]) -> list[Wait]:
    """One wait for each namespace: no sidecar there sends anything as these VirtualServices said."""
    routes: dict[str, set[tuple[str, int, str]]] = defaultdict(set)
    for obj in virtual_services:
        routes[obj["metadata"]["namespace"]] |= routes_of(obj)
    return [Wait((namespace,), not_routes=frozenset(there)) for namespace, there in sorted(routes.items()) if there]


def routes_of(virtual_service: Mapping[str, Any]) -> set[tuple[str, int, str]]:
    """(host or address, port, Envoy's name of the cluster) for each rule that matches a port."""
    spec, found = virtual_service["spec"], set()
    for kind in ("http", "tls", "tcp"):
        for rule in spec.get(kind) or ():
            clusters = [_cluster(route["destination"]) for route in rule.get("route") or ()]
            for match in rule.get("match") or ():
                names = {"tls": match.get("sniHosts"), "tcp": match.get("destinationSubnets")}.get(kind) or spec["hosts"]
                found |= {(name, match["port"], cluster) for name in names for cluster in clusters if "port" in match}
    return found


def _cluster(destination: Mapping[str, Any]) -> str:
    return f"outbound|{(destination.get('port') or {}).get('number', '')}|{destination.get('subset', '')}|{destination['host']}"


def _of_hosts_that_go(ours: Live, live: Live) -> set[tuple[str, str, str]]:
    """What stands beside a gateway for one host, whoever sends it there, and nobody sends it there any more: its TLS, and who may use it."""
    own = {id_of(o) for o in ours["ServiceEntry"]}
    goes, stays = (
        {id_of(o) for make in (origination_objects, guard_objects) for o in make(routes, _by_name(routes))}
        for routes in (_gateway.read_routes(o for o in live["ServiceEntry"] if (id_of(o) in own) == going) for going in (True, False))
    )
    return {id_of(o) for kind in ("DestinationRule", "AuthorizationPolicy") for o in live[kind] if is_ours(o)} & goes - stays


def _by_name(routes: Iterable[_gateway.Route]) -> dict[str, _gateway.Gateway]:
    """The gateways of routes as far as the names of objects need them."""
    return {r.gateway: _gateway.Gateway(*r.gateway.split("/"), selector=()) for r in routes}


def _gateways_of(ours: Live, live: Live) -> list[Object]:
    """The Gateways of ours in other namespaces that the gateway legs of the namespace are bound to."""
    others = [o for o in live["Gateway"] if is_ours(o) and o not in ours["Gateway"]]
    return [o for o in others if any(o["metadata"]["name"] in _gateways_in(v, o["metadata"]["namespace"]) for v in ours["VirtualService"])]


def _shared(gateways: Iterable[Object], staying: Iterable[Mapping[str, Any]]) -> tuple[list[Object], list[str]]:
    """The Gateways that nobody else is bound to, and what is said about the others."""
    goes, kept = [], []
    for gateway in gateways:
        metadata = gateway["metadata"]
        bound = [v for v in staying if metadata["name"] in _gateways_in(v, metadata["namespace"])]
        if bound:
            kept.append(f"Gateway {_name(gateway)} stays, since VirtualService {_name(bound[0])} is bound to it")
        else:
            goes.append(gateway)
    return goes, kept


def _gateways_in(virtual_service: Mapping[str, Any], namespace: str) -> set[str]:
    """The names of the Gateways of a namespace that a VirtualService is bound to."""
    bound = (name if "/" in name else f"{virtual_service['metadata']['namespace']}/{name}" for name in virtual_service["spec"].get("gateways") or ())
    return {name.partition("/")[2] for name in bound if name.startswith(f"{namespace}/")}


def _users(part: Mapping[str, Any], staying: Iterable[Mapping[str, Any]]) -> list[str]:
    """The namespaces that VirtualServices still send to the gateway that the object is a part of."""
    metadata = part["metadata"]
    name = metadata["labels"].get("app", metadata["name"])
    return sorted({v["metadata"]["namespace"] for v in staying if _gateway_workload.leads_to(v, metadata["namespace"], name)})


def _name(obj: Mapping[str, Any]) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
