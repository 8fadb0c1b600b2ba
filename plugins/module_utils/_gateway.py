# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Hosts that are reached through an egress gateway: the objects for it, and the order of their change.

Pure: routes that are wanted and objects that are live go in, a Plan comes out. The shape (seen on Istio 1.31.1 with Envoy 1.40):

- The gateway's ports 80 and 443 carry everything, so its Service needs no change. Port 80 is plain HTTP; port 443 is told apart by SNI:
  the host itself for TLS that is passed through, a made-up name for TLS or TCP inside the mesh's own TLS (it says which host and port),
  any other name for HTTP inside the mesh's own TLS. Old and new hop of a host can so exist side by side while clients move.
- The two legs of a route are two VirtualServices, so that the client's goes in last and out first.
- Each TLS host has a match of its own: adding a host to the list of a match closes connections of the others.
- Gateway and DestinationRule are shared by all policies, and made from the ServiceEntries in the gateway's namespace, which record every route.
"""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import (
    NETWORKING,
    Declared,
    Object,
    policy_labels,
    policy_of,
    read_service_entry,
    same_object,
    updated,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait, host_changes
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import (
    HTTP_PROTOCOLS,
    KNOWN_SCOPE,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    TLS_PROTOCOLS,
    HostEntry,
    Port,
)

HTTP_PORT, TLS_PORT = 80, 443
"""Ports of the gateway's Service."""
PLAIN, MUTUAL = "plain", "mutual_tls"
KINDS = ("ServiceEntry", "Gateway", "DestinationRule", "VirtualService")


class GatewayError(EgressError):
    """The gateway, or Istio, cannot do what is asked of it."""


@dataclass(frozen=True)
class Gateway:
    """An egress gateway as it was found: its Service, the labels of its pods, and where its Service's TLS port leads in the pod."""

    namespace: str
    service: str
    selector: tuple[tuple[str, str], ...]
    tls_target_port: int = 8443

    @property
    def host(self) -> str:
        return f"{self.service}.{self.namespace}.svc.cluster.local"

    @property
    def reference(self) -> str:
        return f"{self.namespace}/{self.service}"

    def cluster(self, port: int, subset: str) -> str:
        """The name that Envoy has for the way to it."""
        return f"outbound|{port}|{subset}|{self.host}"


@dataclass(frozen=True)
class Route:
    """A host entry that clients of `namespace` reach through `gateway` (namespace/service) by `hop`, declared by `policy`."""

    entry: HostEntry
    namespace: str
    policy: str
    gateway: str
    hop: str

    @property
    def key(self) -> str:
        """The policy name on objects in the gateway's namespace, where policies of several namespaces meet."""
        return f"{self.policy}.{self.namespace}"

    def hop_of(self, port: Port) -> str:
        """`auto` is mutual TLS where it costs nothing (HTTP) or where there is no other way (TCP), and plain for TLS, which is encrypted already."""
        if self.hop != "auto":
            return self.hop
        return PLAIN if port.protocol in TLS_PROTOCOLS else MUTUAL

    def is_named(self, port: Port) -> bool:
        """Travels under a made-up SNI that says host and port."""
        return port.protocol not in HTTP_PROTOCOLS and self.hop_of(port) == MUTUAL

    def subset(self, port: Port) -> str:
        """The subset of the gateway's DestinationRule: plain, mutual, or one of its own for a made-up SNI."""
        if self.is_named(port):
            return f"{port.name}-{_digest(self.entry.host)}"
        return "mutual" if self.hop_of(port) == MUTUAL else "plain"

    def gateway_port(self, port: Port) -> int:
        return HTTP_PORT if port.protocol in HTTP_PROTOCOLS and self.hop_of(port) == PLAIN else TLS_PORT

    def sni(self, port: Port) -> str:
        return f"{port.name}.{self.entry.host}.egress"

    def destination(self, port: Port) -> str:
        """Envoy's name for the host itself, at the gateway."""
        return f"outbound|{port.number}||{self.entry.host}"


