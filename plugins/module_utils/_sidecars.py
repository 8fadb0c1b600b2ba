# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Istio's Sidecar resource: which one a pod has, what it imports, and the mode that it sets.

Pure: Sidecar resources as the API gives them go in, answers come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def selector_of(resource: Mapping[str, Any]) -> dict[str, str]:
    """The labels that a Sidecar selects pods by; empty for one that is for its whole namespace."""
    return dict(((resource.get("spec") or {}).get("workloadSelector") or {}).get("labels") or {})


def effective(resources: Iterable[Mapping[str, Any]], namespace: str, labels: Mapping[str, str], root_namespace: str) -> Mapping[str, Any] | None:
    """The one Sidecar that istiod applies to a pod: with a selector that fits, else that of the namespace, else that of the root namespace.

    They replace each other, nothing is merged; of several equally specific ones the oldest counts (istio.io, Sidecar reference).
    """
    best: tuple[int, str, str] | None = None
    chosen = None
    for resource in resources:
        metadata, selector = resource["metadata"], selector_of(resource)
        if metadata["namespace"] == namespace:
            if selector and not all(labels.get(k) == v for k, v in selector.items()):
                continue
            rank = 0 if selector else 1
        elif metadata["namespace"] == root_namespace and not selector:
            rank = 2
        else:
            continue
        key = (rank, metadata.get("creationTimestamp") or "", metadata["name"])
        if best is None or key < best:
            best, chosen = key, resource
    return chosen


def mode_of(resource: Mapping[str, Any] | None) -> str | None:
    """The mode that a Sidecar sets, or None where it leaves that to the mesh.

    A policy without a mode means REGISTRY_ONLY, as in the mesh config: the protobuf zero value.
    """
    policy = ((resource or {}).get("spec") or {}).get("outboundTrafficPolicy")
    return None if policy is None else policy.get("mode") or "REGISTRY_ONLY"


def imports(resource: Mapping[str, Any], namespace: str, host: str, declared_in: str) -> bool:
    """Whether the pods of `namespace` that have this Sidecar see the `host` of an object in namespace `declared_in`.

    No egress section means that all is seen. ``.`` is the pods' own namespace, ``~/*`` none at all, ``~NAMESPACE/HOST`` an exception (Istio 1.31).
    """
    listeners = (resource.get("spec") or {}).get("egress") or []
    hosts = [h for listener in listeners for h in listener.get("hosts") or []]
    if not listeners:
        return True
    excluded = any(_names(h[1:], namespace, host, declared_in) for h in hosts if h.startswith("~") and not h.startswith("~/"))
    return not excluded and any(_names(h, namespace, host, declared_in) for h in hosts if not h.startswith("~"))


def _names(pattern: str, namespace: str, host: str, declared_in: str) -> bool:
    """Whether ``NAMESPACE/DNSNAME`` covers the host."""
    where, _sep, name = pattern.partition("/")
    if where not in ("*", declared_in) and not (where == "." and namespace == declared_in):
        return False
    return name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]))
