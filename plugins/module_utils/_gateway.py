# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Hosts that are reached through an egress gateway: what is wanted, what is refused, and what live objects record.

Pure. `_gateway_objects` makes the objects for it, `_gateway_plan` the order of their change. The shape (seen on Istio 1.31.1 with Envoy 1.40):

- The gateway's ports 80 and 443 carry everything but plain TCP, so its Service needs no change. Port 80 is plain HTTP; port 443 is told apart by SNI:
  the host itself for TLS that is passed through, a made-up name for TLS or TCP inside the mesh's own TLS (it says which host and port),
  any other name for HTTP inside the mesh's own TLS. Old and new hop of a host can so exist side by side while clients move. A name that ends like a
  made-up one never leads to a host by HTTP, though nothing travels under it: `allow_from` relies on that, see ``guard_objects``.
- The ServiceEntries in the gateway's namespace record every route in their annotation; all that policies share is made from them.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _policy
from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import read_service_entry
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import EVERYTHING_SCOPE, policy_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import HTTP_PROTOCOLS, METADATA, TLS_PROTOCOLS, HostEntry, Port

HTTP_PORT, TLS_PORT = 80, 443
"""Ports of the gateway's Service."""
PLAIN, MUTUAL = "plain", "mutual_tls"
MADE_UP = "egress"
"""The domain of made-up names."""
KINDS = ("ServiceEntry", "Gateway", "DestinationRule", "VirtualService", "AuthorizationPolicy")
EVERYTHING = "everything"
"""What stands for all hosts in the option `hosts`."""
DOMAINS = ("com", "net", "org", "io", "dev")
"""Top-level domains that a default route has from the start; those of declared hosts come to them."""


OPTIONS: dict[str, dict[str, Any]] = {
    "gateway": {"type": "str", "default": "istio-system/istio-egressgateway"},
    "hosts": {"type": "list", "elements": "raw"},
    "export_to": {"type": "list", "elements": "str", "default": ["."]},
    "hop": {"type": "str", "choices": ["auto", MUTUAL, PLAIN], "default": "auto"},
    "tls": {"type": "str", "choices": ["none", "simple", "mutual"], "default": "none"},
    "credential": {"type": "str", "default": ""},
    "tls_port": {"type": "int", "default": 443},
    "tls_verify": {"type": "bool", "default": True},
    "allow_from": {"type": "list", "elements": "raw", "default": []},
    "allow_from_mode": {"type": "str", "choices": ["enforce", "shadow"], "default": "enforce"},
}
"""How hosts go through a gateway, as Ansible takes it: of a task, or of one part of a policy's document."""


class GatewayError(EgressError):
    """The gateway, or Istio, cannot do what is asked of it."""


@dataclass(frozen=True)
class Gateway:
    """An egress gateway as it was found: its Service, the labels of its pods, and where its Service's TLS port leads in the pod.

    `ports` are those of the Service, and `own_service` is the Service itself where it is ours to change. `others` are names that others have taken on
    the TLS port for what is no HTTP.
    """

    namespace: str
    service: str
    selector: tuple[tuple[str, str], ...]
    tls_target_port: int = 8443
    ports: tuple[int, ...] = (HTTP_PORT, TLS_PORT)
    own_service: Mapping[str, Any] | None = field(default=None, compare=False)
    others: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        return f"{self.service}.{self.namespace}.svc.cluster.local"

    @property
    def reference(self) -> str:
        return f"{self.namespace}/{self.service}"

    def cluster(self, port: int, subset: str) -> str:
        """The name that Envoy has for the way to it."""
        return f"outbound|{port}|{subset}|{self.host}"


def named(reference: str) -> Gateway:
    """A gateway (namespace/service) as far as its name tells, with the label that istioctl gives to pods. Raises GatewayError."""
    namespace, _sep, name = reference.partition("/")
    if not namespace or not name or "/" in name:
        raise GatewayError(f'gateway is "{reference}".\nWrite namespace/name of the Service of the egress gateway, such as istio-system/istio-egressgateway.')
    return Gateway(namespace, name, (("istio", "egressgateway"),))


