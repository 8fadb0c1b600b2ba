# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. From what is declared to the requests that prove it: each host by its way, and refusals around it.

Pure: ServiceEntries go in, requests with expectations come out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _gateway, _sidecars
from ansible_collections.meshops.istio_egress.plugins.module_utils._explain import exported
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import ports_of, read_service_entry
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import owner_of, policy_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import HTTP_PROTOCOLS, IP_DOMAIN, TLS_PROTOCOLS, HostEntry, Port
from ansible_collections.meshops.istio_egress.plugins.module_utils._traffic import Request, TrafficError

UNDECLARED = "undeclared.invalid"
"""A name that nobody can declare (RFC 2606). It is asked for at the address of a declared host, so that no DNS has a part in the refusal."""
NOBODY = "192.0.2.1"
"""An address that nobody has (RFC 5737), so that the mode decides about it."""
MOST_OF_OTHERS = 50
"""Requests for what other owners open: in a large mesh many entries are exported to all."""
STRANGER = "an identity that may not"
SPARE_PORTS = (8443, 9443, 10443, 11443)


@dataclass(frozen=True)
class Derived:
    """`strangers` are requests to be made by an identity that no `allow_from` names."""

    requests: tuple[Request, ...]
    notes: tuple[str, ...] = ()
    strangers: tuple[Request, ...] = ()


def derive(
    entries: Iterable[Mapping[str, Any]],
    namespace: str,
    account: str,
    refuses: bool,
    others: bool,
    sidecar: Mapping[str, Any] | None = None,
    undeclared: bool = False,
) -> Derived:
    """The requests for all hosts that this collection declared for a namespace, made by a workload with the service account `account`.

    `refuses` says whether undeclared hosts are refused there, else there are no refusals to prove, unless `undeclared` asks for them. With `others`, what
    entries of other owners open beyond the declared hosts must be refused, too, as far as the workload's Sidecar resource imports them. Raises TrafficError
    when nothing is declared, and no refusal is asked for.
    """
    entries = [e for e in entries if e["spec"].get("hosts")]
    routes = _gateway.read_routes(entries)
    through = [r for r in routes if namespace in r.clients or not r.clients]
    routed = {r.entry.host for r in through}
    own = [e for e in entries if (policy_of(e) or ".").count(".") == 0 and exported(e, namespace)]
    direct = [d.entry for e in own for d in read_service_entry(e) if d.entry.host not in routed]
    if not (through or direct or undeclared):
        raise TrafficError(
            f"No host entry is declared for namespace {namespace}, so there is nothing to derive requests from.\n"
            "Declare hosts with istio_egress_host or istio_egress_gateway, or list requests; that nothing gets out is proven with refuse_undeclared."
        )
    notes: list[str] = []
    requests = [r for entry in direct for r in _each(entry, "allowed", "direct", "declared, directly", notes)]
    strangers: list[Request] = []
    together = defaultdict(list)
    for route in routes:
        together[route.gateway, route.entry.host].append(route)
    for route in through:
        callers = _gateway.callers(together[route.gateway, route.entry.host])
        if callers is not None and callers.isdisjoint((namespace, f"{namespace}/{account}")):
            requests += _by_a_stranger(route.entry, notes)
            continue
        requests += _each(route.entry, "allowed", "gateway", "declared, through the gateway", notes)
        if callers is not None and namespace not in callers:
            strangers += _by_a_stranger(route.entry, notes)
    if refuses or undeclared:
        declared = [*direct, *(r.entry for r in through)]
        opened = _opened_by_others(entries, namespace, declared, sidecar) if others else []
        requests += [*_refused(declared), *opened[:MOST_OF_OTHERS]]
        if len(opened) > MOST_OF_OTHERS:
            notes.append(f"Entries of other owners open {len(opened)} more hosts and ports; {MOST_OF_OTHERS} of them were tried (istio_egress_info lists all).")
    else:
        notes.append(f"Undeclared hosts are let out in namespace {namespace} (its mode is not REGISTRY_ONLY), so no refusal was tried.")
    return Derived(tuple(dict.fromkeys(requests)), tuple(dict.fromkeys(notes)), tuple(dict.fromkeys(strangers)))


