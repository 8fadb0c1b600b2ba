# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What one proxy does with one request: Envoy's own decisions, taken again from its configuration.

Pure: it follows Envoy 1.40 through listener, filter chain, policies, route and cluster (envoyproxy/envoy, ``filter_chain_manager_impl.cc``,
``config_impl.cc``, ``rbac/matchers.cc``). It knows no object of Istio but the names that pilot leaves in the configuration.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

Ask = Callable[[str, str], list[Mapping[str, Any]]]
"""Asks a proxy: (resource of ``config_dump``, regular expression that the whole name matches) → configs."""

HTTP, TLS, TCP = "http", "tls", "tcp"
BLACK_HOLE, PASSTHROUGH = "BlackHoleCluster", "PassthroughCluster"
DYNAMIC_ANY = "AllowAnyDynamicDNSCluster"


@dataclass(frozen=True)
class Call:
    """What a client sends: `protocol` is http, tls (with `host` as SNI) or tcp; `port` is the one that it dials."""

    protocol: str
    host: str
    port: int
    path: str = "/"
    method: str = "GET"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 80 else f"{host}:{self.port}"

    @property
    def sni(self) -> str:
        """Clients send no server name for an address (RFC 6066)."""
        return "" if is_address(self.host) else self.host.lower()


@dataclass(frozen=True)
class Envelope:
    """TLS that a proxy has put around a request. `principal` is whose certificate it shows; empty for TLS without one."""

    sni: str
    alpn: tuple[str, ...] = ()
    principal: str = ""


@dataclass(frozen=True)
class Arrival:
    """A connection as it comes to a proxy. `address` is the destination that the sender dialled, None where it is not known."""

    call: Call
    address: str | None
    port: int
    envelope: Envelope | None = None
    peer: str = ""


@dataclass(frozen=True)
class Endpoint:
    address: str
    port: int
    healthy: bool = True


@dataclass(frozen=True)
class Passage:
    """What became of a connection in one proxy. `stopped` is why it went no further, empty when it went on.

    `cause` names the kind of a stop: listener, chain, mode, policy, route, cluster, endpoint, protocol, fault.
    `config` is the reference that pilot left at the route or chain, `rule` the destination rule at the cluster, `policy` the RBAC policy that
    decided; `needs_address` says that another address could have decided otherwise.
    """

    listener: str = ""
    chain: str = ""
    http: bool = False
    route_config: str = ""
    virtual_host: str = ""
    route: str = ""
    config: str = ""
    policy: str = ""
    cluster: str = ""
    kind: str = ""
    rule: str = ""
    service: tuple[str, str] = ("", "")
    endpoints: tuple[Endpoint, ...] = ()
    envelope: Envelope | None = None
    call: Call | None = None
    stopped: str = ""
    cause: str = ""
    needs_address: bool = False
    notes: tuple[str, ...] = ()
    others: tuple[tuple[str, int], ...] = ()
    """Other clusters that the route splits requests among, each with its weight."""

    @property
    def to_dialled(self) -> bool:
        """Goes on to the address that the client dialled, whatever the name."""
        return self.kind == "ORIGINAL_DST"

    @property
    def resolves(self) -> bool:
        """The proxy looks up the name on the wire itself."""
        return self.kind == "dynamic_forward_proxy"


