# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What a proxy really does, read from its own configuration: mode, and the destinations it knows.

Pure: it reads Envoy's ``config_dump`` as pilot configures it (names seen on Istio 1.31.1 with Envoy 1.40); fetching is `_watcher`'s work.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

RESOURCES = ("dynamic_listeners", "dynamic_route_configs")
"""The parts of ``config_dump`` that a Snapshot is made of."""
WARMING = "dynamic_warming_clusters"
"""Clusters that do not serve yet: one with DNS waits for its first answer. To be read last: istiod sends clusters first, so that a cluster
that a route names, and that is not warming when we look after that, serves."""
CLUSTERS = "dynamic_active_clusters"
"""The clusters that are warm, for a Snapshot that has to tell whether a route to one may be written."""
ENDPOINTS = "dynamic_endpoint_configs&include_eds"
"""The addresses of clusters, those from DNS included, for `without_address`."""

_MODE_OF_ROUTES = {"block_all": "REGISTRY_ONLY", "allow_any": "ALLOW_ANY", "allow_any_dynamic_dns": "ALLOW_ANY_DYNAMIC_DNS"}
_MODE_OF_CLUSTER = {"BlackHoleCluster": "REGISTRY_ONLY", "PassthroughCluster": "ALLOW_ANY"}
_OUTBOUND = re.compile(r"^outbound\|(\d+)\|([^|]*)\|(.+)$")


@dataclass(frozen=True)
class Snapshot:
    """What one proxy had at one moment.

    `modes` holds the mode of every place that decides about unknown destinations (the last filter chain of each outbound listener, and each HTTP
    route table); they differ only while a change is on its way. `routes` holds the clusters that a (host, port) goes to, for all that the proxy
    routes; `clusters` those that are warm, where they were asked for.
    """

    modes: frozenset[str]
    routes: Mapping[tuple[str, int], frozenset[str]]
    clusters: frozenset[str] = frozenset()
    warming: frozenset[str] = frozenset()
    callers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """What each AuthorizationPolicy (namespace/name) says about callers, as patterns of their SPIFFE names."""

    def guards(self, policy: str, who: Iterable[str]) -> bool:
        """Whether the AuthorizationPolicy is in force for exactly these callers (``cluster.local/ns/NAMESPACE/sa/NAME`` or ``/ns/NAMESPACE/`` each).

        istiod writes the mesh's trust domain for ``cluster.local``, and each name once more for every alias of it; so the trust domain is left out.
        """
        return _without_domain(self.callers.get(policy, ())) == _without_domain(who)

    def serves(self, destination: tuple[str, int]) -> bool:
        """Whether there is a route, and no cluster of it is warming."""
        return destination in self.routes and not self.routes[destination] & self.warming

    @property
    def mode(self) -> str | None:
        """The mode in force, or None while the proxy is between two."""
        if self.modes == {"ALLOW_ANY", "ALLOW_ANY_DYNAMIC_DNS"}:  # TLS and TCP are passed through in both
            return "ALLOW_ANY_DYNAMIC_DNS"
        return next(iter(self.modes)) if len(self.modes) == 1 else None


def read(dump: Mapping[str, Any]) -> Snapshot:
    """A Snapshot of the joined answers to ``config_dump?resource=R``: ``configs`` for each of RESOURCES (and CLUSTERS), ``warming`` for WARMING."""
    modes: set[str] = set()
    routes: dict[tuple[str, int], set[str]] = defaultdict(set)
    clusters: set[str] = set()
    callers: dict[str, set[str]] = defaultdict(set)
    for config in dump.get("configs") or ():
        listener = (config.get("active_state") or {}).get("listener")
        if listener:
            for policy, patterns in _rbac(listener):
                callers[policy].update(patterns)
            for destination, cluster in _listener_routes(listener):
                routes[destination].add(cluster)
            modes |= {_MODE_OF_CLUSTER[c] for c in _tcp_clusters(_last_chains(listener)) if c in _MODE_OF_CLUSTER}
        for host in (config.get("route_config") or {}).get("virtual_hosts") or ():
            if host["name"] in _MODE_OF_ROUTES:
                modes.add(_MODE_OF_ROUTES[host["name"]])
            else:
                for destination in _name_and_port(host["name"]):
                    routes[destination].update(_route_clusters(host))
        if config.get("cluster"):
            clusters.add(config["cluster"]["name"])
    warming = frozenset(config["cluster"]["name"] for config in dump.get("warming") or ())
    return Snapshot(frozenset(modes), {destination: frozenset(to) for destination, to in routes.items()}, frozenset(clusters), warming, callers)


