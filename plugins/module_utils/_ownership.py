# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Whose an object is: ours, of which policy and for whom, or somebody else's. Pure; says it by labels and annotations alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "istio-egress"
POLICY_LABEL = "istio-egress.meshops.io/policy"
SCOPE_LABEL = "istio-egress.meshops.io/scope"
DEFAULT_POLICY = "default"
KNOWN_SCOPE = "known"
"""Scope of the ServiceEntries that make hosts known to the clients of a gateway; the gateway's own have the clients' namespace as scope."""
EVERYTHING_SCOPE = "everything"
"""Scope of what sends all that is not the mesh's own to a gateway, at the clients."""


def is_ours(obj: Mapping[str, Any]) -> bool:
    """Whether this collection made the object."""
    return (obj["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == MANAGED_BY


def policy_of(obj: Mapping[str, Any]) -> str | None:
    """The policy name on an object that this collection made, else None; ``NAME.SCOPE`` where a policy keeps several sets of objects."""
    if not is_ours(obj):
        return None
    marks = marks_of(obj)
    return ".".join(marks[name] for name in (POLICY_LABEL, SCOPE_LABEL) if name in marks) if POLICY_LABEL in marks else None


def id_of(obj: Mapping[str, Any]) -> tuple[str, str, str]:
    """(kind, namespace, name), which tells objects of a cluster apart."""
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


def marks_of(obj: Mapping[str, Any]) -> dict[str, str]:
    """What labels and annotations say, as one: ServiceEntries beside a gateway have as annotations what others have as labels, see `service_entries`."""
    return {**(obj["metadata"].get("annotations") or {}), **(obj["metadata"].get("labels") or {})}


def policy_labels(policy: str | None) -> dict[str, str]:
    """The labels of an object of a policy (as `policy_of` reads it), or (None) of one that policies share."""
    name, _sep, scope = (policy or "").partition(".")
    return {MANAGED_BY_LABEL: MANAGED_BY, **({POLICY_LABEL: name} if name else {}), **({SCOPE_LABEL: scope} if scope else {})}


def owner_of(obj: Mapping[str, Any]) -> str:
    """Who manages an object, in words for messages: ``policy "web"``, ``Helm release x``, the team of a label, or ``unknown owner``."""
    metadata = obj["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if policy_of(obj):
        return f'policy "{policy_of(obj)}" of namespace {metadata["namespace"]}'
    if annotations.get("meta.helm.sh/release-name"):
        return f"Helm release {annotations['meta.helm.sh/release-name']}"
    manager = labels.get(MANAGED_BY_LABEL) or next((labels[k] for k in ("owner", "team") if labels.get(k)), None)
    if manager:
        return f"owner: {manager}"
    return "applied with kubectl" if "kubectl.kubernetes.io/last-applied-configuration" in annotations else "unknown owner"