def check(routes: Iterable[Route]) -> None:
    """Raises GatewayError for what a gateway cannot do, with what to use instead."""
    for route in routes:
        entry = route.entry
        if entry.is_wildcard:
            raise GatewayError(
                f"{entry.host} cannot go through an egress gateway: the gateway has to know the one host that it dials.\n"
                "List the hosts, or let the wildcard out directly with istio_egress_host."
            )
        if any("/" in address for address in entry.addresses):
            raise GatewayError(
                f"{entry.host} has a range of addresses; the gateway does not learn which one the client dialled.\n"
                "List single addresses, each as an entry of its own, or let the range out directly with istio_egress_host."
            )
        for protocols, what in ((HTTP_PROTOCOLS, "HTTP"), (TLS_PROTOCOLS, "TLS")):
            alike = [p for p in entry.ports if p.protocol in protocols and not route.is_named(p)]
            if len(alike) > 1:
                both = " and ".join(str(p.number) for p in alike)
                raise GatewayError(
                    f"{entry.host} has the {what} ports {both}; they arrive at one port of the gateway, which cannot tell them apart.\n"
                    + (f"Send {entry.host} by hop mutual_tls." if what == "TLS" else "Keep one of them.")
                )
        opaque = next((p for p in entry.ports if p.is_opaque and route.hop_of(p) == PLAIN), None)
        if opaque:
            raise GatewayError(
                f"{entry.host}: {opaque.protocol} port {opaque.number} by a plain hop would need a port of its own on the gateway's Service.\n"
                "Use hop mutual_tls (or auto), which carries any number of TCP hosts over the gateway's TLS port."
            )


# -- live objects -------------------------------------------------------------------------------------------------------------------


def read_routes(service_entries_: Iterable[Mapping[str, Any]]) -> list[Route]:
    """Every route of this collection, from the ServiceEntries in the namespaces of gateways."""
    routes = []
    for obj in service_entries_:
        policy, _sep, namespace = (policy_of(obj) or "").partition(".")
        for declared in read_service_entry(obj) if namespace else ():
            metadata = dict(declared.entry.metadata)
            gateway, hop = metadata.pop("gateway", ""), metadata.pop("hop", "auto")
            if not gateway:
                continue
            routes.append(Route(replace(declared.entry, metadata=tuple(sorted(metadata.items()))), namespace, policy, gateway, hop))
    return routes


def wanted_routes(
    listed: Iterable[HostEntry], removed: Iterable[str], purge: bool, live: Iterable[Route], namespace: str, policy: str, gateway: Gateway | None, hop: str
) -> list[Route]:
    """What the policy shall send through gateways: the listed hosts through `gateway`, and (unless `purge`) those it sends already."""
    gone = set(removed)
    wanted = {} if purge else {r.entry.host: r for r in live if (r.namespace, r.policy) == (namespace, policy) and r.entry.host not in gone}
    for entry in listed:
        at_gateway = "STATIC" if entry.addresses else "DNS_ROUND_ROBIN" if entry.resolution == "DNS_ROUND_ROBIN" else "DNS"
        wanted[entry.host] = Route(replace(entry, resolution=at_gateway), namespace, policy, gateway.reference, hop)
    return [wanted[host] for host in sorted(wanted)]


# -- objects ------------------------------------------------------------------------------------------------------------------------


def client_objects(routes: Iterable[Route], gateways: Mapping[str, Gateway]) -> list[Object]:
    """VirtualServices on ``mesh``, one for all hosts of the same shape, and the ServiceEntries that make TLS and TCP hosts known to clients.

    A client knows an HTTP host by the VirtualService alone; it looks none of the hosts up in DNS.
    """
    shapes: dict[tuple[Any, ...], list[Route]] = defaultdict(list)
    for route in routes:
        own = route.entry.host if route.entry.is_opaque else ""
        shapes[(route.namespace, route.policy, route.gateway, own, tuple((p, route.hop_of(p)) for p in route.entry.ports))].append(route)
    return [_client_leg(group, gateways[group[0].gateway]) for group in shapes.values()]


def known_to_clients(routes: Iterable[Route]) -> list[Declared]:
    """The hosts as clients must know them: their TLS and TCP ports, resolved by nobody."""
    result = []
    for route in routes:
        ports = tuple(p for p in route.entry.ports if p.protocol not in HTTP_PROTOCOLS)
        if ports:
            addresses = route.entry.addresses if any(p.is_opaque for p in ports) else ()
            result.append(Declared(HostEntry(route.entry.host, ports, addresses, "NONE"), (".",)))
    return result


def _client_leg(routes: list[Route], gateway: Gateway) -> Object:
    first = routes[0]
    http, tls, tcp = [], [], []
    for port in first.entry.ports:
        if port.protocol in HTTP_PROTOCOLS:
            http.append({"match": [{"port": port.number}], "route": [_to(gateway, first, port)]})
    for route in routes:
        for port in route.entry.ports:
            if port.protocol in TLS_PROTOCOLS:
                tls.append({"match": [{"port": port.number, "sniHosts": [route.entry.host]}], "route": [_to(gateway, route, port)]})
            elif port.is_opaque:
                match = {"port": port.number, **({"destinationSubnets": list(route.entry.addresses)} if route.entry.addresses else {})}
                tcp.append({"match": [match], "route": [_to(gateway, route, port)]})
    what = first.entry.host if first.entry.is_opaque else "-".join(f"{p.name}-{first.hop_of(p).partition('_')[0]}" for p in first.entry.ports)
    name = _short(f"egress-{first.policy}-{gateway.namespace}-{gateway.service}-{what}")
    spec = {"hosts": sorted(r.entry.host for r in routes), "gateways": ["mesh"], "exportTo": ["."]}
    spec |= {kind: rules for kind, rules in (("http", http), ("tls", tls), ("tcp", tcp)) if rules}
    return _object("VirtualService", first.namespace, name, spec, first.policy)