class Configuration:
    """One proxy's configuration, asked for piece by piece, each piece once."""

    def __init__(self, ask: Ask) -> None:
        self._ask, self._known = ask, {}

    def listeners(self, port: int, outbound: bool) -> list[Mapping[str, Any]]:
        """The listeners that a connection to the port could come to."""
        names = rf".*_{port}(_.*)?" + ("|virtualOutbound" if outbound else "")
        found = [(config.get("active_state") or {}).get("listener") for config in self._get("dynamic_listeners", names)]
        return [listener for listener in found if listener]

    def route_config(self, name: str) -> Mapping[str, Any] | None:
        found = self._get("dynamic_route_configs", re.escape(name))
        return found[0]["route_config"] if found else None

    def cluster(self, name: str) -> Mapping[str, Any] | None:
        found = self._get("dynamic_active_clusters", re.escape(name))
        return found[0]["cluster"] if found else None

    def is_warming(self, name: str) -> bool:
        return bool(self._get("dynamic_warming_clusters", re.escape(name)))

    def endpoints(self, name: str) -> list[tuple[Endpoint, Mapping[str, Any]]]:
        """(endpoint, its metadata) of a cluster; names that are looked up in DNS have their addresses here."""
        result = []
        for config in self._get("dynamic_endpoint_configs", re.escape(name)):
            for group in config["endpoint_config"].get("endpoints") or ():
                for member in group.get("lb_endpoints") or ():
                    where = (member["endpoint"].get("address") or {}).get("socket_address")
                    if where:
                        healthy = member.get("health_status", "HEALTHY") in ("HEALTHY", "UNKNOWN", "DEGRADED")
                        metadata = (member.get("metadata") or {}).get("filter_metadata") or {}
                        result.append((Endpoint(where["address"], where.get("port_value", 0), healthy), metadata))
        return result

    def _get(self, resource: str, name: str) -> list[Mapping[str, Any]]:
        if (resource, name) not in self._known:
            self._known[resource, name] = self._ask(resource, name)
        return self._known[resource, name]