def without_address(configs: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names of the clusters among the ``configs`` of ENDPOINTS that have no address."""
    found = (config["endpoint_config"] for config in configs)
    return {cluster["cluster_name"] for cluster in found if not any(group.get("lb_endpoints") for group in cluster.get("endpoints") or ())}


def _listener_routes(listener: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int], str]]:
    """Where connections to a listener go: by SNI (`server_names`), by address for TCP, and for a TCP cluster also by its own host and port."""
    address = (listener.get("address") or {}).get("socket_address") or {}
    port = address.get("port_value", 0)
    default = listener.get("default_filter_chain")
    decided: set[str] = set()  # the last chain only gets the addresses that no other one has
    for chain in (*(listener.get("filter_chains") or ()), *([default] if default else ())):
        match = chain.get("filter_chain_match") or {}
        names = match.get("server_names") or ()
        ranges = [f"{r['address_prefix']}/{r['prefix_len']}" for r in match.get("prefix_ranges") or ()] or [address.get("address", "")]
        for cluster in _tcp_clusters([chain]):
            own = _OUTBOUND.match(cluster)
            if names:
                yield from (((name, port), cluster) for name in names)
            elif own:
                yield (own[3], int(own[1])), cluster
                addresses = {where.removesuffix("/32").removesuffix("/128") for where in ranges} - (decided if chain is default else set())
                decided |= addresses
                yield from (((where, port), cluster) for where in addresses)


def _last_chains(listener: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What gets the connections that no match claims: the default chain, or (``virtualOutbound``) a chain without a match."""
    default = listener.get("default_filter_chain")
    return [*([default] if default else ()), *(c for c in listener.get("filter_chains") or () if not c.get("filter_chain_match"))]


def _route_clusters(virtual_host: Mapping[str, Any]) -> Iterator[str]:
    for route in virtual_host.get("routes") or ():
        action = route.get("route") or {}
        if action.get("cluster"):
            yield action["cluster"]
        for weighted in (action.get("weighted_clusters") or {}).get("clusters") or ():
            yield weighted["name"]


def _tcp_clusters(chains: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for chain in chains:
        for network_filter in chain.get("filters") or ():
            config = network_filter.get("typed_config") or {}
            if network_filter.get("name") == "envoy.filters.network.tcp_proxy":
                if config.get("cluster"):
                    yield config["cluster"]
                for weighted in (config.get("weighted_clusters") or {}).get("clusters") or ():
                    yield weighted["name"]


def _name_and_port(virtual_host: str) -> Iterator[tuple[str, int]]:
    """pilot names a virtual host ``HOST:PORT``."""
    host, _sep, port = virtual_host.rpartition(":")
    if host and port.isdigit():
        yield host, int(port)


_CALLER = re.compile(r"/ns/[^/]+/(sa/[^/]+)?")


def _without_domain(callers: Iterable[str]) -> set[str]:
    """The namespaces and service accounts in names of callers, or in patterns of them."""
    return {found[0] for found in map(_CALLER.search, callers) if found}


_RULE = re.compile(r"^ns\[(.+)\]-policy\[(.+)\]-rule\[\d+\]$")


def _rbac(listener: Mapping[str, Any]) -> Iterator[tuple[str, set[str]]]:
    """(namespace/name, patterns of callers) for each rule of an AuthorizationPolicy in the filters of a listener, by the name that pilot gives it."""
    default = listener.get("default_filter_chain")
    for chain in (*(listener.get("filter_chains") or ()), *([default] if default else ())):
        filters = [f.get("typed_config") or {} for f in chain.get("filters") or ()]
        filters += [f.get("typed_config") or {} for config in filters for f in config.get("http_filters") or ()]
        for config in filters:
            for rules in (config.get("rules"), config.get("shadow_rules")):
                for name, policy in ((rules or {}).get("policies") or {}).items():
                    rule = _RULE.match(name)
                    if rule:
                        yield f"{rule[1]}/{rule[2]}", _patterns(policy.get("principals"))


def _patterns(principals: Any) -> set[str]:
    """The texts that names of callers are compared with, anywhere inside a principal."""
    if isinstance(principals, list):
        return {text for item in principals for text in _patterns(item)}
    if not isinstance(principals, Mapping):
        return set()
    texts = {value for key, value in principals.items() if key in ("exact", "prefix", "suffix", "contains", "regex") and isinstance(value, str)}
    return texts | {text for value in principals.values() for text in _patterns(value)}
