# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. From routes through egress gateways to objects, for clients and for gateways.

Pure. The two legs of a route are two VirtualServices, so that the client's goes in last and out first. Each TLS host has a match of its own: adding a
host to the list of a match closes connections of the others. Gateway, DestinationRules and AuthorizationPolicies are shared by all policies, so they are
made from all routes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway import (
    HTTP_PORT,
    MADE_UP,
    MUTUAL,
    ORIGINATED,
    PLAIN,
    TLS_PORT,
    DefaultRoute,
    Gateway,
    Route,
    callers,
    digest,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import NETWORKING, Declared, Object
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import DEFAULT_POLICY, EVERYTHING_SCOPE, is_ours, policy_labels
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import HTTP_PROTOCOLS, TLS_PROTOCOLS, HostEntry, Port

SECURITY = "security.istio.io/v1"
GATEWAY_ANNOTATION = "istio-egress.meshops.io/gateway"
DRY_RUN = "istio.io/dry-run"
"""Annotation that makes Istio count what an AuthorizationPolicy would refuse, and refuse nothing."""


# -- at the clients -----------------------------------------------------------------------------------------------------------------


def client_objects(routes: Iterable[Route], gateways: Mapping[str, Gateway]) -> list[Object]:
    """VirtualServices on ``mesh``, one for all hosts of the same shape.

    A client knows an HTTP host by the VirtualService alone; it looks none of the hosts up in DNS.
    """
    shapes: dict[tuple[Any, ...], list[Route]] = defaultdict(list)
    for route in routes:
        own = route.entry.host if route.entry.is_opaque else ""
        hops = tuple((p, route.hop_of(p)) for p in route.entry.ports)
        shapes[(route.namespace, route.policy, route.gateway, route.export_to, own, hops)].append(route)
    return [_client_leg(group, gateways[group[0].gateway]) for group in shapes.values()]


def known_to_clients(routes: Iterable[Route]) -> list[Declared]:
    """The hosts as clients must know them: their TLS and TCP ports, resolved by nobody."""
    result = []
    for route in routes:
        ports = tuple(p for p in route.entry.ports if p.protocol not in HTTP_PROTOCOLS)
        if ports:
            addresses = route.entry.addresses if any(p.is_opaque for p in ports) else ()
            result.append(Declared(HostEntry(route.entry.host, ports, addresses, "NONE"), route.export_to))
    return result


def default_leg(default: DefaultRoute, gateway: Gateway) -> Object:
    """The VirtualService on ``mesh`` that sends every host of the domains to the gateway. More specific hosts of anybody win against it."""
    hosts = [f"*.{domain}" for domain in default.domains]
    spec = {
        "hosts": hosts,
        "gateways": ["mesh"],
        "exportTo": _exported(default.namespace, default.export_to),
        "http": [{"match": [{"port": HTTP_PORT}], "route": [_way(gateway, "mutual", TLS_PORT)]}],
        "tls": [{"match": [{"port": TLS_PORT, "sniHosts": [host]}], "route": [_way(gateway, "plain", TLS_PORT)]} for host in hosts],
    }
    return _object("VirtualService", default.namespace, f"egress-{default.policy}-everything", spec, f"{default.policy}.{EVERYTHING_SCOPE}")


def default_known(default: DefaultRoute) -> list[Declared]:
    """The domains as clients must know them, so that TLS to any host of them is not refused by the mode."""
    return [Declared(HostEntry(f"*.{domain}", (Port(443, "TLS"),), (), "NONE"), default.export_to) for domain in default.domains]


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
    seen = "" if first.export_to == (".",) else f"-for-{digest(' '.join(first.export_to))[:6]}"
    name = short(f"egress-{first.policy}.{gateway.namespace}.{gateway.service}.{what}{seen}")
    spec = {"hosts": sorted(r.entry.host for r in routes), "gateways": ["mesh"], "exportTo": _exported(first.namespace, first.export_to)}
    spec |= {kind: rules for kind, rules in (("http", http), ("tls", tls), ("tcp", tcp)) if rules}
    return _object("VirtualService", first.namespace, name, spec, first.policy)


def _to(gateway: Gateway, route: Route, port: Port) -> Object:
    return _way(gateway, route.subset(port), route.gateway_port(port))


def _way(gateway: Gateway, subset: str, port: int) -> Object:
    return {"destination": {"host": gateway.host, "subset": subset, "port": {"number": port}}}


def _exported(namespace: str, export_to: Iterable[str]) -> list[str]:
    return sorted({"." if name == namespace else name for name in export_to})


# -- at the gateway -----------------------------------------------------------------------------------------------------------------


def gateway_objects(routes: Iterable[Route], defaults: Iterable[DefaultRoute], gateways: Mapping[str, Gateway]) -> list[Object]:
    """Per gateway one Gateway; per place that clients look in one DestinationRule; per host the VirtualServices of the gateway's leg."""
    routes, defaults = list(routes), list(defaults)
    result: list[Object] = []
    for reference in sorted({r.gateway for r in (*routes, *defaults)} & set(gateways)):
        gateway = gateways[reference]
        through = [r for r in routes if r.gateway == reference]
        whole = [d for d in defaults if d.gateway == reference]
        result.append(_gateway(through, whole, gateway))
        result += _destination_rules(gateway, through, whole)
        for route in through:
            result += _gateway_legs(route, gateway)
    return result


def origination_objects(routes: Iterable[Route], gateways: Mapping[str, Gateway]) -> list[Object]:
    """Per gateway and host that it puts TLS around, the DestinationRule that says how."""
    result = {}
    for route in routes:
        tls, gateway = route.origination, gateways.get(route.gateway)
        if tls and gateway:
            settings = {"mode": tls.mode.upper(), "sni": route.entry.host}
            settings |= {"credentialName": tls.credential} if tls.credential else {}
            settings |= {"subjectAltNames": [route.entry.host]} if tls.verify else {"insecureSkipVerify": True}
            subsets = [{"name": ORIGINATED, "trafficPolicy": {"tls": settings}}]
            spec = {"host": route.entry.host, "exportTo": ["."], "subsets": subsets}
            obj = _shared("DestinationRule", gateway.namespace, short(f"{gateway_name(gateway)}-to-{route.entry.host}"), spec, gateway)
            result[obj["metadata"]["name"]] = obj
    return list(result.values())


def guard_objects(routes: Iterable[Route], gateways: Mapping[str, Gateway]) -> list[Object]:
    """Per gateway and host with `allow_from`, the AuthorizationPolicy that refuses everybody else, and one that only counts them where it is in shadow.

    It denies by name of the host instead of allowing, so that it says nothing about hosts of others. HTTP is told apart by Host, whatever name the
    connection came under, for that one is the client's choice. On connections that carry no HTTP Istio leaves a condition on Host out of a denial, which
    would refuse every host there; so those are left out by what they have in common: no caller is known (TLS that is passed through), another port, or
    a name that never leads to HTTP, since a server for TLS has it (see `_gateway` and `others_names`).
    """
    by_host: dict[tuple[str, str], list[Route]] = defaultdict(list)
    for route in routes:
        if route.gateway in gateways:
            by_host[route.gateway, route.entry.host].append(route)
    result = []
    for (reference, _host), group in by_host.items():
        enforced = callers(group)
        if enforced is not None:
            result.append(_guard(group, enforced, gateways[reference], shadow=False))
        if any(r.entry.allow_from and r.shadow for r in group):
            allowed = {who for r in group for who in r.entry.allow_from or r.clients}
            result.append(_guard(group, allowed, gateways[reference], shadow=True))
    return result


def _guard(routes: list[Route], allowed: Collection[str], gateway: Gateway, shadow: bool) -> Object:
    host = routes[0].entry.host
    accounts = sorted(f"cluster.local/ns/{who.replace('/', '/sa/')}" for who in allowed if "/" in who)
    namespaces = sorted(who for who in allowed if "/" not in who)
    source = {key: values for key, values in (("notPrincipals", accounts), ("notNamespaces", namespaces)) if values}
    rules = []
    ports = sorted({p for r in routes for p in r.entry.ports})
    if any(p.protocol in HTTP_PROTOCOLS for p in ports):
        numbers = [p.number for p in ports if p.protocol in HTTP_PROTOCOLS] if host.startswith("*") else ["*"]
        to = {"hosts": [host, *(f"{host}:{number}" for number in numbers)], "ports": [str(gateway.tls_target_port)]}
        when = {"key": "connection.sni", "notValues": [f"*.{MADE_UP}", *gateway.others]}
        rules.append({"from": [{"source": {"principals": ["*"], **source}}], "to": [{"operation": to}], "when": [when]})
    others = sorted({routes[0].sni(p) for p in ports if p.protocol not in HTTP_PROTOCOLS})
    if others:
        rules.append({"from": [{"source": source}], "when": [{"key": "connection.sni", "values": others}]})
    name = short(f"{gateway_name(gateway)}-from-{routes[0].entry.as_name}{'-shadow' if shadow else ''}")
    spec = {"selector": {"matchLabels": dict(gateway.selector)}, "action": "DENY", "rules": rules}
    obj = _shared("AuthorizationPolicy", gateway.namespace, name, spec, gateway)
    obj["apiVersion"] = SECURITY
    if shadow:
        obj["metadata"]["annotations"][DRY_RUN] = "true"
    return obj


def others_names(gateway: Gateway, live: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names under which Gateways of others take the mesh's TLS, or TLS with a client's certificate, for what is no HTTP on the gateway's TLS port."""
    servers = [
        server
        for obj in live
        if not is_ours(obj) and (obj["spec"].get("selector") or {}).items() <= dict(gateway.selector).items()
        for server in obj["spec"].get("servers") or ()
        if server["port"]["number"] == TLS_PORT and server["port"]["protocol"].upper() in ("TLS", "TCP")
    ]
    mutual = [s for s in servers if (s.get("tls") or {}).get("mode") in ("ISTIO_MUTUAL", "MUTUAL", "OPTIONAL_MUTUAL")]
    return tuple(sorted({host.rpartition("/")[2] for s in mutual for host in s["hosts"]} - {"*"}))


def _gateway(routes: list[Route], defaults: list[DefaultRoute], gateway: Gateway) -> Object:
    servers: dict[str, Object] = {}
    passed: set[str] = set()
    http = [_server(TLS_PORT, name, "HTTPS", [hosts], "ISTIO_MUTUAL") for name, hosts in (("http-mutual", "*"), ("http-nowhere", f"*.{MADE_UP}"))]
    if defaults or any(p.protocol in HTTP_PROTOCOLS and r.hop_of(p) == MUTUAL for r in routes for p in r.entry.ports):
        servers |= {server["port"]["name"]: server for server in http}
    for route in routes:
        for port in route.entry.ports:
            if route.is_named(port):
                name = route.subset(port)
                servers[name] = _server(TLS_PORT, name, "TLS", [route.sni(port)], "ISTIO_MUTUAL")
            elif route.takes_port(port):
                servers[port.name] = _server(port.number, port.name, "TCP", ["*"])
            elif port.protocol in TLS_PROTOCOLS:
                passed.add(route.entry.host)
            elif route.hop_of(port) == PLAIN:
                servers["http-plain"] = _server(HTTP_PORT, "http-plain", "HTTP", ["*"])
    if passed:
        servers["tls-plain"] = _server(TLS_PORT, "tls-plain", "TLS", sorted(passed), "PASSTHROUGH")
    spec = {"selector": dict(gateway.selector), "servers": [servers[name] for name in sorted(servers)]}
    return _shared("Gateway", gateway.namespace, gateway_name(gateway), spec, gateway)


def _server(number: int, name: str, protocol: str, hosts: list[str], tls: str = "") -> Object:
    server = {"port": {"number": number, "name": name, "protocol": protocol}, "hosts": hosts}
    return {**server, "tls": {"mode": tls}} if tls else server


def _destination_rules(gateway: Gateway, routes: list[Route], defaults: list[DefaultRoute]) -> list[Object]:
    """One in each namespace of clients, and one beside the gateway for routes of all namespaces.

    A client takes the one of its own namespace, else that beside the gateway, never both (istio/istio pilot/pkg/model, ``destinationRule``), so each
    has the subsets of the routes for all.
    """
    subsets: dict[str, dict[str, Object]] = defaultdict(dict)
    for route in routes:
        for place in route.clients or ("*",):
            for port in route.entry.ports:
                name = route.subset(port)
                tls = {"mode": "ISTIO_MUTUAL", **({"sni": route.sni(port)} if route.is_named(port) else {})}
                subsets[place][name] = {"name": name, **({"trafficPolicy": {"tls": tls}} if name != PLAIN else {})}
    for default in defaults:
        for place in default.clients or ("*",):
            subsets[place] |= {"mutual": {"name": "mutual", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}, PLAIN: {"name": PLAIN}}
    for_all = subsets.pop("*", {})
    if for_all or gateway.namespace in subsets:
        subsets[gateway.namespace] = for_all | subsets.get(gateway.namespace, {})
    return [
        _shared(
            "DestinationRule",
            place,
            short(f"egress-{gateway.namespace}.{gateway.service}"),
            {
                "host": gateway.host,
                "exportTo": ["*"] if for_all and place == gateway.namespace else ["."],
                "subsets": [named[1] for named in sorted((for_all | own).items())],
            },
            gateway,
        )
        for place, own in sorted(subsets.items())
    ]


def _gateway_legs(route: Route, gateway: Gateway) -> list[Object]:
    """HTTP and TLS that keep the host's name in one VirtualService, whatever the hop; what comes under a made-up name or on its own port in one each."""
    result, http, tls = [], [], []
    arrivals = (TLS_PORT,) if route.entry.allow_from else (HTTP_PORT, TLS_PORT)  # nobody is known on the plain port
    for port in route.entry.ports:
        out = [{"destination": {"host": route.dialled, "port": {"number": port.number}}}]
        if port.protocol in HTTP_PROTOCOLS:
            if route.origination:
                out = [{"destination": {"host": route.dialled, "subset": ORIGINATED, "port": {"number": route.origination.port}}}]
            # a pattern of AuthorizationPolicy has one wildcard, so no other port in Host may lead out than those that the guard lists
            known = {"authority": {"regex": f"[^:]*(:{port.number})?"}} if route.entry.is_wildcard else {}
            http.append({"match": [{"port": number, **known} for number in arrivals], "route": out})
        elif route.is_named(port) or route.takes_port(port):
            called = route.sni(port) if route.is_named(port) else route.entry.host
            spec = {"hosts": [called], "gateways": [gateway_name(gateway)], "exportTo": ["."]}
            spec["tcp"] = [{"match": [{"port": route.gateway_port(port)}], "route": out}]
            result.append(_object("VirtualService", gateway.namespace, _leg_name(route, gateway, f"-{port.name}"), spec, route.key))
        else:
            tls.append({"match": [{"port": TLS_PORT, "sniHosts": [route.entry.host]}], "route": out})
    if http or tls:
        spec = {"hosts": [route.entry.host], "gateways": [gateway_name(gateway)], "exportTo": ["."]}
        spec |= {kind: rules for kind, rules in (("http", http), ("tls", tls)) if rules}
        result.append(_object("VirtualService", gateway.namespace, _leg_name(route, gateway), spec, route.key))
    return result


def _leg_name(route: Route, gateway: Gateway, port: str = "") -> str:
    """Short, since the gateway holds it up to four times for each host. Neither a Service nor a namespace has a dot, so that no two namespaces share one."""
    policy = "" if route.policy == DEFAULT_POLICY else f"-of-{route.policy}"
    return short(f"{gateway.service}.{route.namespace}.{route.entry.as_name}{port}{policy}")


def gateway_name(gateway: Gateway) -> str:
    return f"egress-{gateway.service}"


def _object(kind: str, namespace: str, name: str, spec: Object, policy: str | None = None) -> Object:
    return {"apiVersion": NETWORKING, "kind": kind, "metadata": {"name": name, "namespace": namespace, "labels": policy_labels(policy)}, "spec": spec}


def _shared(kind: str, namespace: str, name: str, spec: Object, gateway: Gateway) -> Object:
    """An object that all policies share which send hosts through the gateway."""
    obj = _object(kind, namespace, name, spec)
    obj["metadata"]["annotations"] = {GATEWAY_ANNOTATION: gateway.reference}
    return obj


def shared_for(obj: Mapping[str, Any]) -> str | None:
    """The gateway (namespace/service) of an object that policies share; None for any other object."""
    return (obj["metadata"].get("annotations") or {}).get(GATEWAY_ANNOTATION) if is_ours(obj) else None


def short(name: str) -> str:
    return name if len(name) <= 240 else f"{name[:229].rstrip('.-')}-{digest(name)}"