def whole(dump: Mapping[str, Any]) -> Ask:
    """Answers from one complete ``config_dump?include_eds``."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for config in dump.get("configs") or ():
        for resource, items in config.items():
            if isinstance(items, list):
                parts.setdefault(resource, []).extend(items)

    def name_of(item: Mapping[str, Any]) -> str:
        for key, name in (("route_config", "name"), ("cluster", "name"), ("endpoint_config", "cluster_name")):
            if key in item:
                return item[key].get(name, "")
        return item.get("name", "")

    def ask(resource: str, name: str) -> list[Mapping[str, Any]]:
        wanted = re.compile(name)
        return [item for item in parts.get(resource, ()) if wanted.fullmatch(name_of(item))]

    return ask


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
        return True
    except ValueError:
        return False


def within(address: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


# -- through a proxy ----------------------------------------------------------------------------------------------------------------


def through(proxy: Configuration, arrival: Arrival, outbound: bool, principal: str) -> Passage:
    """The way of a connection through a proxy: a sidecar that redirection leads to (`outbound`), or a gateway.

    `principal` is the proxy's own identity, which it shows to the next one.
    """
    listener, unsure = _listener(proxy.listeners(arrival.port, outbound), arrival, outbound)
    if listener is None:
        return Passage(stopped=f"nothing listens on port {arrival.port}", cause="listener")
    here = Passage(listener=listener.get("name", ""), call=arrival.call, needs_address=unsure)
    seen = _inspect(listener, arrival)
    if seen.waits:
        here = replace(here, notes=("a client that waits for the far end's first word hangs here: the port is inspected for its protocol",))
    chain, unsure = _chain(listener, arrival, seen)
    here = replace(here, needs_address=here.needs_address or unsure)
    if chain is None:
        return replace(here, stopped=f"no filter chain of listener {here.listener} takes {_words(seen)}", cause="chain")
    here = replace(here, chain=_chain_name(listener, chain), config=_config(chain))
    terminated = _tls_of(chain)
    envelope, peer = arrival.envelope, ""
    if terminated is not None:
        if envelope is None and arrival.call.protocol != TLS:
            return replace(here, stopped="the listener wants TLS, and the connection is not", cause="protocol")
        if terminated.get("require_client_certificate") and not (envelope and envelope.principal):
            return replace(here, stopped="the listener wants the mesh's own TLS, and the connection does not come with it", cause="protocol")
        peer, envelope = envelope.principal if envelope else "", None
    inside = Connection(arrival, seen, envelope, peer)
    for network_filter in chain.get("filters") or ():
        name, config = network_filter["name"], network_filter.get("typed_config") or {}
        if name == "envoy.filters.network.rbac":
            allowed, policy = _rbac(config, inside, None)
            here = replace(here, policy=policy or here.policy)
            if not allowed:
                return _denied(here, policy)
        elif name == "envoy.filters.network.http_connection_manager":
            return _http(proxy, here, config, inside, principal)
        elif name == "envoy.filters.network.tcp_proxy":
            return _to_cluster(proxy, here, list(_weighted(config)), inside, principal)
    return replace(here, stopped=f"filter chain {here.chain} leads nowhere", cause="chain")


@dataclass(frozen=True)
class Seen:
    """What the listener filters saw of a connection; `waits` tells that they look for a protocol before anything else happens."""

    transport: str = "raw_buffer"
    sni: str = ""
    alpn: tuple[str, ...] = ()
    waits: bool = False


@dataclass(frozen=True)
class Connection:
    """A connection inside a filter chain: TLS that ends there is off. `peer` is the identity that it came with."""

    arrival: Arrival
    seen: Seen
    envelope: Envelope | None
    peer: str

    @property
    def is_tls(self) -> bool:
        return self.envelope is not None or self.arrival.call.protocol == TLS


def _listener(listeners: list[Mapping[str, Any]], arrival: Arrival, outbound: bool) -> tuple[Mapping[str, Any] | None, bool]:
    """(listener, whether one of another address was passed over for want of an address): exact address, then any, then the catch-all."""
    any_address, catch_all, unsure = None, None, False
    for listener in listeners:
        for address, port in _addresses(listener):
            if listener.get("name") == "virtualOutbound":
                catch_all = listener
            elif port != arrival.port:
                continue
            elif address in ("0.0.0.0", "::"):
                any_address = any_address or listener
            elif outbound and address == arrival.address:
                return listener, False
            elif outbound and arrival.address is None:
                unsure = True
    return any_address or (catch_all if outbound else None), unsure


def _addresses(listener: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for holder in (listener, *(listener.get("additional_addresses") or ())):
        where = (holder.get("address") or {}).get("socket_address") or {}
        yield where.get("address", ""), where.get("port_value", 0)


def _inspect(listener: Mapping[str, Any], arrival: Arrival) -> Seen:
    names = [f["name"] for f in listener.get("listener_filters") or () if not _disabled(f.get("filter_disabled"), arrival.port)]
    tls, http = (any(kind in name for name in names) for kind in ("tls_inspector", "http_inspector"))
    if arrival.envelope:
        sent = Seen("tls", arrival.envelope.sni, arrival.envelope.alpn)
    elif arrival.call.protocol == TLS:
        sent = Seen("tls", arrival.call.sni, ("h2", "http/1.1"))
    elif arrival.call.protocol == HTTP:
        return Seen(alpn=("http/1.1",) if http else ())
    else:
        return Seen(waits=tls or http)
    return sent if tls else Seen()


def _disabled(predicate: Mapping[str, Any] | None, port: int) -> bool:
    """A listener filter may be off for some destination ports."""
    for kind, rule in (predicate or {}).items():
        if kind == "any_match":
            return bool(rule)
        if kind == "destination_port_range":
            return rule.get("start", 0) <= port < rule.get("end", 0)
        if kind == "not_match":
            return not _disabled(rule, port)
        if kind in ("or_match", "and_match"):
            return (any if kind == "or_match" else all)(_disabled(r, port) for r in rule.get("rules") or ())
    return False


def _chain(listener: Mapping[str, Any], arrival: Arrival, seen: Seen) -> tuple[Mapping[str, Any] | None, bool]:
    """(filter chain, whether the address that is not known could change it). Each criterion narrows the choice; there is no way back."""
    default = listener.get("default_filter_chain")
    pool = [(c, c.get("filter_chain_match") or {}) for c in listener.get("filter_chains") or ()]
    by_port = [p for p in pool if p[1].get("destination_port") == arrival.port]
    pool = by_port or [p for p in pool if "destination_port" not in p[1]]
    unsure = arrival.address is None and any(m.get("prefix_ranges") for _c, m in pool)
    lengths = [(_prefix(m, arrival.address), c, m) for c, m in pool]
    best = max((length for length, _c, _m in lengths), default=-1)
    pool = [(c, m) for length, c, m in lengths if length == best >= 0]
    pool = _narrow(pool, "server_names", _names_for(seen.sni))
    pool = _narrow(pool, "transport_protocol", [seen.transport])
    pool = _narrow(pool, "application_protocols", seen.alpn)
    return (pool[0][0] if pool else default), unsure


def _prefix(match: Mapping[str, Any], address: str | None) -> int:
    """Length of the longest range that holds the address; 0 without ranges, -1 outside of them."""
    ranges = match.get("prefix_ranges")
    if not ranges:
        return 0
    return max((r.get("prefix_len", 0) for r in ranges if address and within(address, f"{r['address_prefix']}/{r.get('prefix_len', 0)}")), default=-1)


def _names_for(host: str) -> list[str]:
    """A name, and the wildcards that stand for it, the closest first."""
    labels = host.split(".")
    return [host, *(f"*.{'.'.join(labels[i:])}" for i in range(1, len(labels)))] if host else []


def _narrow(pool: list[Any], key: str, wanted: Iterable[str]) -> list[Any]:
    def values(match: Mapping[str, Any]) -> list[str]:
        value = match.get(key) or []
        return [value.lower()] if isinstance(value, str) else [v.lower() for v in value]

    for word in wanted:
        found = [p for p in pool if word in values(p[1])]
        if found:
            return found
    return [p for p in pool if not values(p[1])]


def _tls_of(chain: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The TLS that ends at a filter chain."""
    socket = chain.get("transport_socket") or {}
    return socket.get("typed_config") or {} if socket.get("name") == "envoy.transport_sockets.tls" else None


