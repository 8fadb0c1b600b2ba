# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The steps from one document of a policy to another, made of the plans for hosts, gateways, ranges and mode.

Pure. A mode that opens comes first and one that closes last; what is added comes before what is taken away, so that a host that moves between a
gateway and the direct way always has one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _bypass, _gateway, _mode, _policy
from ansible_collections.meshops.istio_egress.plugins.module_utils._document import (
    Document,
    Record,
    Workload,
    first_record,
    next_record,
    parse,
    read_record,
    record_object,
    together,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_plan import plan_gateway
from ansible_collections.meshops.istio_egress.plugins.module_utils._lint import check_clashes
from ansible_collections.meshops.istio_egress.plugins.module_utils._meshconfig import REGISTRY_ONLY
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Declared, Object
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait, applied, plan_hosts, wanted_hosts
from ansible_collections.meshops.istio_egress.plugins.module_utils._text import few

NOTHING = Document()


@dataclass(frozen=True)
class Place:
    """Whose policy it is: the namespace of the workloads, the policy's name, and where the control plane is."""

    namespace: str
    policy: str
    istio_namespace: str


@dataclass(frozen=True)
class Around:
    """What is live, as far as a plan needs it. `live` has ServiceEntries, and all of `_gateway.KINDS` where hosts go or went through gateways.

    `others` are the documents of the namespace's other policies, `mesh` the mode of the mesh and `ranges` its default, both where they could be read.
    """

    live: Mapping[str, list[Object]] = field(default_factory=lambda: {kind: [] for kind in _gateway.KINDS})
    sidecars: tuple[Object, ...] = ()
    workloads: Mapping[Workload, Object] = field(default_factory=dict)
    gateways: Mapping[str, _gateway.Gateway] = field(default_factory=dict)
    others: Mapping[str, Document] = field(default_factory=dict)
    mesh: _mode.InForce | None = None
    ranges: _bypass.Texts = field(default_factory=lambda: dict.fromkeys(_bypass.SETTINGS))


@dataclass(frozen=True)
class Planned:
    """The steps, and what the policy declares after them; of a task also its document, typed, and the records before and after."""

    plan: Plan
    hosts: list[Declared]
    routes: list[_gateway.Route]
    everything: _gateway.DefaultRoute | None
    warnings: list[str]
    document: Document = NOTHING
    was: Record | None = None
    now: Record | None = None


@dataclass(frozen=True)
class Task:
    """What a task asks for: a state, the essence of a document for ``present``, on trial or not, and what may be taken away on the way there."""

    state: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    purge: bool = True
    most: int | None = None
    trial: bool = False


def plan_task(config_map: Object | None, task: Task, look: Callable[[Document, Document], Around], place: Place) -> Planned:
    """The steps of a task, with those of its record, which `config_map` is, where there is one.

    `look` reads what is live, given the document that was applied and the one that shall be. The record comes first, with what has to be taken back, and
    is cleared of that in the end, so that a task that broke off is finished when it runs again, or taken back.
    """
    was = read_record(config_map)
    now = next_record(was, task.state, task.asked, task.trial)
    said = (was.document, *was.left) if was else ({},)
    documents = [parse(essence, place.namespace, place.policy) for essence in said]
    before, after = together(documents), parse(now.document if now else {}, place.namespace, place.policy)
    planned = plan_document(before, after, task.purge or task.state == "absent", task.most, look(before, after), place)
    left = tuple(essence for essence, document in zip(said, documents, strict=True) if _says_more(document, after))
    meanwhile = first_record(was, now, left)
    first = _record_changes(config_map, was, meanwhile, place)
    then = _record_changes(first[0].after if first else config_map, meanwhile, now, place)
    return replace(planned, plan=Plan((*first, *planned.plan.steps, *then)), document=after, was=was, now=now)


def _says_more(old: Document, new: Document) -> bool:
    """Whether there is something to take back that no label of an object tells."""
    return bool(old.mode and not new.mode) or bool(old.ranges.keys() - new.ranges.keys())


def plan_document(before: Document, after: Document, purge: bool, most: int | None, around: Around, place: Place) -> Planned:
    """Steps that bring a namespace from what is live to the document `after`; `before` is the one that was applied.

    With `purge` hosts that the policy declares and `after` does not are taken away, else they stay. Modes and ranges are taken back when `before`
    has them and `after` has not. Raises PolicyError when more than `most` hosts would go, and where other policies want something else.
    """
    namespace, policy, live = place.namespace, place.policy, around.live
    _agree(after, around.others, namespace)
    listed, through = {e.host for e in after.hosts}, {r.entry.host for r in after.routes}
    declared, routed = live["ServiceEntry"], _gateway.read_routes(live["ServiceEntry"])
    hosts = wanted_hosts(after.hosts, through, purge, after.export_to, declared, namespace, policy)
    routes = _gateway.wanted_routes(after.routes, listed, purge, routed, namespace, policy)
    defaults = _gateway.read_defaults(live.get("VirtualService", ()))
    everything = _gateway.wanted_default(after.everything, purge, defaults, routes, namespace, policy)
    _gateway.check(routes, [r for r in routed if (r.namespace, r.policy) != (namespace, policy)])
    warnings = check_clashes([d for d in hosts if d.entry.host in listed], declared, namespace, policy)
    there = [d.entry.host for d in wanted_hosts((), (), False, (), declared, namespace, policy)]
    there += [r.entry.host for r in routed if (r.namespace, r.policy) == (namespace, policy)]
    _check_most({*there} - {d.entry.host for d in hosts} - {r.entry.host for r in routes}, most, place)

    added = plan_hosts(wanted_hosts(after.hosts, (), False, after.export_to, declared, namespace, policy), declared, namespace, policy)
    live = applied(live, added.changes)
    gated = plan_gateway(routes, everything, live, namespace, policy, around.gateways) if "VirtualService" in around.live else Plan()
    live = applied(live, gated.changes)
    left = plan_hosts(hosts, live["ServiceEntry"], namespace, policy)
    steps = [*(added.steps if added else ()), *gated.steps, *_ranges(before, after, around, namespace), *(left.steps if left or not added else ())]
    mode = _mode_of(before, after, around, place)
    closes = any(isinstance(step, Wait) and step.mode == REGISTRY_ONLY for step in mode)
    return Planned(Plan(tuple([*steps, *mode] if closes else [*mode, *steps])), hosts, routes, everything, warnings)


def rendered(document: Document, place: Place) -> list[Object]:
    """The objects that the document means in a cluster that has none of them, whose gateways have the labels and ports that istioctl gives."""
    gateways = {reference: _gateway.named(reference) for reference in gateways_of(document)}
    planned = plan_document(NOTHING, replace(document, ranges={}), True, None, Around(gateways=gateways), place)
    return [change.after for change in planned.plan.final() if change.after]


def pod_annotations(document: Document) -> dict[str, dict[str, str | None]]:
    """What the document means for pod templates, which are others' to write, by kind/name."""
    return {"/".join(workload): _bypass.annotations(given) for workload, given in document.ranges.items()}


def gateways_of(document: Document) -> set[str]:
    """The gateways (namespace/service) that a document sends hosts through."""
    return {route.gateway for route in document.routes} | ({document.everything.gateway} if document.everything else set())


def _record_changes(live: Object | None, old: Record | None, new: Record | None, place: Place) -> list[Change]:
    """What turns the ConfigMap `live`, which holds the record `old`, into one that holds `new`."""
    if old == new:
        return []
    wanted = record_object(new, place.namespace, place.policy) if new else None
    after = {**live, "data": wanted["data"]} if live and wanted else wanted
    return [Change(live, after, "the record of the policy")]


def _agree(after: Document, others: Mapping[str, Document], namespace: str) -> None:
    for name, other in sorted(others.items()):
        if after.mode and other.mode and after.mode != other.mode:
            raise _policy.PolicyError(
                f'Policy "{name}" of namespace {namespace} sets the mode {other.mode}, and a namespace has one; this one says {after.mode}.\n'
                "Leave mode out of one of the two, or agree on one."
            )
        both = sorted("/".join(workload) for workload in after.ranges.keys() & other.ranges.keys())
        if both:
            raise _policy.PolicyError(
                f'Policy "{name}" of namespace {namespace} has bypass for {both[0]}, too, and they replace each other.\nKeep it in one of the two.'
            )


def _check_most(gone: Iterable[str], most: int | None, place: Place) -> None:
    gone = sorted(gone)
    if most is not None and len(gone) > most:
        raise _policy.PolicyError(
            f'{len(gone)} hosts of policy "{place.policy}" in namespace {place.namespace} would go ({few(gone)}), more than max_delete ({most}).\n'
            "Nothing was written. List them, set purge to false to keep them, or raise max_delete."
        )


def _ranges(before: Document, after: Document, around: Around, namespace: str) -> list[Any]:
    """Ranges of workloads that are named, and those taken back of workloads that no longer are and still exist."""
    steps: list[Any] = []
    for workload in sorted({*before.ranges, *after.ranges}):
        live, given = around.workloads.get(workload), after.ranges.get(workload)
        if live is None and given is not None:
            raise _bypass.missing(*workload, namespace)
        if live is not None:
            steps += _bypass.plan_workload(live, given, around.ranges).steps
    return steps


def _mode_of(before: Document, after: Document, around: Around, place: Place) -> list[Any]:
    """The mode that the document sets; taken back when it sets none any more and no other policy of the namespace does."""
    if not after.mode and (not before.mode or any(other.mode for other in around.others.values())):
        return []
    return [*_mode.plan_scope(list(around.sidecars), place.namespace, {}, after.mode, place.istio_namespace, around.mesh).steps]