@dataclass(frozen=True)
class Origination:
    """TLS that the gateway puts around HTTP: ``simple``, or ``mutual`` with a client certificate, to `port` of the host.

    `credential` is the Secret in the gateway's namespace; with `verify` the host's certificate is checked against its CA (or the system's) and the name.
    """

    mode: str
    credential: str = ""
    port: int = 443
    verify: bool = True


@dataclass(frozen=True)
class Route:
    """A host entry that clients of `namespace` reach through `gateway` (namespace/service) by `hop`, declared by `policy`.

    `export_to` are the namespaces of the clients, as in objects. With `shadow`, the entry's `allow_from` is watched and not enforced.
    """

    entry: HostEntry
    namespace: str
    policy: str
    gateway: str
    hop: str
    export_to: tuple[str, ...] = (".",)
    origination: Origination | None = None
    shadow: bool = False

    @property
    def key(self) -> str:
        """The policy name on objects in the gateway's namespace, where policies of several namespaces meet."""
        return f"{self.policy}.{self.namespace}"

    @property
    def clients(self) -> tuple[str, ...]:
        """The namespaces of the clients by name; empty for all."""
        return _clients(self.namespace, self.export_to)

    @property
    def dialled(self) -> str:
        """The host that the gateway calls."""
        return self.entry.backend or self.entry.host

    def hop_of(self, port: Port) -> str:
        """`auto` is mutual TLS where it costs nothing (HTTP), where there is no other way (TCP), and where identity is asked for; else plain."""
        if self.hop != "auto":
            return self.hop
        return PLAIN if port.protocol in TLS_PROTOCOLS and not self.entry.allow_from else MUTUAL

    def is_named(self, port: Port) -> bool:
        """Travels under a made-up SNI that says host and port."""
        return port.protocol not in HTTP_PROTOCOLS and self.hop_of(port) == MUTUAL

    def subset(self, port: Port) -> str:
        """The subset of the gateway's DestinationRule: plain, mutual, or one of its own for a made-up SNI."""
        if self.is_named(port):
            return f"{port.name}-{digest(self.entry.host)}"
        return "mutual" if self.hop_of(port) == MUTUAL else "plain"

    def takes_port(self, port: Port) -> bool:
        """Has a port of the gateway's Service for itself, since nothing on the wire says where it goes."""
        return port.is_opaque and self.hop_of(port) == PLAIN

    def gateway_port(self, port: Port) -> int:
        if self.takes_port(port):
            return port.number
        return HTTP_PORT if port.protocol in HTTP_PROTOCOLS and self.hop_of(port) == PLAIN else TLS_PORT

    def sni(self, port: Port) -> str:
        return f"{port.name}.{self.entry.as_name}.{MADE_UP}"

    def originated(self, port: Port) -> bool:
        return self.origination is not None and port.protocol in HTTP_PROTOCOLS

    def destination(self, port: Port) -> str:
        """Envoy's name for the host itself, at the gateway."""
        if self.originated(port):
            return f"outbound|{self.origination.port}|{ORIGINATED}|{self.dialled}"
        return f"outbound|{port.number}||{self.dialled}"


ORIGINATED = "tls"
"""Subset of a host's DestinationRule that has the gateway's TLS, beside what is passed through."""