def _chain_name(listener: Mapping[str, Any], chain: Mapping[str, Any]) -> str:
    match = chain.get("filter_chain_match") or {}
    if match.get("server_names"):
        return f"SNI {', '.join(match['server_names'][:3])}"
    if match.get("prefix_ranges"):
        return "addresses " + ", ".join(f"{r['address_prefix']}/{r.get('prefix_len', 0)}" for r in match["prefix_ranges"][:3])
    return chain.get("name") or ("default" if chain is listener.get("default_filter_chain") else "")


def _words(seen: Seen) -> str:
    return f"TLS for {seen.sni or 'no name'}" if seen.transport == "tls" else "plain bytes"


def _config(holder: Mapping[str, Any]) -> str:
    """The object that pilot made something from, ``KIND NAMESPACE/NAME`` with the kind as in the API path."""
    path = (((holder.get("metadata") or {}).get("filter_metadata") or {}).get("istio") or {}).get("config") or ""
    parts = path.strip("/").split("/")
    return f"{parts[-2]} {parts[-3]}/{parts[-1]}" if len(parts) >= 4 else ""


def _denied(here: Passage, policy: str) -> Passage:
    return replace(here, policy=policy, stopped=f"policy {policy} denies it" if policy else "no rule of the ALLOW policies takes it", cause="policy")


# -- HTTP ---------------------------------------------------------------------------------------------------------------------------


