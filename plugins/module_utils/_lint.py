# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What would go wrong: clashes between owners, and what Istio accepts without a word but does not do.

Pure: objects that are wanted and objects that exist go in, errors and warnings in plain words come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Declared, owner_of, policy_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import TLS_PROTOCOLS, PolicyError


def check_clashes(wanted: Iterable[Declared], live: Iterable[Mapping[str, Any]], namespace: str, policy: str) -> list[str]:
    """Warnings about hosts that somebody else declares in the same way. Raises PolicyError where the other declaration makes ours void.

    Of several ServiceEntries with one host a sidecar takes the oldest, and adds ports of a newer one of the same namespace only when labels,
    exportTo and resolution are equal (istio/istio ``canMergeServices``); ours would be ignored without a message.
    """
    others: dict[str, list[Mapping[str, Any]]] = {}
    for obj in live:
        mine = policy_of(obj) == policy and obj["metadata"]["namespace"] == namespace
        if not mine and _visible(obj, namespace):
            for host in obj["spec"].get("hosts") or []:
                others.setdefault(host, []).append(obj)
    warnings = []
    for declared in wanted:
        entry = declared.entry
        for obj in others.get(entry.host, ()):
            name = f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
            theirs = {p["number"]: p.get("protocol") or "TCP" for p in obj["spec"].get("ports") or []}
            for port in entry.ports:
                there = theirs.get(port.number)
                if there is None:
                    raise PolicyError(
                        f"ServiceEntry {name} ({owner_of(obj)}) already declares {entry.host}, without port {port.number}; sidecars would ignore a second declaration.\n"
                        f"Ask its owner to add port {port.number} ({port.protocol}) there, or to leave {entry.host} to policy \"{policy}\"."
                    )
                if _wire(there) != _wire(port.protocol):
                    raise PolicyError(
                        f'ServiceEntry {name} ({owner_of(obj)}) already declares {entry.host} on port {port.number} as {there}; policy "{policy}" says {port.protocol}.\n'
                        f"Remove port {port.number} of {entry.host} from one of the two, or agree on one protocol with the owner of {name}."
                    )
            warnings.append(f"{entry.host} is also declared by ServiceEntry {name} ({owner_of(obj)}); the older one decides, and removing yours does not close it.")
    return warnings


def _visible(obj: Mapping[str, Any], namespace: str) -> bool:
    """Whether sidecars of `namespace` see the object (no exportTo means all, unless the mesh says otherwise)."""
    export_to = obj["spec"].get("exportTo") or ["*"]
    return "*" in export_to or namespace in export_to or ("." in export_to and obj["metadata"]["namespace"] == namespace)


def _wire(protocol: str) -> str:
    """HTTPS and TLS are one and the same to a sidecar: it reads the SNI and passes the bytes on."""
    return "TLS" if protocol in TLS_PROTOCOLS else protocol