def _to(gateway: Gateway, route: Route, port: Port) -> Object:
    return {"destination": {"host": gateway.host, "subset": route.subset(port), "port": {"number": route.gateway_port(port)}}}


def gateway_objects(routes: Iterable[Route], gateways: Mapping[str, Gateway]) -> list[Object]:
    """Per gateway one Gateway; per client namespace one DestinationRule; per host the VirtualServices of the gateway's leg."""
    routes = list(routes)
    result: list[Object] = []
    for reference in sorted({r.gateway for r in routes} & set(gateways)):
        gateway = gateways[reference]
        through = [r for r in routes if r.gateway == reference]
        result.append(_gateway(through, gateway))
        result += [_destination_rule(gateway, ns, [r for r in through if r.namespace == ns]) for ns in sorted({r.namespace for r in through})]
        for route in through:
            result += _gateway_legs(route, gateway)
    return result


def _gateway(routes: list[Route], gateway: Gateway) -> Object:
    servers: dict[str, Object] = {}
    passed: set[str] = set()
    for route in routes:
        for port in route.entry.ports:
            if route.is_named(port):
                name = route.subset(port)
                servers[name] = _server(TLS_PORT, name, "TLS", [route.sni(port)], "ISTIO_MUTUAL")
            elif port.protocol in TLS_PROTOCOLS:
                passed.add(route.entry.host)
            elif route.hop_of(port) == MUTUAL:
                servers["http-mutual"] = _server(TLS_PORT, "http-mutual", "HTTPS", ["*"], "ISTIO_MUTUAL")
            else:
                servers["http-plain"] = _server(HTTP_PORT, "http-plain", "HTTP", ["*"])
    if passed:
        servers["tls-plain"] = _server(TLS_PORT, "tls-plain", "TLS", sorted(passed), "PASSTHROUGH")
    spec = {"selector": dict(gateway.selector), "servers": [servers[name] for name in sorted(servers)]}
    return _object("Gateway", gateway.namespace, _gateway_name(gateway), spec)


def _server(number: int, name: str, protocol: str, hosts: list[str], tls: str = "") -> Object:
    server = {"port": {"number": number, "name": name, "protocol": protocol}, "hosts": hosts}
    return {**server, "tls": {"mode": tls}} if tls else server


def _destination_rule(gateway: Gateway, namespace: str, routes: list[Route]) -> Object:
    subsets: dict[str, Object] = {}
    for route in routes:
        for port in route.entry.ports:
            name = route.subset(port)
            tls = {"mode": "ISTIO_MUTUAL", **({"sni": route.sni(port)} if route.is_named(port) else {})}
            subsets[name] = {"name": name, **({"trafficPolicy": {"tls": tls}} if name != "plain" else {})}
    spec = {"host": gateway.host, "exportTo": ["."], "subsets": [subsets[name] for name in sorted(subsets)]}
    return _object("DestinationRule", namespace, _short(f"egress-{gateway.namespace}-{gateway.service}"), spec)


def _gateway_legs(route: Route, gateway: Gateway) -> list[Object]:
    """HTTP and TLS that keep the host's name in one VirtualService, whatever the hop; what comes under a made-up name in one each."""
    result, http, tls = [], [], []
    for port in route.entry.ports:
        out = [{"destination": {"host": route.entry.host, "port": {"number": port.number}}}]
        if port.protocol in HTTP_PROTOCOLS:
            http.append({"match": [{"port": HTTP_PORT}, {"port": TLS_PORT}], "route": out})
        elif route.is_named(port):
            name = _short(f"egress-{route.key}-{port.name}-{route.entry.host}")
            spec = {"hosts": [route.sni(port)], "gateways": [_gateway_name(gateway)], "exportTo": ["."]}
            result.append(_object("VirtualService", gateway.namespace, name, {**spec, "tcp": [{"match": [{"port": TLS_PORT}], "route": out}]}, route.key))
        else:
            tls.append({"match": [{"port": TLS_PORT, "sniHosts": [route.entry.host]}], "route": out})
    if http or tls:
        spec = {"hosts": [route.entry.host], "gateways": [_gateway_name(gateway)], "exportTo": ["."]}
        spec |= {kind: rules for kind, rules in (("http", http), ("tls", tls)) if rules}
        result.append(_object("VirtualService", gateway.namespace, _short(f"egress-{route.key}-{route.entry.host}"), spec, route.key))
    return result