def _http(proxy: Configuration, here: Passage, config: Mapping[str, Any], inside: Connection, principal: str) -> Passage:
    here, call = replace(here, http=True), here.call
    if inside.is_tls or call.protocol != HTTP:
        return replace(here, stopped="the listener expects HTTP, and the connection carries something else", cause="protocol")
    name = (config.get("rds") or {}).get("route_config_name", "")
    table = config.get("route_config") or proxy.route_config(name)
    here = replace(here, route_config=name)
    for http_filter in config.get("http_filters") or ():
        if http_filter["name"] == "envoy.filters.http.rbac":
            allowed, policy = _rbac(http_filter.get("typed_config") or {}, inside, call)
            here = replace(here, policy=policy or here.policy)
            if not allowed:
                return _denied(here, policy)
        elif http_filter["name"] in _OPAQUE_FILTERS:
            here = replace(here, notes=(*here.notes, f"{http_filter['name']} decides too, and was not asked"))
    if table is None:
        return replace(here, stopped=f"there is no route table {name}", cause="route")
    virtual_host = _virtual_host(table, call)
    if virtual_host is None:
        return replace(here, stopped=f"route table {name} has no host {call.host} (404)", cause="route")
    here = replace(here, virtual_host=virtual_host["name"])
    route = next((r for r in virtual_host.get("routes") or () if _takes(r.get("match") or {}, call)), None)
    if route is None:
        return replace(here, stopped=f"no route of {virtual_host['name']} takes {call.method} {call.path} (404)", cause="route")
    here = replace(here, route=route.get("name", ""), config=_config(route) or here.config)
    if "direct_response" in route:
        status = route["direct_response"].get("status")
        cause = "mode" if virtual_host["name"] == "block_all" else "route"
        return replace(here, stopped=f"the proxy answers {status} by itself", cause=cause)
    if "redirect" in route:
        return replace(here, stopped="the proxy answers with a redirect", cause="route")
    aborts = ((route.get("typed_per_filter_config") or {}).get("envoy.filters.http.fault") or {}).get("abort") or {}
    if aborts and _certain(aborts.get("percentage") or {}):
        cluster = next((name for name, _weight in _weighted(route.get("route") or {})), "")
        return replace(here, cluster=cluster, stopped=f"a fault is injected: {aborts.get('http_status', 'abort')}", cause="fault")
    action = route.get("route") or {}
    if action.get("host_rewrite_literal"):
        here = replace(here, call=replace(call, host=action["host_rewrite_literal"].partition(":")[0]))
    if action.get("prefix_rewrite") and (route.get("match") or {}).get("prefix"):
        here = replace(here, call=replace(here.call, path=action["prefix_rewrite"] + call.path[len(route["match"]["prefix"]) :]))
    return _to_cluster(proxy, here, list(_weighted(action)), inside, principal)


_OPAQUE_FILTERS = ("envoy.filters.http.ext_authz", "envoy.filters.http.lua", "envoy.filters.http.wasm", "envoy.filters.http.jwt_authn")


def _virtual_host(table: Mapping[str, Any], call: Call) -> Mapping[str, Any] | None:
    """Exact domain, the longest ``*.suffix``, the longest ``prefix.*``, then ``*``."""
    host = (call.host if table.get("ignore_port_in_host_matching") else call.authority).lower()
    by_domain = {domain.lower(): v for v in table.get("virtual_hosts") or () for domain in v.get("domains") or ()}
    if host in by_domain:
        return by_domain[host]
    suffixes = sorted((d for d in by_domain if d.startswith("*") and len(d) > 1 and host.endswith(d[1:]) and len(host) > len(d) - 1), key=len)
    prefixes = sorted((d for d in by_domain if d.endswith("*") and len(d) > 1 and host.startswith(d[:-1]) and len(host) > len(d) - 1), key=len)
    best = (suffixes or prefixes or ["*"])[-1]
    return by_domain.get(best)


def _takes(match: Mapping[str, Any], call: Call) -> bool:
    path, full = call.path.partition("?")[0], call.path
    fold = (lambda text: text) if match.get("case_sensitive", True) else str.lower
    if "prefix" in match and not fold(full).startswith(fold(match["prefix"])):
        return False
    if "path" in match and fold(path) != fold(match["path"]):
        return False
    if "path_separated_prefix" in match and not (path + "/").startswith(match["path_separated_prefix"].rstrip("/") + "/"):
        return False
    if "safe_regex" in match and not _regex(match["safe_regex"].get("regex", ""), path):
        return False
    if "connect_matcher" in match or match.get("query_parameters"):
        return False
    return all(_header(rule, call) for rule in match.get("headers") or ())