def _by_a_stranger(entry: HostEntry, notes: list[str]) -> list[Request]:
    spoken = tuple(p for p in entry.ports if not p.is_opaque)
    if spoken != entry.ports:
        notes.append(f"That plain TCP to {entry.host} is refused was not tried: the gateway looks at the caller at the first bytes, and none are sent.")
    return _each(replace(entry, ports=spoken), "blocked", None, STRANGER, notes)


def _each(entry: HostEntry, expect: str, via: str | None, rule: str, notes: list[str]) -> list[Request]:
    """A request for each port of the entry; `notes` gets what none can be made for."""
    if entry.is_wildcard:
        notes.append(f"{entry.host} is a wildcard, and no request was made for it: list one for a name below it in requests.")
        return []
    targets = [entry.host]
    if entry.host.endswith(f".{IP_DOMAIN}") or (entry.is_opaque and entry.addresses):
        targets = [a for a in entry.addresses if "/" not in a][:1]
        if not targets:
            notes.append(f"{', '.join(entry.addresses)} is a range, and no request was made for it: list one for an address in it in requests.")
    named = [] if entry.host.endswith(f".{IP_DOMAIN}") else [entry.host]
    result = []
    for port in entry.ports:
        result += [_request(t, port, expect, via, rule) for t in (targets if port.is_opaque else named or targets)]
    return result


def _request(host: str, port: Port, expect: str, via: str | None, rule: str) -> Request:
    scheme = "http" if port.protocol in HTTP_PROTOCOLS else "https" if port.protocol in TLS_PROTOCOLS else "tcp"
    return _of(scheme, host, port.number, expect, via, rule)


def _of(scheme: str, host: str, port: int, expect: str, via: str | None, rule: str, at: str = "") -> Request:
    usual = {"http": 80, "https": 443}.get(scheme) == port
    shown = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{shown}{'' if usual else f':{port}'}" + ("" if scheme == "tcp" else "/")
    return Request(url, scheme, host, port, expect, via, at, rule)


def _refused(entries: list[HostEntry]) -> list[Request]:
    """What must not get out although it comes close: another name, another port, another protocol. Where no name comes close, an address."""
    named = [e for e in entries if not e.is_wildcard and not e.host.endswith(f".{IP_DOMAIN}")]
    result = []
    for protocols, scheme in ((HTTP_PROTOCOLS, "http"), (TLS_PROTOCOLS, "https")):
        near = next(((e, p) for e in named for p in e.ports if p.protocol in protocols), None)
        if near:
            entry, port = near
            result.append(_of(scheme, UNDECLARED, port.number, "blocked", None, "an undeclared host", at=entry.host))
    used = {p.number for e in entries for p in e.ports}
    spare = next((p for p in SPARE_PORTS if p not in used), None)
    for entry in named:
        if spare:
            result.append(_of("tcp", entry.host, spare, "blocked", None, "a declared host on an undeclared port"))
        tls = [p.number for p in entry.ports if p.protocol in TLS_PROTOCOLS]
        if tls and not any(p.protocol in HTTP_PROTOCOLS for p in entry.ports):
            result.append(_of("http", entry.host, tls[0], "blocked", None, "plain HTTP where only TLS is declared"))
    return result or [_of("tcp", NOBODY, spare or SPARE_PORTS[0], "blocked", None, "an undeclared address")]


def _opened_by_others(entries: Iterable[Mapping[str, Any]], namespace: str, declared: list[HostEntry], sidecar: Mapping[str, Any] | None) -> list[Request]:
    """A request for each host and port that an entry of another owner opens for the namespace, and no declared entry does."""
    ours = {(e.host, p.number) for e in declared for p in e.ports}
    result = []
    for obj in entries:
        if policy_of(obj) or not exported(obj, namespace):
            continue
        rule = f"opened by ServiceEntry {obj['metadata']['namespace']}/{obj['metadata']['name']} ({owner_of(obj)}), not by a declared host"
        for host in obj["spec"]["hosts"]:
            if host.startswith("*") or ".svc." in host:
                continue
            if sidecar is not None and not _sidecars.imports(sidecar, namespace, host, obj["metadata"]["namespace"]):
                continue
            for known in ports_of(obj):
                target = next((a for a in obj["spec"].get("addresses") or () if "/" not in a), host) if known.is_opaque else host
                if (host, known.number) not in ours:
                    result.append(_request(target, known, "blocked", None, rule))
    return result