@dataclass(frozen=True)
class DefaultRoute:
    """All that is not the mesh's own goes from the clients of `namespace` to `gateway`, by top-level domain."""

    namespace: str
    policy: str
    gateway: str
    domains: tuple[str, ...]
    export_to: tuple[str, ...] = (".",)

    @property
    def clients(self) -> tuple[str, ...]:
        """The namespaces of the clients by name; empty for all."""
        return _clients(self.namespace, self.export_to)

    def covers(self, route: Route) -> bool:
        """Whether clients reach the host by the default route, so that nothing has to be made for it at the clients."""
        shapes = {(80, "HTTP", MUTUAL), (443, "TLS", PLAIN), (443, "HTTPS", PLAIN)}
        return (
            (self.namespace, self.gateway, self.export_to) == (route.namespace, route.gateway, route.export_to)
            and domain_of(route.entry.host) in self.domains
            and {(p.number, p.protocol, route.hop_of(p)) for p in route.entry.ports} <= shapes
        )


def _clients(namespace: str, export_to: Iterable[str]) -> tuple[str, ...]:
    return () if "*" in export_to else tuple(sorted({namespace if name == "." else name for name in export_to}))


def domain_of(host: str) -> str:
    return host.rpartition(".")[2]


def check(routes: Iterable[Route], others: Iterable[Route]) -> None:
    """Raises GatewayError for what a gateway cannot do, with what to use instead. `others` are the routes of other policies."""
    routes = list(routes)
    for route in routes:
        _check_backend(route, routes)
        _check_hop(route)
        _check_origination(route)
    others = list(others)
    by_host: dict[tuple[str, str], list[Route]] = defaultdict(list)
    by_name: dict[tuple[str, str], list[Route]] = defaultdict(list)
    by_port = {(o.gateway, p.number): o for o in others for p in o.entry.ports if o.takes_port(p)}
    for route in (*routes, *others):
        by_host[route.gateway, route.entry.host].append(route)
        by_name[route.gateway.partition("/")[0], route.dialled].append(route)
    for route in routes:
        for other in by_name[route.gateway.partition("/")[0], route.dialled]:
            _check_looked_up(route, other)
        for other in by_host[route.gateway, route.entry.host]:
            _check_together(route, other)
        _check_ports(route, by_port)


def _check_backend(route: Route, routes: list[Route]) -> None:
    entry = route.entry
    if entry.is_wildcard and not route.entry.backend:
        raise GatewayError(
            f"{entry.host} cannot go through an egress gateway as it is: the gateway has to know the one host that it dials.\n"
            "Give the backend that serves all of it, list the hosts, or let the wildcard out directly with istio_egress_host."
        )
    if route.entry.backend and not entry.is_wildcard:
        raise GatewayError(f"{entry.host} has the backend {route.entry.backend}, but only wildcards have one.\nLeave backend out, or write *.{entry.host}.")
    if route.entry.backend and any(r.dialled == route.entry.backend and r != route for r in routes):
        raise GatewayError(
            f"{route.entry.backend} is the backend of {entry.host} and listed beside it.\nLeave one of the two out; name it as host alone, or as backend alone."
        )


def _check_hop(route: Route) -> None:
    entry = route.entry
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
    opaque = next((p for p in entry.ports if route.takes_port(p) and p.number in (HTTP_PORT, TLS_PORT)), None)
    if opaque:
        raise GatewayError(
            f"{entry.host}: {opaque.protocol} port {opaque.number} by a plain hop would need port {opaque.number} of the gateway, which carries HTTP and TLS.\n"
            "Use hop mutual_tls (or auto), which carries any number of TCP hosts over the gateway's TLS port."
        )
    if route.entry.allow_from and route.hop == PLAIN:
        raise GatewayError(
            f"{entry.host} has allow_from, but by a plain hop the gateway does not learn who calls.\nUse hop auto or mutual_tls for {entry.host}."
        )


