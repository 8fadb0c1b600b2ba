# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The order of change for hosts that are reached through egress gateways, make before break.

Pure: routes that are wanted and objects that are live go in, a Plan comes out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway import (
    HTTP_PORT,
    TLS_PORT,
    DefaultRoute,
    Gateway,
    GatewayError,
    Route,
    read_defaults,
    read_routes,
    recorded,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_objects import (
    client_objects,
    default_known,
    default_leg,
    gateway_objects,
    guard_objects,
    known_to_clients,
    origination_objects,
    others_names,
    shared_for,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_workload import target_port
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Declared, Object, read_service_entry, same_object, updated
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import (
    EVERYTHING_SCOPE,
    KNOWN_SCOPE,
    id_of,
    is_ours,
    policy_of,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait, applied, host_changes
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import HTTP_PROTOCOLS, HostEntry, Port
from ansible_collections.meshops.istio_egress.plugins.module_utils._text import few

Live = Mapping[str, list[Object]]
Steps = list[Change | Wait]


@dataclass(frozen=True)
class _State:
    """What one policy sends through gateways: its routes and its default route, those that go by it, and what others send."""

    routes: tuple[Route, ...]
    default: DefaultRoute | None
    other_routes: tuple[Route, ...]
    other_defaults: tuple[DefaultRoute, ...]

    @property
    def defaults(self) -> tuple[DefaultRoute, ...]:
        return (*self.other_defaults, *((self.default,) if self.default else ()))

    @property
    def all_routes(self) -> tuple[Route, ...]:
        return (*self.other_routes, *self.routes)

    @property
    def own_way(self) -> list[Route]:
        """The routes that clients have to be told of, since no default route leads there."""
        return [r for r in self.routes if not any(d.covers(r) for d in self.defaults)]


def plan_gateway(wanted: Iterable[Route], default: DefaultRoute | None, live: Live, namespace: str, policy: str, gateways: Mapping[str, Gateway]) -> Plan:
    """Steps from the live objects to the wanted routes and default route of one policy.

    `live` has all objects of each of KINDS; `gateways` every gateway that a live or wanted route goes through.
    In: what the gateway needs and the clients' clusters; wait; the clients' route; then what makes the host known to clients, so that none
    goes out directly meanwhile. Out: what makes it known, the clients' route; wait; the rest. Who may use a host is in force before anybody is sent
    there, and stays until nobody is; for a host that went there by the same ports already it comes last, when its identity arrives with it.
    """
    routes, defaults = read_routes(live["ServiceEntry"]), read_defaults(live["VirtualService"])
    mine = (namespace, policy)
    gateways = {reference: replace(g, others=others_names(g, live["Gateway"])) for reference, g in gateways.items()}
    others = tuple(r for r in routes if (r.namespace, r.policy) != mine), tuple(d for d in defaults if (d.namespace, d.policy) != mine)
    own_default = next((d for d in defaults if (d.namespace, d.policy) == mine), None)
    before = _State(tuple(r for r in routes if (r.namespace, r.policy) == mine), own_default, *others)
    after = _State(tuple(wanted), default, *others)

    entries, entries_then = _at_gateway(before, after, live, f"{policy}.{namespace}")
    origins = _shared(before, after, live, gateways, origination_objects)
    guards = _shared(before, after, live, gateways, guard_objects)
    legs = _legs(before, after, live, gateways, f"{policy}.{namespace}")
    open_before = {(r.gateway, r.entry.host): {*r.entry.ports} for r in before.routes if not r.entry.allow_from}
    went_there = (r for r in after.all_routes if open_before.get((r.gateway, r.entry.host), set()) >= {*r.entry.ports})
    late = {id_of(o) for o in guard_objects(went_there, gateways)}
    late_guards = [c for c in guards.there if c.before is None and id_of(c.object) in late]
    early_guards = [c for c in guards.there if c not in late_guards]
    in_force = guard_objects(after.all_routes, gateways)

    steps: Steps = [*_service_ports(after, gateways), *entries, *origins.there, *_dialled(before, after, gateways), *early_guards, *legs.there]
    steps += _ready(after, gateways, in_force if early_guards else [])
    steps += _at_clients(before, after, live, namespace, policy, gateways)
    steps += late_guards
    steps += _guarded(after.routes, gateways, in_force) if late_guards else []
    gone = [*guards.gone, *legs.gone, *origins.gone]
    return Plan((*steps, *gone, *_left_over(after, live, gateways, gone), *entries_then))


# -- at the gateway -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Changes:
    """What is added before clients move, and what is taken away after."""

    there: list[Change]
    gone: list[Change]


def _at_gateway(before: _State, after: _State, live: Live, key: str) -> tuple[list[Change], list[Change]]:
    """Changes of the gateways' own ServiceEntries: first all that is dialled before or after, in the end what is dialled after."""
    first: list[Change] = []
    then: list[Change] = []
    for place in sorted({r.gateway.partition("/")[0] for r in (*after.routes, *before.routes)}):
        old = {d.entry.host: d.entry for d in _entries_of(live["ServiceEntry"], place, key)}
        new = {e.host: e for e in (recorded(r) for r in after.routes if r.gateway.startswith(f"{place}/"))}
        both = old | {host: _with_ports_of(entry, old.get(host)) for host, entry in new.items()}
        there = [o for changes in host_changes(_declared(both), live["ServiceEntry"], place, key) for o in changes]
        gone = [o for changes in host_changes(_declared(new), applied(live, there)["ServiceEntry"], place, key) for o in changes]
        first += there
        then += gone
    return first, then


def _service_ports(after: _State, gateways: Mapping[str, Gateway]) -> list[Change]:
    """Adds the ports that plain TCP needs to Services that are ours. They stay: a port that nothing listens on does no harm, others may use it.

    Raises GatewayError where the Service is somebody else's.
    """
    changes = []
    for reference, gateway in sorted(gateways.items()):
        needed = {r.gateway_port(p) for r in after.routes if r.gateway == reference for p in r.entry.ports if r.takes_port(p)}
        ports = [{"name": f"tcp-{n}", "port": n, "targetPort": target_port(n), "protocol": "TCP"} for n in sorted(needed - set(gateway.ports))]
        if not ports:
            continue
        lines = ", ".join(f"{{name: {p['name']}, port: {p['port']}, targetPort: {p['targetPort']}}}" for p in ports)
        if gateway.own_service is None:
            raise GatewayError(
                f"Service {reference} has no port {' and '.join(str(p['port']) for p in ports)}, which TCP by a plain hop needs, and is not ours to change.\n"
                f"Add to its spec.ports: {lines}; or use hop mutual_tls, which needs none."
            )
        service = copy.deepcopy(dict(gateway.own_service))
        service["spec"]["ports"] += ports
        changes.append(Change(dict(gateway.own_service), service, f"+ port {', '.join(str(p['port']) for p in ports)}"))
    return changes


def _entries_of(service_entries: Iterable[Object], namespace: str, key: str) -> list[Declared]:
    """The hosts that ServiceEntries of a policy stand for, each once; one in two of them, as a task that broke off leaves it, with the more ports."""
    found = [d for o in service_entries if o["metadata"]["namespace"] == namespace and policy_of(o) == key for d in read_service_entry(o)]
    return list({d.entry.host: d for d in sorted(found, key=lambda d: len(d.entry.ports))}.values())


def _declared(entries: Mapping[str, HostEntry]) -> list[Declared]:
    return [Declared(entries[host], (".",)) for host in sorted(entries)]


def _with_ports_of(entry: HostEntry, old: HostEntry | None) -> HostEntry:
    """The entry with the ports beside its own that clients still use."""
    numbers = {p.number for p in entry.ports}
    kept = [p for p in old.ports if p.number not in numbers] if old else []
    return replace(entry, ports=tuple(sorted((*entry.ports, *kept))))


def _shared(before: _State, after: _State, live: Live, gateways: Mapping[str, Gateway], make: Any) -> _Changes:
    """Changes of the objects that stand for one host at a gateway, whoever sends it there."""
    hosts = {(r.gateway, r.entry.host) for r in (*before.routes, *after.routes)}
    own = [[r for r in s.all_routes if (r.gateway, r.entry.host) in hosts] for s in (before, after)]
    concerned = {id_of(o) for routes in own for o in make(routes, gateways)}
    target = make(after.all_routes, gateways)
    there = _changes(live, [o for o in target if id_of(o) in concerned], delete=())
    return _Changes(there, _changes(applied(live, there), [o for o in target if id_of(o) in concerned], delete=concerned))


def _legs(before: _State, after: _State, live: Live, gateways: Mapping[str, Gateway], key: str) -> _Changes:
    """Changes of Gateways, DestinationRules and the gateway's VirtualServices: first what is live and the new side by side, in the end the new alone.

    What is live may be more than the routes' records tell: a task that broke off wrote the records first, while clients still went the former way.
    """
    old = gateway_objects(before.all_routes, before.defaults, gateways)
    new = gateway_objects(after.all_routes, after.defaults, gateways)
    own = [(s.routes, [s.default] if s.default else []) for s in (before, after)]
    concerned = {id_of(o) for routes, defaults in own for o in gateway_objects(routes, defaults, gateways)}
    concerned |= {id_of(o) for o in live["VirtualService"] if policy_of(o) == key}
    there_already = {id_of(o): o for objects in live.values() for o in objects}
    if any(s.clients == () for s in (*before.routes, *after.routes, before.default, after.default) if s):
        concerned |= {id_of(o) for o in (*old, *new) if o["kind"] == "DestinationRule" and id_of(o) in there_already}
    beside = [o for key, o in there_already.items() if key in concerned]
    there = _changes(live, [o for o in _merged(beside, new) if id_of(o) in concerned], delete=())
    return _Changes(there, _changes(applied(live, there), [o for o in new if id_of(o) in concerned], delete=concerned))


def _left_over(after: _State, live: Live, gateways: Mapping[str, Gateway], gone: Iterable[Change]) -> list[Change]:
    """Deletes shared objects that no route needs, as a task leaves them that broke off half-way."""
    routes = after.all_routes
    needed = gateway_objects(routes, after.defaults, gateways) + origination_objects(routes, gateways) + guard_objects(routes, gateways)
    used = {r.gateway for r in (*routes, *after.defaults)}
    kept = {id_of(o) for o in needed} | {id_of(c.object) for c in gone}
    shared = [o for kind in ("AuthorizationPolicy", "DestinationRule", "Gateway") for o in live[kind] if id_of(o) not in kept]
    return [Change(o, None, _note(o)) for o in shared if (to := shared_for(o)) and (to in gateways or to not in used)]


# -- at the clients -----------------------------------------------------------------------------------------------------------------


def _at_clients(before: _State, after: _State, live: Live, namespace: str, policy: str, gateways: Mapping[str, Gateway]) -> Steps:
    """The default route comes before routes that it makes needless go, and goes after those that stand in for it came."""
    everything = f"{policy}.{EVERYTHING_SCOPE}"
    legs = {"VirtualService": [o for o in live["VirtualService"] if o["metadata"]["namespace"] == namespace and policy_of(o) == everything]}
    leg = [default_leg(after.default, gateways[after.default.gateway])] if after.default else []
    known = default_known(after.default) if after.default else []
    added, removed = host_changes(known, live["ServiceEntry"], namespace, everything)
    steps: Steps = []
    if after.default:
        steps += [*_changes(legs, leg, delete=())]
        steps += [_by_default(after.default, gateways, tls=False)]
        steps += [*added, *removed]
        steps += [_by_default(after.default, gateways, tls=True)] if added else []
    steps += _own_ways(before, after, live, namespace, policy, gateways)
    if before.default and not after.default:
        steps += [*removed, *_changes(legs, [], delete={id_of(o) for o in legs["VirtualService"]})]
        gone = {(f"*.{d}", p, c) for d in before.default.domains for p, c in _default_ways(before.default, gateways)}
        steps += [Wait(before.default.clients, not_routes=frozenset(gone))]
    return steps


def _by_default(default: DefaultRoute, gateways: Mapping[str, Gateway], tls: bool) -> Wait:
    ways = _default_ways(default, gateways)
    routes = {(f"*.{domain}", port, cluster) for domain in default.domains for port, cluster in ways if tls or port == HTTP_PORT}
    return Wait(default.clients, routes=frozenset(routes))


def _default_ways(default: DefaultRoute, gateways: Mapping[str, Gateway]) -> list[tuple[int, str]]:
    gateway = gateways[default.gateway]
    return [(HTTP_PORT, gateway.cluster(TLS_PORT, "mutual")), (TLS_PORT, gateway.cluster(TLS_PORT, "plain"))]


def _own_ways(before: _State, after: _State, live: Live, namespace: str, policy: str, gateways: Mapping[str, Gateway]) -> Steps:
    """The clients' own routes to hosts, and what makes those hosts known to them."""
    own = {"VirtualService": [o for o in live["VirtualService"] if o["metadata"]["namespace"] == namespace and policy_of(o) == policy]}
    target = client_objects(after.own_way, gateways)
    joined = _changes(own, _joined(own["VirtualService"], target), delete=())
    routed = _changes(applied(own, joined), target, delete={id_of(o) for o in own["VirtualService"]})
    known, scope = known_to_clients(after.own_way), f"{policy}.{KNOWN_SCOPE}"
    ports = {d.entry.host: {*d.entry.ports} for d in known}
    staying = [d for d in _entries_of(live["ServiceEntry"], namespace, scope) if ports.get(d.entry.host, set()) & {*d.entry.ports}]
    hidden = [c for changes in host_changes(staying, live["ServiceEntry"], namespace, scope) for c in changes]
    added, removed = host_changes(known, applied(live, hidden)["ServiceEntry"], namespace, scope)
    steps: Steps = [*hidden, *joined, *routed, *_routed(before, after, gateways, tls=not added), *added, *removed]
    return [*steps, *(_routed(before, after, gateways, tls=True) if added else ())]


# -- waits --------------------------------------------------------------------------------------------------------------------------


def _dialled(before: _State, after: _State, gateways: Mapping[str, Gateway]) -> list[Wait]:
    """Every proxy of the gateways has warm clusters for hosts in use that it shall dial in another way, before a route names them."""
    known = {(r.gateway, r.entry.host): {r.destination(p) for p in r.entry.ports} for r in before.routes}
    clusters: dict[str, set[str]] = {}
    for route in after.routes:
        wanted = {route.destination(p) for p in route.entry.ports}
        new = wanted - known.get((route.gateway, route.entry.host), wanted)
        if new:
            clusters.setdefault(route.gateway, set()).update(new)
    return [_of(gateways[reference], clusters=frozenset(wanted)) for reference, wanted in sorted(clusters.items())]


def _ready(after: _State, gateways: Mapping[str, Gateway], guards: list[Object]) -> list[Wait]:
    """Every proxy of the gateways has the routes out and what they lead to, and every client has the clusters in."""
    waits = []
    for reference in sorted({r.gateway for r in after.routes}):
        gateway = gateways[reference]
        out = {entry for r in after.routes if r.gateway == reference for p in r.entry.ports for entry in _out(r, p, gateway)}
        dialled = frozenset(cluster for _host, _port, cluster in out)
        waits.append(_of(gateway, routes=frozenset(out), clusters=dialled, looked_up=dialled, guards=_identities(guards, gateway)))
    clusters: dict[tuple[str, ...], set[str]] = {}
    for route in after.own_way:
        ways = {gateways[route.gateway].cluster(route.gateway_port(p), route.subset(p)) for p in route.entry.ports}
        clusters.setdefault(route.clients, set()).update(ways)
    if after.default:
        clusters.setdefault(after.default.clients, set()).update(c for _port, c in _default_ways(after.default, gateways))
    return [*waits, *(Wait(clients, clusters=frozenset(wanted)) for clients, wanted in sorted(clusters.items()))]


def _guarded(routes: Iterable[Route], gateways: Mapping[str, Gateway], guards: list[Object]) -> list[Wait]:
    """Every proxy of the gateways knows who may use the hosts."""
    waits = [_of(gateways[r], guards=_identities(guards, gateways[r])) for r in sorted({r.gateway for r in routes})]
    return [wait for wait in waits if wait.guards]


def _of(gateway: Gateway, **what: Any) -> Wait:
    return Wait((gateway.namespace,), selector=gateway.selector, gateways=True, **what)


def _identities(guards: Iterable[Object], gateway: Gateway) -> frozenset[tuple[str, tuple[str, ...]]]:
    """(namespace/name, who may) of the AuthorizationPolicies of a gateway."""
    result = set()
    for obj in guards:
        if obj["metadata"]["namespace"] == gateway.namespace and obj["spec"]["selector"]["matchLabels"] == dict(gateway.selector):
            source = obj["spec"]["rules"][0]["from"][0]["source"]
            who = (*source.get("notPrincipals", ()), *(f"/ns/{name}/" for name in source.get("notNamespaces", ())))
            result.add((f"{gateway.namespace}/{obj['metadata']['name']}", tuple(sorted(who))))
    return frozenset(result)


def _out(route: Route, port: Port, gateway: Gateway) -> list[tuple[str, int, str]]:
    if port.protocol in HTTP_PROTOCOLS:
        return [(route.entry.host, route.gateway_port(port), route.destination(port))]
    if route.takes_port(port):
        return [(route.dialled, port.number, route.destination(port))]
    return [(route.sni(port) if route.is_named(port) else route.entry.host, gateway.tls_target_port, route.destination(port))]


def _routed(before: _State, after: _State, gateways: Mapping[str, Gateway], tls: bool) -> list[Wait]:
    """Clients send the hosts to their gateways, and no host to a gateway that it shall no longer go through.

    TLS and TCP are known to a client by the VirtualService together with a ServiceEntry, so these are looked at after that was written (`tls`).
    """
    places: dict[tuple[frozenset[Any], frozenset[Any]], list[str]] = {}
    for place in sorted({place for r in (*before.own_way, *after.own_way) for place in r.clients or ("",)}):  # "" is everywhere
        there, was = ([r for r in s.own_way if not r.clients or place in r.clients] for s in (after, before))
        routes = _in(there, gateways)
        left = _in((r for r in was if r.gateway in gateways), gateways) - _in(there if place else after.own_way, gateways)
        if not tls:
            here = {(r.entry.host, p.number) for r in after.own_way for p in r.entry.ports if p.protocol in HTTP_PROTOCOLS}
            routes = {r for r in routes if r[:2] in here}
        places.setdefault((frozenset(routes), frozenset(left)), []).append(place)
    return [Wait(() if "" in names else tuple(names), routes=routes, not_routes=left) for (routes, left), names in places.items()]


def _in(routes: Iterable[Route], gateways: Mapping[str, Gateway]) -> set[tuple[str, int, str]]:
    """(host, port, cluster of the gateway) for each port; TCP is told apart by address."""
    return {
        (name, p.number, gateways[r.gateway].cluster(r.gateway_port(p), r.subset(p)))
        for r in routes
        for p in r.entry.ports
        for name in (r.entry.addresses if p.is_opaque else (r.entry.host,))
    }


# -- changes of objects -------------------------------------------------------------------------------------------------------------


def _changes(live: Mapping[str, list[Object]], wanted: Iterable[Object], delete: Iterable[tuple[str, str, str]]) -> list[Change]:
    known = {id_of(o): o for objects in live.values() for o in objects}
    wanted = {id_of(o): o for o in wanted}
    result = []
    for key, obj in wanted.items():
        old = known.get(key)
        if old is None:
            result.append(Change(None, obj, _note(obj)))
        elif not is_ours(old):
            raise GatewayError(
                f"{key[0]} {key[1]}/{key[2]} exists and is not made by this collection, but the gateway needs an object of that name.\n"
                "Rename or remove it; nothing was written."
            )
        elif not same_object(old, obj):
            result.append(Change(old, updated(old, obj), _note(obj)))
    return result + [Change(known[key], None, _note(known[key])) for key in sorted(delete) if key in known and key not in wanted]


def _note(obj: Mapping[str, Any]) -> str:
    spec = obj["spec"]
    names = spec.get("hosts") or [s["name"] for s in spec.get("subsets") or ()] or [s["port"]["name"] for s in spec.get("servers") or ()]
    return few(names)


def _merged(before: list[Object], after: list[Object]) -> list[Object]:
    """The wanted objects with what the former ones have beside it, so that nothing is taken away yet."""
    result = {id_of(o): copy.deepcopy(o) for o in before}
    for obj in after:
        old = result.get(id_of(obj))
        new = copy.deepcopy(obj)
        if old and obj["kind"] == "Gateway":
            servers = {s["port"]["name"]: s for s in new["spec"]["servers"]}
            for server in old["spec"]["servers"]:
                same = servers.setdefault(server["port"]["name"], server)
                same["hosts"] = sorted({*same["hosts"], *server["hosts"]})
            new["spec"]["servers"] = [servers[name] for name in sorted(servers)]
        elif old and obj["kind"] == "DestinationRule":
            subsets = {s["name"]: s for s in (*old["spec"]["subsets"], *new["spec"]["subsets"])}
            new["spec"]["subsets"] = [subsets[name] for name in sorted(subsets)]
        elif old and obj["kind"] == "VirtualService":
            for kind in ("http", "tls"):
                rules = new["spec"].setdefault(kind, [])
                rules += [rule for rule in old["spec"].get(kind) or () if rule not in rules]
                if not rules:
                    del new["spec"][kind]
        result[id_of(obj)] = new
    return list(result.values())


def _joined(live: Iterable[Object], target: Iterable[Object]) -> list[Object]:
    """The target with hosts that other objects still wait to take over left where they are."""
    result = {id_of(o): copy.deepcopy(o) for o in target}
    staying = {h for o in target for h in o["spec"]["hosts"]}
    for obj in live:
        new = result.get(id_of(obj))
        leaving = [h for h in obj["spec"]["hosts"] if h in staying and (new is None or h not in new["spec"]["hosts"])]
        if not leaving:
            continue
        if new is None:
            result[id_of(obj)] = copy.deepcopy(obj)
            continue
        new["spec"]["hosts"] = sorted({*new["spec"]["hosts"], *leaving})
        for kind in ("tls", "tcp"):
            rules = new["spec"].setdefault(kind, [])
            rules += [r for r in obj["spec"].get(kind) or () if r not in rules]
            if not rules:
                del new["spec"][kind]
    return list(result.values())
