# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Plans for the mode: of the mesh (the ConfigMap), of a namespace or of a workload (a Sidecar resource).

Pure: the objects that are live go in, a Plan comes out. What was there before is kept in an annotation of the object that is changed,
so that ``state: absent`` takes back exactly what was done, also from another machine and another day.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _meshconfig, _sidecars
from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import NETWORKING, Object, annotate, same_object, updated
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import is_ours, policy_labels
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait

BEFORE_ANNOTATION = "istio-egress.meshops.io/mode-before"
SIDECAR_NAME = "egress-mode"
DYNAMIC_DNS_SINCE = (1, 31, 0)


class ModeError(EgressError):
    """The mode asked for does not exist, or not here."""


@dataclass(frozen=True)
class InForce:
    """A mode and the object that sets it."""

    mode: str
    source: str


# -- the mesh -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Splice:
    """The one stretch of the mesh config that was changed: at `at`, `old` became `new`. `sha256` is that of the whole text after it.

    `mode` is the mode that was set, `previous` and `previous_source` are those before (see `_meshconfig.ModeReading`).
    """

    at: int
    old: str
    new: str
    sha256: str
    mode: str
    previous: str
    previous_source: str

    @classmethod
    def between(cls, before: str, after: str) -> Splice:
        """The splice that turns `before` into `after`."""
        start = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
        most = min(len(before), len(after)) - start
        end = next((i for i in range(most) if before[-1 - i] != after[-1 - i]), most)
        reading = _meshconfig.read_mode(before)
        old, new = before[start : len(before) - end], after[start : len(after) - end]
        return cls(start, old, new, _sha256(after), _meshconfig.read_mode(after).mode, reading.mode, reading.source)

    def undone(self, text: str) -> str | None:
        """`text` as it was before, byte for byte; None when somebody changed it since."""
        return text[: self.at] + self.old + text[self.at + len(self.new) :] if _sha256(text) == self.sha256 else None


def mesh_mode(config_map: Mapping[str, Any]) -> InForce:
    """The mode of the mesh, and whether the ConfigMap says it."""
    reading = _meshconfig.read_mode(config_map["data"]["mesh"])
    name = f"ConfigMap {config_map['metadata']['namespace']}/{config_map['metadata']['name']}"
    why = {"explicit": name, "default": f"Istio's default, since {name} does not say", "empty policy": f"an outboundTrafficPolicy without a mode in {name}"}
    return InForce(reading.mode, why[reading.source])


def plan_mesh(config_map: Object, mode: str | None, revision: str) -> Plan:
    """Sets `mode` for the mesh, or (None) takes back what an earlier plan set."""
    text = config_map["data"]["mesh"]
    record = _record(config_map)
    original = record.undone(text) if record else None
    kept: Splice | None = None
    if mode is None:
        after = text if record is None else original if original is not None else _without(text, record)
    elif original is not None and _meshconfig.read_mode(original).mode == mode:
        after = original  # back to where it was: leave no trace
    else:
        after = _meshconfig.write_mode(text, mode)
        kept = Splice.between(original if original is not None else text, after) if after != text else record
    wait = Wait((), mode=_meshconfig.read_mode(after).mode, revision=revision)
    annotation = json.dumps(asdict(kept)) if kept else None
    if after == text and annotation == _annotations(config_map).get(BEFORE_ANNOTATION):
        return Plan((wait,))
    changed = copy.deepcopy(config_map)
    changed["data"]["mesh"] = after
    annotate(changed, {BEFORE_ANNOTATION: annotation})
    note = f"mode {_meshconfig.read_mode(text).mode} → {_meshconfig.read_mode(after).mode}" + (", as it was before" if mode is None else "")
    return Plan((Change(config_map, changed, note, partial=True), wait))


def differs_from_owner(config_map: Mapping[str, Any]) -> bool:
    """Whether the ConfigMap holds a mode of ours that its owner does not know of."""
    return _record(config_map) is not None


def _without(text: str, record: Splice) -> str:
    """`text`, which somebody changed since, with the previous mode; unchanged when they changed the mode too."""
    if _meshconfig.read_mode(text).mode != record.mode:
        return text
    return _meshconfig.unset_mode(text) if record.previous_source == "default" else _meshconfig.write_mode(text, record.previous)


def _record(config_map: Mapping[str, Any]) -> Splice | None:
    try:
        return Splice(**json.loads(_annotations(config_map).get(BEFORE_ANNOTATION) or "null"))
    except (TypeError, ValueError):
        return None


# -- a namespace or a workload ------------------------------------------------------------------------------------------------------


def scope_mode(
    resources: Iterable[Mapping[str, Any]], namespace: str, selector: Mapping[str, str], root_namespace: str, mesh: InForce | None
) -> InForce | None:
    """The mode for pods of `namespace` that have the labels of `selector`; None when only the mesh knows and `mesh` could not be read."""
    resource = _sidecars.effective(resources, namespace, selector, root_namespace)
    mode = _sidecars.mode_of(resource)
    if resource is None or mode is None:
        return mesh
    return InForce(mode, f"Sidecar {resource['metadata']['namespace']}/{resource['metadata']['name']}")