def _check_origination(route: Route) -> None:
    entry, tls = route.entry, route.origination
    if not tls:
        return
    if not any(p.protocol in HTTP_PROTOCOLS for p in entry.ports):
        raise GatewayError(
            f"{entry.host} has no HTTP port, and the gateway can put TLS around HTTP alone.\nAdd port 80 to its ports: workloads then call http://{entry.host}."
        )
    there = next((p for p in entry.ports if p.number == tls.port), None)
    if there and there.protocol not in TLS_PROTOCOLS:
        raise GatewayError(
            f"{entry.host}: port {tls.port} is {there.protocol} for clients and TLS for the gateway.\nSet tls_port to the port where {entry.host} speaks TLS."
        )
    if entry.is_wildcard:
        raise GatewayError(f"{entry.host}: TLS cannot be put around a wildcard, since its certificate has another name for each host.\nList the hosts.")
    if tls.credential and not tls.verify:
        raise GatewayError(
            f"{entry.host}: Istio takes no credential where the certificate of the host is not verified (istiod refuses both together).\n"
            "Leave tls_verify true, with the CA of the host in the Secret; or use tls simple without credential."
        )
    if tls.mode == "mutual" and not tls.credential:
        raise GatewayError(
            f"{entry.host}: tls mutual needs a client certificate.\nSet credential to a Secret with tls.crt, tls.key and ca.crt in the gateway's namespace."
        )


def _check_ports(route: Route, by_port: dict[tuple[str, int], Route]) -> None:
    """Takes the ports that the route has to itself into `by_port`, unless another host has one of them."""
    for port in route.entry.ports:
        if not route.takes_port(port):
            continue
        other = by_port.setdefault((route.gateway, port.number), route)
        if other.entry.host != route.entry.host:
            raise GatewayError(
                f"{route.entry.host} and {other.entry.host} would both take port {port.number} of {route.gateway} for plain TCP.\n"
                "Use hop mutual_tls (or auto), which carries any number of TCP hosts over the gateway's TLS port."
            )


def _check_together(route: Route, other: Route) -> None:
    """Two routes of one host through one gateway."""
    if other == route:
        return
    whose = f'policy "{other.policy}" of namespace {other.namespace}'
    if other.origination != route.origination and all(any(p.protocol in HTTP_PROTOCOLS for p in r.entry.ports) for r in (route, other)):
        raise GatewayError(
            f"{route.entry.host} goes through {route.gateway} for {whose}, too, with tls {other.origination.mode if other.origination else 'none'}; "
            f"a gateway has one way to a host.\nAgree on tls, credential, tls_port and tls_verify, or use another gateway. {_gone(other)}"
        )
    plain = [r for r in (route, other) if any(r.hop_of(p) == PLAIN for p in r.entry.ports)]
    if plain and (route.entry.allow_from or other.entry.allow_from):
        raise GatewayError(
            f"{route.entry.host} goes through {route.gateway} for {whose}, too, and one of the two has allow_from, the other a plain hop.\n"
            f"Send it by hop mutual_tls in both, so that the gateway knows who calls. {_gone(other)}"
        )


def _check_looked_up(route: Route, other: Route) -> None:
    """Two routes of one host from one namespace of gateways: istiod takes their ServiceEntries for one only when both look the host up alike."""
    if (other.entry.resolution, other.entry.addresses) != (route.entry.resolution, route.entry.addresses):
        raise GatewayError(
            f'{route.dialled} goes through {other.gateway} for policy "{other.policy}" of namespace {other.namespace}, too, with '
            f"{_looked_up(other.entry)}; gateways of one namespace find a host in one way.\n"
            f"Agree on addresses and resolution, or use a gateway in another namespace. {_gone(other)}"
        )


def _gone(other: Route) -> str:
    return f"If namespace {other.namespace} is no more, istio_egress_cleanup with namespace: {other.namespace} takes back what is left of it."


def _looked_up(entry: HostEntry) -> str:
    return f"the addresses {', '.join(entry.addresses)}" if entry.addresses else f"its name looked up in DNS ({entry.resolution})"


def callers(routes: Iterable[Route]) -> frozenset[str] | None:
    """Who may use one host at one gateway by all its `routes`, namespaces and namespace/serviceaccount. None where nobody is refused.

    The policies of several namespaces add up: who may is who may by one of them.
    """
    routes = list(routes)
    if not any(r.entry.allow_from and not r.shadow for r in routes):
        return None
    return frozenset(who for r in routes for who in (r.clients if r.shadow else r.entry.allow_from or r.clients))


