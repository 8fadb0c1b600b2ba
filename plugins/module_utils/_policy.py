# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What the user wants: host entries, typed and validated, with defaults by protocol.

Pure: it reads arguments and returns values or a PolicyError in plain words. It knows what Istio accepts, not what a cluster holds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError

HOSTS_ANNOTATION = "istio-egress.meshops.io/hosts"

MAX_HOSTS = 256
"""Hosts and addresses that one ServiceEntry may hold (CRD schema, ``maxItems``)."""

PROTOCOLS = ("HTTP", "HTTP2", "GRPC", "HTTPS", "TLS", "TCP", "MONGO")
HTTP_PROTOCOLS = frozenset({"HTTP", "HTTP2", "GRPC"})
"""Told apart by the Host header: one listener serves any number of hosts."""
TLS_PROTOCOLS = frozenset({"HTTPS", "TLS"})
"""Told apart by SNI. For traffic that leaves, Istio treats HTTPS and TLS alike: it does not look inside."""
PROTOCOL_BY_PORT = {80: "HTTP", 443: "TLS"}
DEFAULT_PORT = 443

RESOLUTIONS = {"none": "NONE", "static": "STATIC", "dns": "DNS", "dns_round_robin": "DNS_ROUND_ROBIN", "dynamic_dns": "DYNAMIC_DNS"}
METADATA = ("owner", "ticket", "reason", "expires")
IP_DOMAIN = "ip.istio-egress.meshops.io"
"""A ServiceEntry must have a host name, even for addresses alone. Entries that are an IP or CIDR get one below this domain, which is in no DNS."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class PolicyError(EgressError):
    """What is wrong with which host entry, and what to write instead. Two lines at most."""


@dataclass(frozen=True, order=True)
class Port:
    """A destination port and the protocol that Istio is told to expect on it."""

    number: int
    protocol: str

    @property
    def name(self) -> str:
        """The port's name in objects, ``tls-443``: unique within a ServiceEntry, where port names are the merge key."""
        return f"{self.protocol.lower()}-{self.number}"

    @property
    def is_opaque(self) -> bool:
        """Neither Host header nor SNI tells hosts apart on this port."""
        return self.protocol not in HTTP_PROTOCOLS and self.protocol not in TLS_PROTOCOLS


@dataclass(frozen=True)
class HostEntry:
    """One allowed destination. `host` is the name in the ServiceEntry; `resolution` is Istio's word; `metadata` is kept on the object."""

    host: str
    ports: tuple[Port, ...]
    addresses: tuple[str, ...] = ()
    resolution: str = "DNS"
    metadata: tuple[tuple[str, str], ...] = ()
    allow_from: tuple[str, ...] = ()
    """Who may use it at an egress gateway, ``namespace`` or ``namespace/service-account`` each; none means everybody who is sent there."""
    backend: str = ""
    """The one host that serves all of a wildcard, which is then the one that an egress gateway dials."""
    chosen: tuple[str, ...] = field(default=(), compare=False)
    """What was decided for the user, in words; shown in the result."""

    @property
    def is_wildcard(self) -> bool:
        return self.host.startswith("*.")

    @property
    def as_name(self) -> str:
        """The host where no asterisk may stand. No host ends like a wildcard does here: no top-level domain has such a hyphen."""
        return f"{self.host[2:]}-wildcard" if self.is_wildcard else self.host

    @property
    def is_opaque(self) -> bool:
        return any(port.is_opaque for port in self.ports)

    @property
    def captures(self) -> tuple[Port, ...]:
        """Ports of which this host gets every connection, since no address tells it apart."""
        return () if self.addresses else tuple(port for port in self.ports if port.is_opaque)

    @property
    def shares(self) -> bool:
        """May stand in one ServiceEntry with other hosts: no addresses (they would be everybody's) and no port without a name on the wire."""
        return not self.addresses and not self.is_opaque


