# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What is live and what is wanted become ordered steps: changes, and waits between those that depend on each other.

Pure: a plan is a value that can be shown, counted and refused before anything is written. `_apply` walks over it.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import (
    Declared,
    Object,
    ports_of,
    read_metadata,
    read_service_entry,
    same_object,
    service_entries,
    updated,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import id_of, policy_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import HostEntry
from ansible_collections.meshops.istio_egress.plugins.module_utils._text import few

_SIGN = {"create": "+", "update": "~", "delete": "-"}


@dataclass(frozen=True)
class Change:
    """One write. `before` is the object as it was read (None: there was none), `after` as it shall be (None: none).

    With `partial` only what differs is written, since the rest is another owner's; without it the whole object is.
    """

    before: Object | None
    after: Object | None
    note: str = ""
    partial: bool = False

    @property
    def action(self) -> str:
        return "create" if self.before is None else "delete" if self.after is None else "update"

    @property
    def object(self) -> Object:
        """The object as it is after the change, or as it was before it is deleted."""
        return self.after or self.before or {}

    @property
    def patch(self) -> Object:
        """What differs before and after, as a merge patch (RFC 7386)."""
        return _difference(self.before or {}, self.after or {})

    @property
    def kind(self) -> str:
        return self.object["kind"]

    @property
    def namespace(self) -> str:
        return self.object["metadata"]["namespace"]

    @property
    def name(self) -> str:
        return self.object["metadata"]["name"]

    def __str__(self) -> str:
        return f"{_SIGN[self.action]} {self.kind.lower():<14} {self.namespace}/{self.name}  {self.note}".rstrip()

    def reference(self) -> dict[str, str]:
        """How the object appears in a module's result."""
        return {"kind": self.kind, "namespace": self.namespace, "name": self.name, "action": self.action}


@dataclass(frozen=True)
class Wait:
    """Proxies that must follow before the next step: sidecars of `namespaces` (empty: of the mesh) with the labels of `selector`.

    They must have `present` and no longer `absent`, sets of (host, port number, protocol), or the `mode`. `revision` is the one whose mesh config
    sets the mode, `sidecar` the Sidecar resource (namespace/name) that does; proxies that another one decides for do not follow.
    `declared_in` is the namespace of the objects that declare `present`. `looked_up` are Envoy's names of clusters whose addresses come from DNS, which is
    not waited for: one without an address is reported.

    For egress gateways: the proxies have `clusters`, send each (host, port) of `routes` to the cluster named with it, and no longer any of
    `not_routes`. `guards` are AuthorizationPolicies (namespace/name) with the callers that each lets through. `gateways` means the gateway proxies with
    these labels, instead of sidecars.
    """

    namespaces: tuple[str, ...]
    present: frozenset[tuple[str, int, str]] = frozenset()
    absent: frozenset[tuple[str, int, str]] = frozenset()
    mode: str | None = None
    selector: tuple[tuple[str, str], ...] = ()
    revision: str | None = None
    sidecar: str | None = None
    declared_in: str = ""
    looked_up: frozenset[str] = frozenset()
    routes: frozenset[tuple[str, int, str]] = frozenset()
    not_routes: frozenset[tuple[str, int, str]] = frozenset()
    clusters: frozenset[str] = frozenset()
    guards: frozenset[tuple[str, tuple[str, ...]]] = frozenset()
    gateways: bool = False

    def __str__(self) -> str:
        kind = "gateways" if self.gateways else "sidecars"
        whose = f"{kind} of " + ", ".join(self.namespaces) if self.namespaces else "all sidecars"
        if self.selector:
            whose += f" with {', '.join(f'{k}={v}' for k, v in self.selector)}"
        parts = [f"{verb} {_names(destinations)}" for verb, destinations in (("have", self.present), ("no longer have", self.absent)) if destinations]
        parts += [f"have mode {self.mode}"] if self.mode else []
        parts += [f"route {_names(self.routes)}"] if self.routes else []
        parts += [f"no longer route {_names(self.not_routes)} as before"] if self.not_routes else []
        parts += [f"have {few(sorted(self.clusters))}"] if self.clusters else []
        parts += [f"guard by {few(sorted(name for name, _who in self.guards))}"] if self.guards else []
        return f"  wait           {whose} {' and '.join(parts)}"


@dataclass(frozen=True)
class Plan:
    """Steps in their order. Truthy when there is something to write."""

    steps: tuple[Change | Wait, ...] = ()

    @property
    def changes(self) -> list[Change]:
        return [s for s in self.steps if isinstance(s, Change)]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def lines(self) -> list[str]:
        return [str(step) for step in self.steps]

    def final(self) -> list[Change]:
        """One change per object, from what is live to what is left at the end: what check mode tries and diff mode shows."""
        result: dict[tuple[str, str, str], Change] = {}
        for change in self.changes:
            key = (change.kind, change.namespace, change.name)
            first = result.get(key)
            result[key] = Change(first.before, change.after, change.note, change.partial) if first else change
        return [change for change in result.values() if change.before or change.after]  # not what comes and goes within the plan


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Object:
    result: Object = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if key == "annotations":  # one by one, also the first and the last of them, since others write theirs meanwhile
            old, new = old or {}, new or {}
        if old != new:
            result[key] = _difference(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
    return result


def applied(live: Mapping[str, list[Object]], changes: Iterable[Change]) -> dict[str, list[Object]]:
    """The live objects as they are after the changes, by kind."""
    objects = {id_of(o): o for of_kind in live.values() for o in of_kind}
    for change in changes:
        if change.after:
            objects[id_of(change.after)] = change.after
        else:
            objects.pop(id_of(change.object), None)
    result: dict[str, list[Object]] = defaultdict(list)
    for obj in objects.values():
        result[obj["kind"]].append(obj)
    return result


def plan_hosts(wanted: Iterable[Declared], live: Iterable[Object], namespace: str, policy: str) -> Plan:
    """Steps from the live ServiceEntries to those of the wanted hosts; objects of other policies and owners are not touched."""
    visible = list(live)
    first, then = host_changes(wanted, visible, namespace, policy)
    mine = [o for o in visible if o["metadata"]["namespace"] == namespace and policy_of(o) == policy]
    after = {c.name: c.after for c in (*first, *then)}
    targets = [o for o in (*(after.pop(m["metadata"]["name"], m) for m in mine), *after.values()) if o]
    others = [o for o in visible if o["metadata"]["namespace"] != namespace or policy_of(o) != policy]
    return Plan((*first, *then, *_waits(mine, targets, others, namespace)))


def host_changes(wanted: Iterable[Declared], live: Iterable[Object], namespace: str, policy: str) -> tuple[list[Change], list[Change]]:
    """The writes that bring the ServiceEntries of a policy to the wanted hosts: those that add, and those that take away.

    A host that moves between two objects is in the new one before it leaves the old one. istiod sees the writes in that order, so that there is
    no moment without the host (tests/mesh/test_no_lost_request.py).
    """
    live = [o for o in live if o["metadata"]["namespace"] == namespace]
    mine = {o["metadata"]["name"]: o for o in live if policy_of(o) == policy}
    targets = {o["metadata"]["name"]: o for o in service_entries(wanted, live, namespace, policy)}
    after = {d.entry.host for o in targets.values() for d in read_service_entry(o)}

    first: list[Change] = []
    then: list[Change] = []
    for name, target in targets.items():
        old = mine.get(name)
        if old is None:
            first.append(Change(None, target, _hosts_note(None, target)))
            continue
        if same_object(old, target):
            continue
        leaving = [h for h in old["spec"].get("hosts") or [] if h in after and h not in target["spec"]["hosts"]]
        if leaving and set(target["spec"]["hosts"]) - set(old["spec"].get("hosts") or []):
            both = copy.deepcopy(target)
            both["spec"]["hosts"] = sorted({*target["spec"]["hosts"], *leaving})
            first.append(Change(old, updated(old, both), _hosts_note(old, both)))
            then.append(Change(updated(old, both), updated(old, target), _hosts_note(both, target)))
        else:
            (then if leaving else first).append(Change(old, updated(old, target), _hosts_note(old, target)))
    then += [Change(old, None, _hosts_note(old, None)) for name, old in mine.items() if name not in targets]
    return first, then


def _waits(before: Iterable[Object], after: Iterable[Object], others: list[Object], namespace: str) -> list[Wait]:
    """One wait for each set of namespaces that sees the same hosts; also when nothing is written, for an earlier task may have given up.

    The end of a host that sidecars still see, declared here or by others, is not waited for: they keep what the other declaration says.
    """
    after = list(after)
    kept = {d[:2] for o in after for d in _destinations(o)}
    present: dict[tuple[str, ...], set[tuple[str, int, str]]] = defaultdict(set)
    absent: dict[tuple[str, ...], set[tuple[str, int, str]]] = defaultdict(set)
    looked_up: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for obj in after:
        present[_seen_by(obj)] |= _destinations(obj)
        if obj["spec"].get("resolution") in ("DNS", "DNS_ROUND_ROBIN"):
            looked_up[_seen_by(obj)] |= {f"outbound|{port}||{host}" for host, port, _protocol in _destinations(obj)}
    for obj in before:
        scope = _seen_by(obj)
        theirs = {d[:2] for o in others if _overlap(_seen_by(o), scope) for d in _destinations(o)}
        gone = {d for d in _destinations(obj) if d[:2] not in kept and d[:2] not in theirs}
        if gone:
            absent[scope] |= gone
    scopes = sorted({*present, *absent})
    return [Wait(scope, frozenset(present[scope]), frozenset(absent[scope]), declared_in=namespace, looked_up=frozenset(looked_up[scope])) for scope in scopes]


def wanted_hosts(
    listed: Iterable[HostEntry], removed: Container[str], purge: bool, export_to: tuple[str, ...], live: Iterable[Object], namespace: str, policy: str
) -> list[Declared]:
    """What the policy shall declare: the listed hosts, and (unless `purge`) those it declares already and that are not to be removed."""
    export_to = tuple(sorted(export_to))
    wanted = {} if purge else {d.entry.host: d for d in _declared(live, namespace, policy) if d.entry.host not in removed}
    wanted.update({entry.host: Declared(entry, export_to) for entry in listed})
    return [wanted[host] for host in sorted(wanted)]


def describe_hosts(
    wanted: Iterable[Declared], live: Iterable[Object], namespace: str, policy: str, chosen: Mapping[str, tuple[str, ...]]
) -> list[dict[str, Any]]:
    """The wanted hosts as a module returns them, each with the object that holds it and what was `chosen` for it by this task."""
    wanted = list(wanted)
    place = {host: o["metadata"]["name"] for o in service_entries(wanted, live, namespace, policy) for host in o["spec"]["hosts"]}
    return [
        {
            "host": d.entry.host,
            "ports": [f"{p.protocol.lower()}/{p.number}" for p in d.entry.ports],
            "resolution": d.entry.resolution,
            "addresses": list(d.entry.addresses),
            "export_to": list(d.export_to),
            "object": place[d.entry.host],
            "chosen": list(chosen.get(d.entry.host, ())),
            **dict(d.entry.metadata),
        }
        for d in wanted
    ]


def _declared(live: Iterable[Object], namespace: str, policy: str) -> list[Declared]:
    return [d for o in live if o["metadata"]["namespace"] == namespace and policy_of(o) == policy for d in read_service_entry(o)]


def _destinations(obj: Mapping[str, Any]) -> set[tuple[str, int, str]]:
    return {(host, p.number, p.protocol) for host in obj["spec"].get("hosts") or [] for p in ports_of(obj)}


def _seen_by(obj: Mapping[str, Any]) -> tuple[str, ...]:
    """The namespaces whose sidecars see the object; empty for all."""
    names = obj["spec"].get("exportTo") or ["*"]
    return () if "*" in names else tuple(sorted({obj["metadata"]["namespace"] if name == "." else name for name in names}))


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return not one or not other or bool(set(one) & set(other))


def _hosts_note(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    """``3 hosts: a, b, c`` for a new or deleted object, ``+ d, - a`` for a changed one."""
    was = set(old["spec"].get("hosts") or []) if old else set()
    now = set(new["spec"].get("hosts") or []) if new else set()
    if not old or not new:
        hosts = sorted(was | now)
        return f"{len(hosts)} host{'s' if len(hosts) != 1 else ''}: {few(hosts)}"
    parts = [f"{sign} {few(sorted(hosts))}" for sign, hosts in (("+", now - was), ("-", was - now)) if hosts]
    if old["spec"].get("exportTo") != new["spec"].get("exportTo"):
        parts.append(f"exportTo {', '.join(new['spec'].get('exportTo') or ['*'])}")
    words = {"ports": "ports", "addresses": "addresses", "endpoints": "addresses"}
    differing = dict.fromkeys(word for key, word in words.items() if old["spec"].get(key) != new["spec"].get(key))
    if differing and was & now:
        parts.append(f"{' and '.join(differing)} of {few(sorted(was & now))}")
    changed = [h for h in sorted(was & now) if read_metadata(old).get(h) != read_metadata(new).get(h)]
    if changed:
        parts.append(f"metadata of {few(changed)}")
    return ", ".join(parts) or "spec brought back to what is declared"


def _names(destinations: Iterable[tuple[str, int, str]]) -> str:
    return few(sorted({f"{host}:{port}" for host, port, _protocol in destinations}))
