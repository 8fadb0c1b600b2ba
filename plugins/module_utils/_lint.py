# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What would go wrong: clashes between owners, and what Istio accepts without a word but does not do.

Pure: objects that are wanted and objects that exist go in, errors and warnings in plain words come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _policy
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Declared, ports_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import KNOWN_SCOPE, owner_of, policy_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import TLS_PROTOCOLS, HostEntry, PolicyError


def check_clashes(wanted: Iterable[Declared], live: Iterable[Mapping[str, Any]], namespace: str, policy: str) -> list[str]:
    """Warnings about hosts that somebody else declares in the same way. Raises PolicyError where the other declaration makes ours void.

    Of several ServiceEntries with one host a sidecar takes the oldest, and adds ports of a newer one of the same namespace only when labels,
    exportTo and resolution are equal (istio/istio ``canMergeServices``); ours would be ignored without a message.
    """
    others: dict[str, list[Mapping[str, Any]]] = {}
    for obj in live:
        if (policy_of(obj) or "").endswith(f".{KNOWN_SCOPE}"):
            continue  # the clients' route to a gateway decides for these, and they leave together with it
        if policy_of(obj) != policy or obj["metadata"]["namespace"] != namespace:
            for host in obj["spec"].get("hosts") or []:
                others.setdefault(host, []).append(obj)
    warnings = []
    for declared in wanted:
        entry = declared.entry
        for port in entry.captures:
            _check_capture(entry.host, port.number, (o for objects in others.values() for o in objects if _meet(o, declared, namespace)))
        for obj in others.get(entry.host, ()):
            if not _meet(obj, declared, namespace):
                continue
            name, whose = f"ServiceEntry {obj['metadata']['namespace']}/{obj['metadata']['name']}", owner_of(obj)
            theirs = {p.number: p.protocol for p in ports_of(obj)}
            for port in entry.ports:
                there = theirs.get(port.number)
                if there is None:
                    raise PolicyError(
                        f"{name} ({whose}) already declares {entry.host}, without port {port.number}; sidecars would ignore a second declaration.\n"
                        f'Ask its owner to add port {port.number} ({port.protocol}) there, or to leave {entry.host} to policy "{policy}".'
                    )
                if _wire(there) != _wire(port.protocol):
                    raise PolicyError(
                        f'{name} ({whose}) already declares {entry.host} on port {port.number} as {there}; policy "{policy}" says {port.protocol}.\n'
                        f"Remove port {port.number} of {entry.host} from one of the two, or agree on one protocol with the other owner."
                    )
            warnings.append(f"{entry.host} is also declared by {name} ({whose}); the older one decides, and removing yours does not close it.")
    return warnings


def expired(entries: Iterable[HostEntry], today: date) -> list[str]:
    """Warnings about entries whose date is past."""
    return [f"{host} expired on {day}; remove it, or give it a new date." for host, day in _policy.expired(entries, today)]


def _check_capture(host: str, number: int, others: Iterable[Mapping[str, Any]]) -> None:
    for obj in others:
        if any(p.number == number and p.is_opaque for p in ports_of(obj)) and not obj["spec"].get("addresses") and obj["spec"].get("hosts") != [host]:
            name = f"ServiceEntry {obj['metadata']['namespace']}/{obj['metadata']['name']} ({owner_of(obj)})"
            raise PolicyError(
                f"{name} already captures every connection to port {number}, for {obj['spec']['hosts'][0]}; sidecars would send it to one of the two.\n"
                f"Give the addresses of {host}, or have the other one removed."
            )


def _meet(obj: Mapping[str, Any], declared: Declared, namespace: str) -> bool:
    """Whether some sidecar sees both: in the namespaces that the entry is exported to by name, else in its own."""
    seen_in = {namespace if name in (".", "*") else name for name in declared.export_to}
    export_to = obj["spec"].get("exportTo") or ["*"]
    theirs = {obj["metadata"]["namespace"] if name == "." else name for name in export_to}
    return "*" in theirs or bool(seen_in & theirs)


def _wire(protocol: str) -> str:
    """HTTPS and TLS are one and the same to a sidecar: it reads the SNI and passes the bytes on."""
    return "TLS" if protocol in TLS_PROTOCOLS else protocol