def parse_hosts(entries: Iterable[Any], at_gateway: bool = False) -> tuple[HostEntry, ...]:
    """Host entries from a module's `hosts` option, sorted by host, entries of one host merged.

    An entry is a dictionary (see the `host_entry` doc fragment) or a string: a host, ``host:port``, or several of those separated by
    white space (the text field of a survey). Keys that only an egress gateway can honour are refused unless `at_gateway`.
    Raises PolicyError that names the entry.
    """
    merged: dict[str, HostEntry] = {}
    for raw in entries:
        for item in raw.split() if isinstance(raw, str) else [raw]:
            entry = _parse(item)
            if (entry.allow_from or entry.backend) and not at_gateway:
                raise PolicyError(
                    f"{entry.host} has {'allow_from' if entry.allow_from else 'backend'}, which only an egress gateway can honour.\n"
                    "Send the host through one with istio_egress_gateway, or leave the key out."
                )
            known = merged.get(entry.host)
            merged[entry.host] = _merge(known, entry) if known else entry
    result = tuple(merged[host] for host in sorted(merged))
    captured: dict[int, str] = {}
    for entry in result:
        for port in entry.captures:
            if port.number in captured:
                raise PolicyError(
                    f"{captured[port.number]} and {entry.host} both capture {port.protocol} port {port.number}; sidecars would send it to one of them.\n"
                    "Give the addresses of at least one of them."
                )
            captured[port.number] = entry.host
    return result


def parse_names(entries: Iterable[Any]) -> tuple[str, ...]:
    """The hosts alone of entries that are to be removed: their ports may be wrong by now, and do not matter."""
    names = []
    for raw in entries:
        for item in raw.split() if isinstance(raw, str) else [raw]:
            given = _given_host(_as_mapping(item))
            network = _network(given)
            names.append(_ip_host(network) if network else _host(given))
    return tuple(dict.fromkeys(names))


def check_something_to_remove(params: Mapping[str, Any]) -> None:
    """Raises PolicyError for ``state: absent`` that names nothing."""
    if params["state"] == "absent" and not params["hosts"] and not params["purge"]:
        raise PolicyError(
            "state is absent, but neither hosts nor purge says what to remove.\n"
            "List the hosts, or set purge: true for all hosts of the policy in the namespace."
        )


def policy_name(name: str) -> str:
    """`name` if it can be a label value and part of object names. Raises PolicyError."""
    if len(name) > 40 or not _NAME.fullmatch(name):
        raise PolicyError(
            f'"{_one_line(name)}" cannot be the name of a policy.\n'
            'Use lower-case letters, digits and "-", 40 characters at most: it becomes a label and part of object names.'
        )
    return name


def export_to(namespaces: Iterable[str]) -> tuple[str, ...]:
    """The `exportTo` list of objects, sorted: ``.`` (this namespace), ``*`` (all) or namespace names. Raises PolicyError where istiod would refuse."""
    wanted = tuple(sorted(set(namespaces)))
    if not wanted:
        raise PolicyError('export_to is empty.\nUse "." for the namespace itself, "*" for all, or names of namespaces.')
    if "*" in wanted and len(wanted) > 1:
        raise PolicyError('export_to has "*" (all namespaces) beside others, which istiod refuses.\nUse "*" alone, or leave it out.')
    for name in wanted:
        if name not in (".", "*") and not _LABEL.fullmatch(name):
            raise PolicyError(
                f'export_to has "{_one_line(name)}", which is not the name of a namespace.\n'
                'Use "." for the namespace itself, "*" for all, or names of namespaces.'
            )
    return wanted


def expired(entries: Iterable[HostEntry], today: date) -> list[tuple[str, str]]:
    """(host, date) of the entries whose `expires` lies before `today`."""
    dates = [(entry.host, dict(entry.metadata).get("expires", "")) for entry in entries]
    return [(host, day) for host, day in dates if day and day < today.isoformat()]


# -- one entry ----------------------------------------------------------------------------------------------------------------------


