# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Carries a plan out, step by step, keeps what was before, and rolls back when the server refuses a step.

It writes through `_cluster` and waits through a function that the caller gives; it knows neither Ansible nor what the objects mean.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError, if_allowed
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait
from ansible_collections.meshops.istio_egress.plugins.module_utils._text import few

ATTEMPTS = 5
"""How often a plan is made anew because one of its objects was written or deleted since it was read, and how often an object with a new status is written."""

Waiter = Callable[[Wait], float]
"""Waits until proxies follow and returns the seconds that it took; raises to end the plan."""


@dataclass
class Outcome:
    """What carrying out a plan came to."""

    follow_seconds: float | None = None


@dataclass
class ApplyError(Exception):
    """A step failed. `left` says in one sentence what is in the cluster now, `done` lists the changes that were made (and perhaps undone)."""

    cause: ClusterError
    left: str
    done: list[str] = field(default_factory=list)


def converge(make_plan: Callable[[], Plan], cluster: Cluster, check: bool, waiter: Waiter | None) -> tuple[Plan, Outcome]:
    """Makes a plan from what is live and applies it; when a write meets a newer object, reads and plans again.

    With `check` the server is asked to try each final write without keeping it (``dryRun=All``), so that what it would refuse fails here too.
    """
    for attempt in range(1, ATTEMPTS + 1):
        plan = make_plan()
        try:
            return plan, _try(plan, cluster) if check else _apply(plan, cluster, waiter)
        except ApplyError as error:
            if not error.cause.is_conflict or attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _try(plan: Plan, cluster: Cluster) -> Outcome:
    for change in plan.final():
        try:
            _write(change, cluster, dry_run=True)
        except ClusterError as error:
            if error.is_gone and "roleRef" in change.object:
                continue  # the server looks the Role up for an account that may not bind any, and the trial of its creation kept none
            raise ApplyError(error, "Nothing was written (check mode).") from error
    return Outcome()


def _apply(plan: Plan, cluster: Cluster, waiter: Waiter | None) -> Outcome:
    outcome = Outcome()
    done: list[tuple[Change, dict[str, Any] | None]] = []
    newest: dict[tuple[str, str, str], dict[str, Any]] = {}
    for step in plan.steps:
        if isinstance(step, Wait):
            if waiter:
                outcome.follow_seconds = round((outcome.follow_seconds or 0.0) + waiter(step), 2)
            continue
        key = (step.kind, step.namespace, step.name)
        try:
            written = _write(step, cluster, newest.get(key))
        except ClusterError as error:
            raise ApplyError(error, _roll_back(done, cluster), [str(change) for change, _written in done]) from error
        if written:
            newest[key] = written
        done.append((step, written))
    return outcome


def _write(change: Change, cluster: Cluster, newest: dict[str, Any] | None = None, dry_run: bool = False) -> dict[str, Any] | None:
    """Sends one change; the object as the server has it now, or None after a delete.

    `newest` is the object as an earlier write of the same plan left it, which the change was planned on top of.
    """
    if change.after is None:
        cluster.delete(change.object, dry_run=dry_run)
        return None
    if change.before is None:
        return cluster.create(change.after, dry_run=dry_run)
    return _update(change, newest or change.before, cluster, dry_run)


def _update(change: Change, known: dict[str, Any], cluster: Cluster, dry_run: bool = False) -> dict[str, Any]:
    """Writes an object over `known`, which is what is live as far as this task knows.

    istiod writes the status of what it just read (the addresses that it allots to a ServiceEntry), and controllers that of a workload, so a conflict (409)
    about nothing that this change writes is none.
    """
    live = known
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _send(change, live["metadata"]["resourceVersion"], cluster, dry_run)
        except ClusterError as error:
            live = _read(change, cluster) if error.is_conflict else None
            if attempt == ATTEMPTS or live is None or _written_of(live, change) != _written_of(known, change):
                raise
    raise AssertionError("unreachable")


def _read(change: Change, cluster: Cluster) -> dict[str, Any] | None:
    """The object as it is now, by the right to get it or the one to list it; None when there is none, or neither right."""
    listed = if_allowed(cluster.list, change.kind, change.namespace, name=change.name)
    return if_allowed(cluster.get, change.kind, change.namespace, change.name) if listed is None else next(iter(listed), None)


def _send(change: Change, version: str, cluster: Cluster, dry_run: bool) -> dict[str, Any]:
    """Sends an update, for this version of the object alone."""
    body = change.patch if change.partial else change.object
    body = {**body, "metadata": {**body.get("metadata", {}), "resourceVersion": version}}
    if change.partial:
        return cluster.patch(change.kind, change.namespace, change.name, body, dry_run=dry_run)
    return cluster.replace(body, dry_run=dry_run)


def _roll_back(done: list[tuple[Change, dict[str, Any] | None]], cluster: Cluster) -> str:
    """Undoes the changes in reverse order and says what came of it. It ends with the first that cannot be undone, on which those before it may rest."""
    if not done:
        return "Nothing was written."
    left = list(done)
    while left:
        change, written = left.pop()
        try:
            if change.before is None:
                cluster.delete(written or change.object)
            elif written is None:
                cluster.create(_fresh(change.before))
            else:
                _update(Change(change.after, change.before, partial=change.partial), written, cluster)
        except ClusterError as error:
            if error.is_gone and change.before and written:
                continue  # what others own and have deleted since needs nothing undone
            stopped = f"Undoing the {len(done)} earlier changes stopped at {change.kind} {change.namespace}/{change.name} ({error.message})"
            others = f", and what was done before it stays, too: {few([f'{c.kind} {c.namespace}/{c.name}' for c, _written in left])}" if left else ""
            return f"{stopped}{others}; run the task again to finish."
    return f"The {len(done)} earlier changes of this task were undone: everything is as it was before."


def _written_of(obj: dict[str, Any], change: Change) -> dict[str, Any]:
    """What an object has where a change writes it: all that people and programs write, not its status, and of its metadata labels and annotations."""
    if change.partial:
        return _at(obj, change.patch)
    metadata = {key: obj["metadata"].get(key) for key in ("labels", "annotations")}
    return {**{key: value for key, value in obj.items() if key not in ("status", "metadata")}, "metadata": metadata}


def _at(obj: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """What an object has at the places of a merge patch."""
    return {key: _at(obj.get(key) or {}, part) if isinstance(part, dict) else obj.get(key) for key, part in patch.items()}


def _fresh(obj: dict[str, Any]) -> dict[str, Any]:
    """An object that was deleted, as it can be created again."""
    result = copy.deepcopy(obj)
    for key in ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"):
        result["metadata"].pop(key, None)
    result.pop("status", None)
    return result
