# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What workloads talk to, by the access logs of their sidecars, and the host entries that would declare it.

Pure: lines of logs and what is declared go in, uses and host entries come out. It proposes only what was seen by name: an address alone says neither
whose it is nor whether it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._path import is_address
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import PROTOCOL_BY_PORT, PolicyError, parse_hosts
from ansible_collections.meshops.istio_egress.plugins.module_utils._text import aligned, few
from ansible_collections.meshops.istio_egress.plugins.module_utils._traffic import PASSTHROUGH, LogLine

DECLARED, PASSED, REFUSED = "declared", "passed", "refused"
"""What the sidecar did: sent it to the host that an object declares, let it out although nobody declares it, or refused it."""
NOBODYS = ".invalid"
"""Below it no host can have a name (RFC 2606): who asks for one tries whether it is refused, or learns."""
MOST_ADDRESSES = 5
"""Addresses of a host that a row shows."""


@dataclass(frozen=True, order=True)
class Destination:
    """Where requests went. `host` is what the Host header or the SNI said; where the log has neither, it is empty, and `address` tells."""

    host: str
    port: int
    protocol: str
    address: str = ""


@dataclass
class Use:
    """How often a destination was used, by whom (``kind/name``), from when to when (as the log writes it), and what came of it."""

    requests: int = 0
    workloads: set[str] = field(default_factory=set)
    outcomes: set[str] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)
    entries: set[str] = field(default_factory=set)
    """Hosts of the declarations that it went by, such as ``*.wikipedia.org``."""
    first: str = ""
    last: str = ""


@dataclass(frozen=True)
class Discovery:
    """`hosts` are entries for what was let out and is not declared, `refused` for what was only ever refused; `unnamed` are rows that none can be made of.

    `unused` are declared hosts that nobody asked for.
    """

    rows: list[dict[str, Any]]
    hosts: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    unnamed: list[dict[str, Any]]
    unused: list[dict[str, Any]]


def outbound(line: LogLine) -> tuple[Destination, str, str] | None:
    """Where a line of a sidecar's log says that a request went, what came of it, and the host of the declaration; None for traffic inside the mesh."""
    address, port = _server(line)
    if not port:
        return None
    asked, protocol = (_host(line.authority), "HTTP") if line.request else (line.sni.lower(), "TLS")
    if line.cluster in PASSTHROUGH:
        outcome = PASSED
    elif line.cluster == "BlackHoleCluster" or line.route == "block_all":
        outcome = REFUSED
    elif line.host:
        # A service of the cluster is asked for by its own name or by a first part of it, or over TCP; what goes by way of a gateway is asked for by another.
        if ".svc." in line.host and (not asked or line.host == asked or line.host.startswith(f"{asked}.")):
            return None
        outcome, asked = DECLARED, asked or line.host
    else:
        return None
    if not asked:
        return Destination("", port, "TLS" if port == 443 else "TCP", address), outcome, line.host
    return Destination(asked, port, protocol if line.request or line.sni else "TCP"), outcome, line.host


@dataclass(frozen=True)
class Log:
    """What the log of one sidecar comes to: when its oldest line was written (None without a line), and the uses in it."""

    since: str | None
    uses: dict[Destination, Use]


def read(workload: str, lines: Iterable[LogLine]) -> Log:
    """The log of a sidecar of a workload (``kind/name``)."""
    since, uses = None, {}
    for line in lines:
        since = min(since or line.start, line.start)
        if found := outbound(line):
            destination, outcome, entry = found
            once = Use(1, {workload}, {outcome}, {_server(line)[0]}, {entry} - {""}, line.start, line.start)
            _add(uses, destination, once)
    return Log(since, uses)


def joined(logs: Iterable[Log]) -> dict[Destination, Use]:
    """The uses of several logs together."""
    result: dict[Destination, Use] = {}
    for log in logs:
        for destination, use in log.uses.items():
            _add(result, destination, use)
    return result


def _add(uses: dict[Destination, Use], destination: Destination, more: Use) -> None:
    use = uses.setdefault(destination, Use(first=more.first))
    use.requests += more.requests
    for name in ("workloads", "outcomes", "addresses", "entries"):
        getattr(use, name).update(getattr(more, name))
    use.first, use.last = min(use.first, more.first), max(use.last, more.last)


def discover(seen: Mapping[Destination, Use], declared: Iterable[Mapping[str, Any]], inside: Mapping[str, str]) -> Discovery:
    """What the uses come to, beside the hosts that are `declared` for the namespace (rows of `_info.hosts_of`).

    `inside` gives what has an address of the cluster, such as ``Pod demo/web-0``.
    """
    declared = list(declared)
    named = {(d.port, address): d.host for d, use in seen.items() if d.host for address in use.addresses}
    rows: list[dict[str, Any]] = []
    passed: dict[str, dict[int, int | str]] = {}
    refused: dict[str, dict[int, int | str]] = {}
    unnamed = []
    for destination, use in sorted(seen.items(), key=lambda item: (not item[0].host, -item[1].requests, item[0])):
        row = _row(destination, use)
        rows.append(row)
        if use.outcomes == {DECLARED} or any(_declares(d, destination) for d in declared):
            continue
        local = inside.get(destination.address or destination.host) or (_is_local(destination.host) and f"{destination.host} is a name of the cluster")
        port = _port(destination)
        proposed = passed if PASSED in use.outcomes else refused
        if destination.host.endswith(NOBODYS):
            row["note"] = f"No host can have a name below {NOBODYS} (RFC 2606), so this was a test."
        elif local:
            row["note"] = f"{local}: REGISTRY_ONLY refuses what stays inside the cluster when it does not go by the name of a Service."
        elif (destination.port, destination.address) in named:
            row["note"] = f"Most likely {named[destination.port, destination.address]}, which was asked for by name at the same address."
        elif port is None:
            row["note"] = _why_unnamed(destination)
            unnamed.append(row)
        elif proposed.setdefault(destination.host, {}).setdefault(destination.port, port) != port:
            row["note"] = "A port has one protocol; the one that most requests spoke was taken."
    return Discovery(rows, _entries(passed), _entries(refused), unnamed, _unused(seen, declared))