_ENTRY_KEYS = frozenset({"host", "ports", "addresses", "resolution", "capture_port", "allow_from", "backend", *METADATA})


def _as_mapping(item: Any) -> Mapping[str, Any]:
    """A host entry in its long form. ``host:80,443`` is the short form of a host with ports; IPv6 addresses have more than one colon."""
    item = _in_lines(item)
    if isinstance(item, str):
        host, short, ports = item.partition(":") if item.count(":") == 1 and "//" not in item else (item, "", "")
        if short and not ports:
            raise PolicyError(f'"{item}" ends where a port should follow.\nWrite {host}:443, or {host} alone.')
        item = {"host": host, "ports": ports or None}
    if not isinstance(item, Mapping) or not item.get("host"):
        raise PolicyError(f"A host entry must be a host or a dictionary with the key host, not {item!r}.\nExample: {{host: www.google.com, ports: [443]}}.")
    unknown = sorted(set(item) - _ENTRY_KEYS)
    if unknown:
        raise PolicyError(f'{item["host"]}: a host entry has no key "{unknown[0]}".\nKeys are {", ".join(sorted(_ENTRY_KEYS))}.')
    return item


def _given_host(item: Mapping[str, Any]) -> str:
    return str(item["host"])


def _in_lines(item: Any) -> Any:
    """The item with every text in it on one line, so that a message that quotes it keeps its two."""
    if isinstance(item, str):
        return _one_line(item)
    if isinstance(item, Mapping):
        return {_one_line(key): _in_lines(value) for key, value in item.items()}
    return [_in_lines(value) for value in item] if isinstance(item, (list, tuple)) else item


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _parse(item: Any) -> HostEntry:
    item = _as_mapping(item)
    given = _given_host(item)
    network = _network(given)
    addresses = tuple(dict.fromkeys(_address(given, a) for a in _items(given, "addresses", item.get("addresses"))))
    if network and addresses:
        raise PolicyError(f"{given} is an address itself and has addresses beside it.\nList it among the addresses of a name of your own, or make two entries.")
    addresses = addresses or ((_address(given, given),) if network else ())
    host = _ip_host(network) if network else _host(given)
    chosen: list[str] = [f"named {host}, since a ServiceEntry needs a host name"] if network else []
    by_name = not network  # neither Host header nor SNI carries a CIDR, so ports of one default to TCP
    ports = tuple(sorted({_port(given, p, by_name, chosen) for p in _items(given, "ports", item.get("ports")) or [DEFAULT_PORT]}))
    if len(ports) > MAX_HOSTS:
        raise PolicyError(f"{given} has {len(ports)} ports.\nA ServiceEntry takes {MAX_HOSTS}: declare fewer.")
    numbers = [p.number for p in ports]
    for number in numbers:
        if numbers.count(number) > 1:
            both = " and ".join(p.protocol for p in ports if p.number == number)
            raise PolicyError(f"{given} has port {number} twice, as {both}.\nKeep one of them: a port has one protocol.")
    if len(addresses) > MAX_HOSTS:
        raise PolicyError(
            f"{given} has {len(addresses)} addresses; a ServiceEntry takes {MAX_HOSTS}.\nJoin them into larger CIDRs, or split the entry into two names."
        )
    backend = _host(str(item["backend"])) if item.get("backend") else ""
    entry = HostEntry(host, ports, addresses, "", _metadata(given, item), identities(given, item.get("allow_from")), backend)
    resolution = _resolution(given, entry, str(item.get("resolution") or "auto"), _truth(given, item.get("capture_port")), chosen)
    return replace(entry, resolution=resolution, chosen=tuple(chosen))


def _items(given: str, key: str, value: Any) -> list[Any]:
    """A list from what a user or a survey gives: a list, one item, or a text with items between commas or white space."""
    if value is None:
        return []
    if isinstance(value, str):
        return value.replace(",", " ").split()
    return list(value) if isinstance(value, (list, tuple)) else [value]