def _header(rule: Mapping[str, Any], call: Call) -> bool:
    """Whether a header is as a rule wants it; of the headers only those are known that every request has."""
    value = {":method": call.method, ":authority": call.authority, ":path": call.path, "host": call.authority, ":scheme": "http"}.get(rule["name"].lower())
    if "present_match" in rule:
        held = (value is not None) == rule["present_match"]
    elif value is None:
        return bool(rule.get("treat_missing_header_as_empty") and rule.get("invert_match")) or bool(rule.get("invert_match"))
    else:
        held = _string(rule.get("string_match") or {_OLD_MATCH.get(k, k): v for k, v in rule.items() if k in _OLD_MATCH}, value)
    return held != bool(rule.get("invert_match"))


_OLD_MATCH = {"exact_match": "exact", "prefix_match": "prefix", "suffix_match": "suffix", "contains_match": "contains", "safe_regex_match": "safe_regex"}


def _string(rule: Mapping[str, Any], value: str) -> bool:
    if rule.get("ignore_case"):
        value = value.lower()
        rule = {k: v.lower() if isinstance(v, str) else v for k, v in rule.items()}
    if "exact" in rule:
        return value == rule["exact"]
    if "prefix" in rule:
        return value.startswith(rule["prefix"])
    if "suffix" in rule:
        return value.endswith(rule["suffix"])
    if "contains" in rule:
        return rule["contains"] in value
    if "safe_regex" in rule:
        return _regex(rule["safe_regex"].get("regex", ""), value)
    return not value  # an empty matcher is the exact empty string


def _regex(pattern: str, text: str) -> bool:
    try:
        return re.fullmatch(pattern, text) is not None
    except re.error:
        return False


def _certain(percentage: Mapping[str, Any]) -> bool:
    full = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}[percentage.get("denominator", "HUNDRED")]
    return percentage.get("numerator", 0) >= full


# -- policies -----------------------------------------------------------------------------------------------------------------------


def _rbac(config: Mapping[str, Any], inside: Connection, call: Call | None) -> tuple[bool, str]:
    """(allowed, the policy that says so). Envoy's RBAC: with ALLOW some policy has to fit, with DENY none may."""
    rules = config.get("rules")
    if rules is None:
        return True, ""
    fitting = next((name for name, p in sorted((rules.get("policies") or {}).items()) if _policy_fits(p, inside, call)), "")
    action = rules.get("action", "ALLOW")
    if action == "DENY":
        return not fitting, fitting
    return (action == "LOG" or bool(fitting)), fitting


def _policy_fits(policy: Mapping[str, Any], inside: Connection, call: Call | None) -> bool:
    permitted = any(_fits(rule, inside, call) for rule in policy.get("permissions") or ())
    return permitted and any(_fits(rule, inside, call) for rule in policy.get("principals") or ())