def plan_scope(resources: Iterable[Object], namespace: str, selector: Mapping[str, str], mode: str | None, root_namespace: str, mesh: InForce | None) -> Plan:
    """Sets `mode` for a namespace or workload, or (None) takes back what an earlier plan set.

    A Sidecar that somebody else owns keeps all but its outboundTrafficPolicy. Where there is none, one is made from the spec of the Sidecar that
    has applied so far (of the namespace, or of the root namespace), since a more specific Sidecar replaces the others and merges nothing.
    """
    resources = list(resources)
    same_scope = [r for r in resources if r["metadata"]["namespace"] == namespace and _sidecars.selector_of(r) == dict(selector)]
    live = min(same_scope, key=lambda r: (r["metadata"].get("creationTimestamp") or "", r["metadata"]["name"]), default=None)
    others = [r for r in resources if r is not live]
    change = _undo(live) if mode is None else _set(live, others, namespace, selector, mode, root_namespace)
    after = change.after if change else live
    in_force = scope_mode([*others, *([after] if after else [])], namespace, selector, root_namespace, mesh)
    decides = f"{namespace}/{after['metadata']['name']}" if after and mode else None
    wait = Wait((namespace,), mode=in_force.mode, selector=tuple(sorted(selector.items())), sidecar=decides) if in_force else None
    return Plan(tuple(step for step in (change, wait) if step))


def read_only(in_force: InForce | None, namespace: str, selector: Mapping[str, str]) -> Plan:
    """No change, only a look at whether the sidecars of the scope have the mode that is in force."""
    return Plan((Wait((namespace,), mode=in_force.mode, selector=tuple(sorted(selector.items()))),) if in_force else ())


def _set(live: Object | None, others: list[Object], namespace: str, selector: Mapping[str, str], mode: str, root_namespace: str) -> Change | None:
    if live is None or is_ours(live):
        wanted = _sidecar(live, others, namespace, selector, mode, root_namespace)
        if live is None:
            return Change(None, wanted, f"mode {mode} for {_whom(namespace, selector)}")
        return None if same_object(live, wanted) else Change(live, updated(live, wanted), f"mode {_sidecars.mode_of(live)} → {mode}")
    if _sidecars.mode_of(live) == mode:
        return None
    policy = live["spec"].get("outboundTrafficPolicy")
    before = (_scope_record(live) or {"before": policy})["before"]
    after = {**(policy or {}), "mode": mode}
    return _patch_policy(live, after, None if after == before else json.dumps({"before": before, "mode": mode}))


def _undo(live: Object | None) -> Change | None:
    if live is None:
        return None
    if is_ours(live):
        return Change(live, None, f"the mode of {_whom(live['metadata']['namespace'], _sidecars.selector_of(live))} is left to others again")
    record = _scope_record(live)
    if record is None:
        return None
    ours = _sidecars.mode_of(live) == record.get("mode")
    return _patch_policy(live, record["before"] if ours else live["spec"].get("outboundTrafficPolicy"), None)


def _patch_policy(live: Object, policy: Mapping[str, Any] | None, annotation: str | None) -> Change:
    """Changes outboundTrafficPolicy and our annotation of a Sidecar that somebody else owns, and nothing else."""
    changed = copy.deepcopy(live)
    if policy is None:
        changed["spec"].pop("outboundTrafficPolicy", None)
    else:
        changed["spec"]["outboundTrafficPolicy"] = dict(policy)
    annotate(changed, {BEFORE_ANNOTATION: annotation})
    note = f"mode {_sidecars.mode_of(live)} → {_sidecars.mode_of(changed) or 'that of the mesh'}, the rest is its owner's"
    return Change(live, changed, note, partial=True)


def _sidecar(live: Object | None, others: Iterable[Mapping[str, Any]], namespace: str, selector: Mapping[str, str], mode: str, root_namespace: str) -> Object:
    base = _sidecars.effective(others, namespace, selector, root_namespace) or {"spec": {}}
    spec = copy.deepcopy(dict(base["spec"]))
    spec.pop("workloadSelector", None)
    if selector:
        spec["workloadSelector"] = {"labels": dict(selector)}
    spec["outboundTrafficPolicy"] = {"mode": mode}
    digest = hashlib.sha256(json.dumps(sorted(selector.items())).encode()).hexdigest()[:8]
    name = live["metadata"]["name"] if live else f"{SIDECAR_NAME}-{digest}" if selector else SIDECAR_NAME
    return {
        "apiVersion": NETWORKING,
        "kind": "Sidecar",
        "metadata": {"name": name, "namespace": namespace, "labels": policy_labels(None)},
        "spec": spec,
    }


def _whom(namespace: str, selector: Mapping[str, str]) -> str:
    return f"pods with {', '.join(f'{k}={v}' for k, v in sorted(selector.items()))}" if selector else f"namespace {namespace}"


def _scope_record(resource: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        record = json.loads(_annotations(resource).get(BEFORE_ANNOTATION) or "null")
    except ValueError:
        return None
    return record if isinstance(record, dict) and "before" in record else None


# -- both ---------------------------------------------------------------------------------------------------------------------------


def check_mode_name(mode: str | None, scoped: bool, istiod: tuple[int, int, int] | None) -> None:
    """Raises ModeError for a mode that istiod would refuse: one bad value discards the whole mesh config."""
    if mode != _meshconfig.ALLOW_ANY_DYNAMIC_DNS:
        return
    if scoped:
        raise ModeError(
            f"{mode} can only be set for the whole mesh: a Sidecar resource knows ALLOW_ANY and REGISTRY_ONLY.\n"
            "Leave out namespace and selector, or choose one of these."
        )
    if istiod is None:
        raise ModeError(
            f"{mode} needs Istio 1.31 or newer, and the version of istiod could not be found (no right to list deployments, or an image without a version).\n"
            "Use ALLOW_ANY, or let the account list deployments in istio_namespace."
        )
    if istiod < DYNAMIC_DNS_SINCE:
        raise ModeError(
            f"{mode} needs Istio 1.31 or newer; istiod is {'.'.join(map(str, istiod))} and would discard the whole mesh config because of it.\n"
            "Use ALLOW_ANY, or upgrade Istio."
        )


def _annotations(obj: Mapping[str, Any]) -> Mapping[str, str]:
    return obj["metadata"].get("annotations") or {}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