def identities(of: str, given: Any) -> tuple[str, ...]:
    """``namespace`` or ``namespace/service-account`` of each caller, sorted. Raises PolicyError that names what they are given for."""
    result = set()
    for item in _items(of, "allow_from", given):
        if isinstance(item, Mapping):
            unknown = sorted(set(map(str, item)) - {"namespace", "service_account"})
            if unknown or not item.get("namespace"):
                wrong = f'the key "{unknown[0]}"' if unknown else "no namespace"
                raise PolicyError(f"{of}: an item of allow_from has {wrong}.\nWrite {{namespace: demo, service_account: sleep}}, demo/sleep, or demo for all.")
            item = "/".join(str(item[key]) for key in ("namespace", "service_account") if item.get(key))
        namespace, slash, account = str(item).partition("/")
        if not _LABEL.fullmatch(namespace) or (slash and not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", account)):
            raise PolicyError(
                f'{of}: "{_one_line(item)}" in allow_from is neither a namespace nor a service account.\nWrite demo, demo/sleep, or both keys of a dictionary.'
            )
        result.add(str(item))
    return tuple(sorted(result))


def _host(given: str) -> str:
    host = given.lower().removesuffix(".")
    if re.fullmatch(r"[0-9a-f.:]+(/\d*|%\w+)", host):
        raise PolicyError(f'"{given}" is neither an IP nor a CIDR.\nWrite an IP such as 192.0.2.10 or a CIDR such as 192.0.2.0/24.')
    if "://" in given or "/" in given:
        name = re.sub(r"^[a-z]+://", "", given).split("/")[0]
        raise PolicyError(f'"{given}" is a URL or a path, not a host.\nWrite {{host: {name}, ports: [...]}}: rules of a mesh see hosts and ports, not paths.')
    if host == "*":
        raise PolicyError('"*" would allow every host.\nUse istio_outbound_mode with mode ALLOW_ANY for that, or name domains: "*.example.com".')
    labels = host.removeprefix("*.").split(".")
    if "*" in "".join(labels):
        raise PolicyError(
            f'"{given}": a wildcard can only be the whole first label.\nWrite "*.{".".join(labels[-2:]).replace("*", "").lstrip(".")}", or name the hosts.'
        )
    bad = next((label for label in labels if not _LABEL.fullmatch(label)), None)
    if bad is not None or len(host) > 253 or labels[-1].isdigit():
        detail = f'"{bad}" is not a DNS label' if bad is not None else "it is too long" if len(host) > 253 else "it ends in a number"
        raise PolicyError(f'"{given}" is not a host name: {detail}.\nUse letters, digits and "-" between dots, such as api.example.com, or an IP or CIDR.')
    if len(labels) == 1 and not host.startswith("*."):
        raise PolicyError(f'"{given}" has no domain.\nWrite the full name, such as {given}.example.com; short names belong to Services of the cluster.')
    if host.endswith((".svc.cluster.local", ".svc")):
        raise PolicyError(f'"{given}" is a Service of the cluster, which the mesh knows already.\nLeave it out: host entries are for what lies outside.')
    return host


def _port(host: str, given: Any, by_name: bool, chosen: list[str]) -> Port:
    number, protocol = given, None
    if isinstance(given, Mapping):
        number, protocol = given.get("number"), given.get("protocol")
        unknown = sorted(set(map(str, given)) - {"number", "protocol"})
        if unknown:
            raise PolicyError(f'{host}: a port has no key "{unknown[0]}".\nWrite {{number: 5432, protocol: TCP}}.')
    elif isinstance(given, str) and "/" in given:
        protocol, _sep, number = given.partition("/")
    if isinstance(number, str) and number.strip().isascii() and number.strip().isdigit():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        number = 0
    if not 1 <= number <= 65535:
        raise PolicyError(
            f"{host}: {given!r} is not a port.\nWrite a number from 1 to 65535 (80 is HTTP, 443 TLS), tcp/5432, or {{number: 5432, protocol: TCP}}."
        )
    if not protocol:
        protocol = (PROTOCOL_BY_PORT.get(number) or "") if by_name else "TCP"
        if not protocol:
            raise PolicyError(
                f"{host}: port {number} needs a protocol, only 80 (HTTP) and 443 (TLS) have one by themselves.\n"
                f"Write tls/{number}, http/{number} or tcp/{number}."
            )
        chosen.append(f"port {number} is {protocol}")
    protocol = str(protocol).upper()
    if protocol == "UDP":
        raise PolicyError(
            f"{host}: UDP port {number} cannot be controlled by Istio, sidecars see TCP only.\nUse a NetworkPolicy for UDP, and leave this port out."
        )
    if protocol in TLS_PROTOCOLS and not by_name:
        raise PolicyError(f"{host}: {protocol} on port {number} is told apart by the name in the TLS handshake, and an address has none.\nWrite tcp/{number}.")
    if protocol not in PROTOCOLS:
        raise PolicyError(f'{host}: port {number} has the protocol "{protocol}", which Istio does not know.\nUse one of {", ".join(PROTOCOLS)}.')
    return Port(number, protocol)


def _resolution(given: str, entry: HostEntry, wanted: str, capture_port: bool, chosen: list[str]) -> str:
    """How proxies find the far end; checked against what the CRD and istiod accept (istio/istio pkg/config/validation, ``ValidateServiceEntry``)."""
    if wanted != "auto" and wanted not in RESOLUTIONS:
        raise PolicyError(f'{given}: "{wanted}" is not a resolution.\nUse auto, {", ".join(RESOLUTIONS)}.')
    ranges = [a for a in entry.addresses if "/" in a]
    if wanted == "auto":
        resolution, why = _choose(entry, bool(ranges))
        chosen.append(f"resolution {resolution}: {why}")
    else:
        resolution = RESOLUTIONS[wanted]
    if resolution in ("DNS", "DNS_ROUND_ROBIN"):
        if entry.is_wildcard:
            raise PolicyError(
                f"{given}: a wildcard cannot be looked up in DNS.\n"
                "Use resolution none (any address, told apart by name), or dynamic_dns on Istio 1.30 and newer."
            )
        if ranges:
            raise PolicyError(
                f"{given}: {ranges[0]} is a range, which Istio accepts only with resolution none or static.\nLeave resolution out, or give single addresses."
            )
    if resolution == "STATIC":
        if not entry.addresses or ranges:
            raise PolicyError(
                f"{given}: resolution static needs single IP addresses in addresses.\nAdd them, or use resolution {'none for ranges' if ranges else 'dns'}."
            )
    if resolution == "DYNAMIC_DNS":
        if not entry.is_wildcard or entry.addresses:
            raise PolicyError(f"{given}: resolution dynamic_dns is for wildcards without addresses.\nUse dns for an exact host.")
        refused = [p for p in entry.ports if p.protocol not in HTTP_PROTOCOLS | {"TLS"}]
        if refused:
            raise PolicyError(
                f"{given}: resolution dynamic_dns takes HTTP, HTTP2, GRPC and TLS, not {refused[0].protocol}.\n"
                f"Write tls/{refused[0].number} where the far end speaks TLS."
            )
    opaque = next((p for p in entry.ports if p.is_opaque), None)
    if opaque and not entry.addresses and not capture_port:
        raise PolicyError(
            f"{given}: {opaque.protocol} port {opaque.number} without addresses would capture every connection to port {opaque.number}, "
            "whatever its destination.\n"
            "Give the addresses (IPs or CIDRs) of the far end, or set capture_port: true if that is what you want."
        )
    if opaque and not entry.addresses and resolution == "NONE":
        raise PolicyError(
            f"{given}: capture_port with resolution none would open port {opaque.number} to every address there is.\n"
            "Give the addresses of the far end, or let the resolution be dns."
        )
    if ranges and any(p.protocol in HTTP_PROTOCOLS for p in entry.ports):
        raise PolicyError(
            f"{given}: for HTTP the Host header alone decides, Istio would not keep requests within {ranges[0]}.\n"
            "Leave addresses out (the proxy looks the host up itself), give single addresses, or make the port TCP."
        )
    return resolution


def _truth(given: str, value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return bool(value)
    if str(value).lower() in ("true", "yes", "false", "no"):
        return str(value).lower() in ("true", "yes")
    raise PolicyError(f'{given}: capture_port is "{value}", which is neither true nor false.\nWrite true or false.')


def _choose(entry: HostEntry, has_ranges: bool) -> tuple[str, str]:
    """(resolution, reason). NONE trusts the address that the client dials, so it is taken only where nothing stricter works."""
    if entry.addresses:
        if has_ranges:
            return "NONE", "ranges cannot be endpoints; connections go to the address that the client dials, within the ranges"
        if entry.is_opaque:
            return "NONE", "connections go to the address that the client dials, never to another one of the list"
        return "STATIC", "the addresses are the far end, whatever DNS says"
    if entry.is_wildcard:
        return "NONE", "a wildcard cannot be looked up; the name on the wire decides, the address is the one that the client dials"
    if entry.is_opaque:
        return "DNS", "every connection to the port goes to the addresses that the proxy finds for this host"
    return "DNS", "the proxy looks the host up itself, so that a false Host header or SNI leads nowhere else"


def _metadata(given: str, item: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    values = {key: _one_line(item[key]) for key in METADATA if item.get(key) not in (None, "")}
    if "expires" in values:
        try:
            values["expires"] = date.fromisoformat(values["expires"]).isoformat()
        except ValueError:
            raise PolicyError(f'{given}: expires is "{values["expires"]}", which is not a date.\nWrite it as 2027-01-31.') from None
    return tuple(sorted(values.items()))


def _merge(first: HostEntry, second: HostEntry) -> HostEntry:
    """Two entries of one host as one: Istio wants one ServiceEntry per host and namespace."""
    protocols = {p.number: p.protocol for p in first.ports}
    for port in second.ports:
        if protocols.get(port.number, port.protocol) != port.protocol:
            raise PolicyError(
                f"{first.host} is listed twice, with port {port.number} as {protocols[port.number]} and as {port.protocol}.\nKeep one of the two."
            )
    for what in ("addresses", "resolution", "allow_from", "backend"):
        if getattr(first, what) != getattr(second, what):
            raise PolicyError(f"{first.host} is listed twice, with different {what}.\nWrite one entry with all of its ports and addresses.")
    chosen = tuple(dict.fromkeys((*first.chosen, *second.chosen)))
    return replace(
        first,
        chosen=chosen,
        ports=tuple(sorted({*first.ports, *second.ports})),
        metadata=tuple(sorted({**dict(first.metadata), **dict(second.metadata)}.items())),
    )


# -- addresses ----------------------------------------------------------------------------------------------------------------------


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if "%" in text:  # an interface of this machine means nothing to a proxy
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _plain(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """A single address without ``/32``: Istio treats a CIDR of one address as a range."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _address(host: str, given: Any) -> str:
    network = _network(str(given).strip())
    if network is None:
        raise PolicyError(f'{host}: the address "{given}" is neither an IP nor a CIDR.\nWrite an IP such as 192.0.2.10 or a CIDR such as 192.0.2.0/24.')
    if network.prefixlen == 0:
        raise PolicyError(f"{host}: {given} is every address there is.\nUse istio_outbound_mode with mode ALLOW_ANY for that, or name the ranges.")
    return _plain(network)


def _ip_host(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """A name that no other address has: ``203-0-113-0-slash-24``, IPv6 with all of its digits."""
    length = "" if network.prefixlen == network.max_prefixlen else f"-slash-{network.prefixlen}"
    return f"{re.sub('[.:]', '-', network.network_address.exploded)}{length}.{IP_DOMAIN}"
