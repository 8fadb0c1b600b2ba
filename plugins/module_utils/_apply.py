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

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait

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
    if change.patch:
        return cluster.patch(change.kind, change.namespace, change.name, list(change.patch), dry_run=dry_run)
    return _replace(change.after, newest or change.before, cluster, dry_run)


def _replace(after: dict[str, Any], known: dict[str, Any], cluster: Cluster, dry_run: bool = False) -> dict[str, Any]:
    """Writes an object over `known`, which is what is live as far as this task knows.

    istiod writes the status of what it just read (the addresses that it allots to a ServiceEntry), so a conflict (409) about nothing else is none.
    """
    after, live = copy.deepcopy(after), known
    for attempt in range(1, ATTEMPTS + 1):
        after["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
        try:
            return cluster.replace(after, dry_run=dry_run)
        except ClusterError as error:
            live = cluster.get(known["kind"], known["metadata"]["namespace"], known["metadata"]["name"]) if error.is_conflict else None
            if attempt == ATTEMPTS or live is None or _meant(live) != _meant(known):
                raise
    raise AssertionError("unreachable")


def _roll_back(done: list[tuple[Change, dict[str, Any] | None]], cluster: Cluster) -> str:
    """Undoes the changes in reverse order and says what came of it."""
    if not done:
        return "Nothing was written."
    for change, written in reversed(done):
        try:
            if change.before is None:
                cluster.delete(written or change.object)
            elif written is None:
                cluster.create(_fresh(change.before))
            else:
                _replace(change.before, written, cluster)
        except ClusterError as error:
            if error.is_gone and change.before and written:
                continue  # what others own and have deleted since needs nothing undone
            stopped = f"{change.kind} {change.namespace}/{change.name} ({error.message})"
            return f"Undoing the {len(done)} earlier changes stopped at {stopped}; run the task again to finish."
    return f"The {len(done)} earlier changes of this task were undone: everything is as it was before."


def _meant(obj: dict[str, Any]) -> dict[str, Any]:
    """What people and programs write of an object: not its status, and of its metadata labels and annotations."""
    metadata = {key: obj["metadata"].get(key) for key in ("labels", "annotations")}
    return {**{key: value for key, value in obj.items() if key not in ("status", "metadata")}, "metadata": metadata}


def _fresh(obj: dict[str, Any]) -> dict[str, Any]:
    """An object that was deleted, as it can be created again."""
    result = copy.deepcopy(obj)
    for key in ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"):
        result["metadata"].pop(key, None)
    result.pop("status", None)
    return result