def _gateway_name(gateway: Gateway) -> str:
    return f"egress-{gateway.service}"


def _object(kind: str, namespace: str, name: str, spec: Object, policy: str | None = None) -> Object:
    return {"apiVersion": NETWORKING, "kind": kind, "metadata": {"name": name, "namespace": namespace, "labels": policy_labels(policy)}, "spec": spec}


def describe(routes: Iterable[Route], gateways: Mapping[str, Gateway]) -> dict[str, Any]:
    """The routes and gateways as a module returns them."""
    hosts = [
        {
            "host": r.entry.host,
            "ports": [f"{p.protocol.lower()}/{p.number}" for p in r.entry.ports],
            "addresses": list(r.entry.addresses),
            "gateway": r.gateway,
            "hop": {f"{p.protocol.lower()}/{p.number}": r.hop_of(p) for p in r.entry.ports},
            **dict(r.entry.metadata),
        }
        for r in routes
    ]
    return {"hosts": hosts, "gateways": sorted(gateways)}


# -- the order of change ------------------------------------------------------------------------------------------------------------


def plan_gateway(wanted: Iterable[Route], live: Mapping[str, list[Object]], namespace: str, policy: str, gateways: Mapping[str, Gateway]) -> Plan:
    """Steps from the live objects to the wanted routes of one policy, make before break.

    `live` has all objects of each of KINDS; `gateways` every gateway that a live or wanted route goes through.
    In: what the gateway needs and the clients' clusters; wait; the clients' route; then what makes the host known to clients, so that none
    goes out directly meanwhile. Out: what makes it known, the clients' route; wait; the rest.
    """
    wanted = list(wanted)
    before = read_routes(live["ServiceEntry"])
    mine_before = [r for r in before if (r.namespace, r.policy) == (namespace, policy)]
    others = [r for r in before if (r.namespace, r.policy) != (namespace, policy)]
    key = f"{policy}.{namespace}"

    at_gateway: list[Change] = []
    at_gateway_then: list[Change] = []
    for place in sorted({r.gateway.partition("/")[0] for r in (*wanted, *mine_before)}):
        recorded = [Declared(_recorded(r), (".",)) for r in wanted if r.gateway.startswith(f"{place}/")]
        first, then = host_changes(recorded, live["ServiceEntry"], place, key)
        at_gateway += first
        at_gateway_then += then

    both = _merged(gateway_objects([*others, *mine_before], gateways), gateway_objects([*others, *wanted], gateways))
    after = gateway_objects([*others, *wanted], gateways)
    concerned = {(o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]) for o in gateway_objects([*mine_before, *wanted], gateways)}
    add = _changes(live, [o for o in both if _id(o) in concerned], delete=())
    left = _apply_to(live, add)
    clean = _changes(left, [o for o in after if _id(o) in concerned], delete=concerned)

    client_live = {"VirtualService": [o for o in live["VirtualService"] if o["metadata"]["namespace"] == namespace and policy_of(o) == policy]}
    target = client_objects(wanted, gateways)
    joined = _changes(client_live, _joined(client_live["VirtualService"], target), delete=())
    routed = _changes(_apply_to(client_live, joined), target, delete={_id(o) for o in client_live["VirtualService"]})

    known = host_changes(known_to_clients(wanted), live["ServiceEntry"], namespace, f"{policy}.{KNOWN_SCOPE}")
    steps: list[Change | Wait] = [*at_gateway, *add]
    if wanted:
        steps += _ready(wanted, namespace, gateways)
    hidden = [c for c in known[1] if c.after is None or set(c.after["spec"]["hosts"]) < set(c.before["spec"]["hosts"])]
    steps += [*hidden, *joined, *routed]
    if wanted or mine_before:
        steps.append(_routed(wanted, mine_before, namespace, gateways, tls=not known[0]))
    steps += [*known[0], *(c for c in known[1] if c not in hidden)]
    if known[0]:
        steps.append(_routed(wanted, mine_before, namespace, gateways, tls=True))
    steps += [*clean, *at_gateway_then]
    return Plan(tuple(steps))


def _recorded(route: Route) -> HostEntry:
    return replace(route.entry, metadata=tuple(sorted({**dict(route.entry.metadata), "gateway": route.gateway, "hop": route.hop}.items())))