# -- live objects -------------------------------------------------------------------------------------------------------------------


def recorded(route: Route) -> HostEntry:
    """The route as its ServiceEntry in the gateway's namespace has it: ports and name as the gateway dials them, the rest in the annotation."""
    entry, tls = route.entry, route.origination
    kept = {**dict(entry.metadata), "gateway": route.gateway, "hop": route.hop}
    ports = entry.ports
    if route.export_to != (".",):
        kept["export_to"] = " ".join(route.export_to)
    if tls:
        kept |= {"ports": " ".join(f"{p.protocol}/{p.number}" for p in entry.ports), "tls": tls.mode, "tls_port": str(tls.port)}
        kept |= {key: value for key, value in (("credential", tls.credential), ("tls_verify", "" if tls.verify else "no")) if value}
        if tls.port not in {p.number for p in ports}:
            ports = tuple(sorted((*ports, Port(tls.port, "HTTPS"))))
    if route.entry.allow_from:
        kept |= {"allow_from": " ".join(route.entry.allow_from), "allow_from_mode": "shadow" if route.shadow else "enforce"}
    if route.entry.backend:
        kept["wildcard"] = entry.host
    return replace(entry, host=route.dialled, ports=ports, metadata=tuple(sorted(kept.items())), allow_from=(), backend="")


def read_routes(service_entries: Iterable[Mapping[str, Any]]) -> list[Route]:
    """Every route of this collection, from the ServiceEntries in the namespaces of gateways; the inverse of `recorded`."""
    routes = []
    for obj in service_entries:
        policy, _sep, namespace = (policy_of(obj) or "").partition(".")
        for declared in read_service_entry(obj) if namespace else ():
            kept = dict(declared.entry.metadata)
            if kept.get("gateway"):
                routes.append(_read(declared.entry, kept, policy, namespace))
    return routes


def _read(entry: HostEntry, kept: Mapping[str, str], policy: str, namespace: str) -> Route:
    ports = tuple(Port(int(number), protocol) for protocol, _sep, number in (p.partition("/") for p in kept.get("ports", "").split()))
    origination = None
    if kept.get("tls"):
        origination = Origination(kept["tls"], kept.get("credential", ""), int(kept.get("tls_port", "443")), kept.get("tls_verify") != "no")
    called = replace(
        entry,
        host=kept.get("wildcard") or entry.host,
        ports=ports or entry.ports,
        metadata=tuple(sorted((key, value) for key, value in kept.items() if key in METADATA)),
        allow_from=tuple(kept.get("allow_from", "").split()),
        backend=entry.host if kept.get("wildcard") else "",
    )
    return Route(
        called,
        namespace,
        policy,
        kept["gateway"],
        kept.get("hop", "auto"),
        tuple(kept.get("export_to", ".").split()),
        origination,
        kept.get("allow_from_mode") == "shadow",
    )


def read_defaults(virtual_services: Iterable[Mapping[str, Any]]) -> list[DefaultRoute]:
    """Every default route of this collection, from the clients' VirtualServices."""
    result = []
    for obj in virtual_services:
        policy, _sep, scope = (policy_of(obj) or "").partition(".")
        if scope != EVERYTHING_SCOPE:
            continue
        spec, namespace = obj["spec"], obj["metadata"]["namespace"]
        service, place = spec["http"][0]["route"][0]["destination"]["host"].split(".")[:2]
        domains = tuple(sorted(host.removeprefix("*.") for host in spec["hosts"]))
        export_to = tuple(sorted("." if name == namespace else name for name in spec.get("exportTo") or ("*",)))
        result.append(DefaultRoute(namespace, policy, f"{place}/{service}", domains, export_to))
    return result