def table(found: Discovery) -> list[str]:
    """The rows as aligned lines of plain text, a line of headings first."""
    lines = [("DESTINATION", "PROTOCOL", "REQUESTS", "OUTCOME", "WORKLOADS", "LAST SEEN")]
    for row in found.rows:
        where = row["host"] or row["addresses"][0]
        where = f"[{where}]:{row['port']}" if ":" in where else f"{where}:{row['port']}"
        lines.append((where, row["protocol"], str(row["requests"]), ", ".join(row["outcomes"]), ", ".join(row["workloads"]), row["last"]))
    return aligned(lines)


def warnings(namespace: str, pods: Iterable[str], bare: Iterable[str], silent: Mapping[str, bool | None]) -> list[str]:
    """What could not be seen: of all running `pods` those without a sidecar, and sidecars without a line, with whether they write an access log."""
    result = []
    if not list(pods):
        result.append(f"Namespace {namespace} has no running pod to learn from. Correct the namespace, or look again when its workloads run.")
    if bare := list(bare):
        result.append(f"What pods without a sidecar talk to is not seen in namespace {namespace}: {few(bare)}. Give them a sidecar.")
    if off := [pod for pod, writes in silent.items() if writes is False]:
        result.append(
            f"Sidecars in namespace {namespace} write no access log: {few(off)}. "
            "Turn it on (meshConfig.accessLogFile: /dev/stdout, or a Telemetry resource), let the workloads work, and look again."
        )
    if unknown := [pod for pod, writes in silent.items() if writes is None]:
        result.append(
            f"Sidecars in namespace {namespace} have no line in their logs, and whether they write an access log may not be seen "
            f"(create pods/portforward): {few(unknown)}."
        )
    return result


# -- inside -------------------------------------------------------------------------------------------------------------------------


def _server(line: LogLine) -> tuple[str, int]:
    """Address (IPv6 without brackets) and port that the workload dialled; port 0 where the line has none."""
    address, _colon, port = line.server.rpartition(":")
    return address.strip("[]"), int(port) if port.isdigit() else 0


def _host(authority: str) -> str:
    """The host of a Host header, without a port; IPv6 without brackets."""
    if authority.startswith("["):
        return authority.partition("]")[0].lstrip("[").lower()
    return authority.partition(":")[0].lower()


def _row(destination: Destination, use: Use) -> dict[str, Any]:
    return {
        "host": destination.host or None,
        "port": destination.port,
        "protocol": destination.protocol,
        "outcomes": sorted(use.outcomes),
        "requests": use.requests,
        "workloads": sorted(use.workloads),
        "addresses": sorted(use.addresses)[:MOST_ADDRESSES],
        "first": use.first,
        "last": use.last,
        "note": None,
    }


def _entries(proposed: Mapping[str, Mapping[int, int | str]]) -> list[dict[str, Any]]:
    return [{"host": host, "ports": [port for _number, port in sorted(ports.items())]} for host, ports in sorted(proposed.items())]


def _port(destination: Destination) -> int | str | None:
    """The port as a host entry has it; None for a destination that no host entry can be made of by name."""
    usual = PROTOCOL_BY_PORT.get(destination.port) == destination.protocol
    port = destination.port if usual else f"{destination.protocol.lower()}/{destination.port}"
    try:
        [entry] = parse_hosts([{"host": destination.host, "ports": [port]}])
    except PolicyError:
        return None
    return None if entry.addresses else port


def _is_local(host: str) -> bool:
    """Whether a name is one that only the cluster's DNS has."""
    return bool(host) and not is_address(host) and ("." not in host or host.endswith((".svc", ".cluster.local")))


def _declares(row: Mapping[str, Any], destination: Destination, hosts: Iterable[str] = ()) -> bool:
    """Whether a declared host is the one of the destination, or one of the `hosts` that it went by."""
    host = row["host"]
    named = destination.host == host or host in hosts or (host.startswith("*.") and destination.host.endswith(host[1:]))
    return named and any(port.partition("/")[2] == str(destination.port) for port in row["ports"])


def _why_unnamed(destination: Destination) -> str:
    if destination.host:
        return f"{destination.host} was asked for by HTTP, and is no name that can be declared. Have the workload ask for a name, or declare the address."
    if destination.protocol == "TLS":
        return (
            "The log has no server name: sidecars read it only on ports where some TLS host is declared for the namespace. "
            f"Declare any host on port {destination.port}, and look again."
        )
    return f"TCP has no name: declare it by one of your own, {{host: NAME, addresses: [{destination.address}], ports: [tcp/{destination.port}]}}."


def _unused(seen: Mapping[Destination, Use], declared: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Hosts and ports that this collection declared and no line is about. TCP by way of a gateway leaves no name in the log, so it is left out."""
    result = []
    for row in declared:
        used = {str(d.port) for d, use in seen.items() if _declares(row, d, use.entries)}
        ports = [p for p in row["ports"] if p.partition("/")[2] not in used and not (row["gateway"] and p.startswith("tcp/"))]
        if row["managed"] and ports and not row["host"].endswith(NOBODYS):
            result.append({"host": row["host"], "ports": ports, "object": row["object"]})
    return result