def _fits(rule: Mapping[str, Any], inside: Connection, call: Call | None) -> bool:
    """One permission or principal; what cannot be known from outside (metadata, JWT) does not fit."""
    arrival = inside.arrival
    for kind, value in rule.items():
        if kind == "any":
            return bool(value)
        if kind in ("and_rules", "and_ids"):
            return all(_fits(r, inside, call) for r in value.get("rules") or value.get("ids") or ())
        if kind in ("or_rules", "or_ids"):
            return any(_fits(r, inside, call) for r in value.get("rules") or value.get("ids") or ())
        if kind in ("not_rule", "not_id"):
            return not _fits(value, inside, call)
        if kind == "header":
            return call is not None and _header(value, call)
        if kind == "url_path":
            return call is not None and _string(value.get("path") or {}, call.path.partition("?")[0])
        if kind == "destination_port":
            return value == arrival.port
        if kind == "destination_port_range":
            return value.get("start", 0) <= arrival.port < value.get("end", 0)
        if kind == "destination_ip":
            return bool(arrival.address) and within(arrival.address, _cidr(value))
        if kind in ("direct_remote_ip", "remote_ip", "source_ip"):
            return bool(arrival.peer) and within(arrival.peer, _cidr(value))
        if kind == "requested_server_name":
            return _string(value, inside.seen.sni)
        if kind == "authenticated":
            return bool(inside.peer) and ("principal_name" not in value or _string(value["principal_name"], inside.peer))
    return False


def _cidr(value: Mapping[str, Any]) -> str:
    return f"{value['address_prefix']}/{value.get('prefix_len', 0)}"


# -- the way out --------------------------------------------------------------------------------------------------------------------


def _weighted(action: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(cluster, weight), the heaviest first."""
    if action.get("cluster"):
        yield action["cluster"], 1
    split = [(c["name"], c.get("weight", 0)) for c in (action.get("weighted_clusters") or {}).get("clusters") or ()]
    yield from sorted(((name, weight) for name, weight in split if weight), key=lambda c: -c[1])


def _to_cluster(proxy: Configuration, here: Passage, choice: list[tuple[str, int]], inside: Connection, principal: str) -> Passage:
    if not choice:
        return replace(here, stopped="the route leads to no cluster", cause="route")
    name = choice[0][0]
    here = replace(here, cluster=name, others=tuple(choice[1:]))
    if name == BLACK_HOLE:
        return replace(here, stopped="the proxy closes the connection", cause="mode")
    cluster = proxy.cluster(name)
    if cluster is None:
        warm = "is still looking its host up" if proxy.is_warming(name) else "does not exist"
        return replace(here, stopped=f"cluster {name} {warm}", cause="cluster")
    metadata = ((cluster.get("metadata") or {}).get("filter_metadata") or {}).get("istio") or {}
    services = metadata.get("services") or [{}]
    custom = (cluster.get("cluster_type") or {}).get("name", "").rpartition(".")[2]
    here = replace(
        here,
        kind=custom or cluster.get("type", "STATIC"),
        rule=_config(cluster),
        service=(services[0].get("namespace", ""), services[0].get("host", "")),
    )
    if here.to_dialled or here.resolves:
        return replace(here, envelope=_envelope(cluster, {}, inside, principal))
    endpoints = proxy.endpoints(name)
    healthy = [(e, m) for e, m in endpoints if e.healthy]
    if not healthy:
        why = "none of its addresses is healthy" if endpoints else "it has no address"
        return replace(here, stopped=f"cluster {name}: {why}", cause="endpoint")
    return replace(here, endpoints=tuple(e for e, _m in healthy), envelope=_envelope(cluster, healthy[0][1], inside, principal))


def _envelope(cluster: Mapping[str, Any], metadata: Mapping[str, Any], inside: Connection, principal: str) -> Envelope | None:
    """The TLS that goes around the request from here: what the cluster puts there, else what it came with and still has."""
    marks = metadata.get("envoy.transport_socket_match") or {}
    socket = next(
        (m["transport_socket"] for m in cluster.get("transport_socket_matches") or () if all(marks.get(k) == v for k, v in (m.get("match") or {}).items())),
        cluster.get("transport_socket"),
    )
    if not socket or socket.get("name") != "envoy.transport_sockets.tls":
        return inside.envelope
    tls = socket.get("typed_config") or {}
    common = tls.get("common_tls_context") or {}
    own = any(s.get("name") == "default" for s in common.get("tls_certificate_sds_secret_configs") or ())
    return Envelope(tls.get("sni", ""), tuple(common.get("alpn_protocols") or ()), principal if own else "")