# -- what is wanted -----------------------------------------------------------------------------------------------------------------


def parse_routes(given: Mapping[str, Any], namespace: str, policy: str) -> list[Route]:
    """The `hosts` of `given` as routes; what it says of all of them is completed by what an entry says of itself.

    Its keys are OPTIONS. Raises PolicyError.
    """
    tls = Origination(given["tls"], given["credential"], given["tls_port"], given["tls_verify"]) if given["tls"] != "none" else None
    who = _policy.identities("all hosts", given["allow_from"])
    place = namespace, policy, given["gateway"], given["hop"], _policy.export_to(given["export_to"])
    entries = [replace(e, allow_from=e.allow_from or who) for e in _policy.parse_hosts(given["hosts"], at_gateway=True)]
    return [Route(entry, *place, tls, bool(entry.allow_from) and given["allow_from_mode"] == "shadow") for entry in entries]


def split_everything(hosts: Iterable[Any]) -> tuple[bool, list[Any]]:
    """Whether the option asks for everything, and the host entries that it has beside that word."""
    items = [word for item in hosts for word in (item.split() if isinstance(item, str) else [item])]
    return EVERYTHING in items, [item for item in items if item != EVERYTHING]


def wanted_routes(listed: Iterable[Route], removed: Iterable[str], purge: bool, live: Iterable[Route], namespace: str, policy: str) -> list[Route]:
    """What the policy shall send through gateways: the listed routes, and (unless `purge`) those it sends already."""
    gone = set(removed)
    wanted = {} if purge else {r.entry.host: r for r in live if (r.namespace, r.policy) == (namespace, policy) and r.entry.host not in gone}
    for route in listed:
        entry = route.entry
        resolution = "STATIC" if entry.addresses else "DNS_ROUND_ROBIN" if entry.resolution == "DNS_ROUND_ROBIN" else "DNS"
        wanted[entry.host] = replace(route, entry=replace(entry, resolution=resolution))
    return [wanted[host] for host in sorted(wanted)]


def wanted_default(
    asked: DefaultRoute | None, removed: bool, live: Iterable[DefaultRoute], routes: Iterable[Route], namespace: str, policy: str
) -> DefaultRoute | None:
    """The default route that the policy shall have, with the domains of all hosts that may go by it; `removed` says that there shall be none."""
    there = next((d for d in live if (d.namespace, d.policy) == (namespace, policy)), None)
    default = asked or (None if removed else there)
    if default is None:
        return None
    domains = {*default.domains, *(there.domains if there else ())}
    domains |= {domain_of(r.entry.host) for r in routes if r.gateway == default.gateway and not r.entry.is_opaque}
    return replace(default, domains=tuple(sorted(domains)))


def describe(routes: Iterable[Route], gateways: Iterable[str], default: DefaultRoute | None) -> dict[str, Any]:
    """Routes and gateways as a module returns them."""
    result = {"hosts": [_described(route) for route in routes], "gateways": sorted(gateways)}
    if default:
        result["everything"] = {"gateway": default.gateway, "domains": list(default.domains)}
    return result


def _described(route: Route) -> dict[str, Any]:
    tls = route.origination
    return {
        "host": route.entry.host,
        "ports": [f"{p.protocol.lower()}/{p.number}" for p in route.entry.ports],
        "addresses": list(route.entry.addresses),
        "gateway": route.gateway,
        "hop": {f"{p.protocol.lower()}/{p.number}": route.hop_of(p) for p in route.entry.ports},
        "export_to": list(route.export_to),
        "allow_from": list(route.entry.allow_from),
        **({"allow_from_mode": "shadow" if route.shadow else "enforce"} if route.entry.allow_from else {}),
        **({"tls": tls.mode, "tls_port": tls.port, "credential": tls.credential, "tls_verify": tls.verify} if tls else {}),
        **({"backend": route.entry.backend} if route.entry.backend else {}),
        **dict(route.entry.metadata),
    }


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