def _ready(routes: list[Route], namespace: str, gateways: Mapping[str, Gateway]) -> list[Wait]:
    """Every proxy of the gateways has the routes out, and every client has the clusters in."""
    waits = []
    for reference in sorted({r.gateway for r in routes}):
        gateway = gateways[reference]
        out = {entry for r in routes if r.gateway == reference for p in r.entry.ports for entry in _out(r, p, gateway)}
        waits.append(Wait((gateway.namespace,), routes=frozenset(out), selector=gateway.selector, gateways=True))
    clusters = {gateways[r.gateway].cluster(r.gateway_port(p), r.subset(p)) for r in routes for p in r.entry.ports}
    return [*waits, Wait((namespace,), clusters=frozenset(clusters))]


def _out(route: Route, port: Port, gateway: Gateway) -> list[tuple[str, int, str]]:
    if port.protocol in HTTP_PROTOCOLS:
        return [(route.entry.host, route.gateway_port(port), route.destination(port))]
    return [(route.sni(port) if route.is_named(port) else route.entry.host, gateway.tls_target_port, route.destination(port))]


def _routed(wanted: list[Route], before: list[Route], namespace: str, gateways: Mapping[str, Gateway], tls: bool = False) -> Wait:
    """Clients send the hosts to their gateways, and no host to a gateway that it shall no longer go through.

    TLS and TCP are known to a client by the VirtualService together with a ServiceEntry, so these are looked at after that was written (`tls`).
    """
    routes = _in(wanted, gateways)
    left = _in([r for r in before if r.gateway in gateways], gateways) - routes
    if not tls:
        here = {(r.entry.host, p.number) for r in wanted for p in r.entry.ports if p.protocol in HTTP_PROTOCOLS}
        routes = {r for r in routes if r[:2] in here}
    return Wait((namespace,), routes=frozenset(routes), not_routes=frozenset(left))


def _in(routes: Iterable[Route], gateways: Mapping[str, Gateway]) -> set[tuple[str, int, str]]:
    """(host, port, cluster of the gateway) for each port; TCP is told apart by address."""
    return {
        (name, p.number, gateways[r.gateway].cluster(r.gateway_port(p), r.subset(p)))
        for r in routes
        for p in r.entry.ports
        for name in (r.entry.addresses if p.is_opaque else (r.entry.host,))
    }


def _changes(live: Mapping[str, list[Object]], wanted: Iterable[Object], delete: Iterable[tuple[str, str, str]]) -> list[Change]:
    known = {_id(o): o for objects in live.values() for o in objects}
    wanted = {_id(o): o for o in wanted}
    result = []
    for key, obj in wanted.items():
        old = known.get(key)
        if old is None:
            result.append(Change(None, obj, _note(obj)))
        elif (old["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) != MANAGED_BY:
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
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _apply_to(live: Mapping[str, list[Object]], changes: Iterable[Change]) -> dict[str, list[Object]]:
    """The live objects as they are after the changes."""
    result = {_id(o): o for objects in live.values() for o in objects}
    result.update({_id(c.object): c.after for c in changes if c.after})
    return {"all": list(result.values())}


def _merged(before: list[Object], after: list[Object]) -> list[Object]:
    """The wanted objects with what the former ones have beside it, so that nothing is taken away yet."""
    result = {_id(o): copy.deepcopy(o) for o in before}
    for obj in after:
        old = result.get(_id(obj))
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
        result[_id(obj)] = new
    return list(result.values())


def _joined(live: Iterable[Object], target: Iterable[Object]) -> list[Object]:
    """The target with hosts that other objects still wait to take over left where they are."""
    result = {_id(o): copy.deepcopy(o) for o in target}
    staying = {h for o in target for h in o["spec"]["hosts"]}
    for obj in live:
        new = result.get(_id(obj))
        leaving = [h for h in obj["spec"]["hosts"] if h in staying and (new is None or h not in new["spec"]["hosts"])]
        if not leaving:
            continue
        if new is None:
            result[_id(obj)] = copy.deepcopy(obj)
            continue
        new["spec"]["hosts"] = sorted({*new["spec"]["hosts"], *leaving})
        for kind in ("tls", "tcp"):
            rules = new["spec"].setdefault(kind, [])
            rules += [r for r in obj["spec"].get(kind) or () if r not in rules]
            if not rules:
                del new["spec"][kind]
    return list(result.values())


def _id(obj: Mapping[str, Any]) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _short(name: str) -> str:
    return name if len(name) <= 240 else f"{name[:229].rstrip('.-')}-{_digest(name)}"
