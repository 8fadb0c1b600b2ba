# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. IP ranges and ports around the sidecar: of a workload (pod template), or as the default for new pods (injector values).

Pure: options and live objects go in, a Plan comes out. Istio's settings replace each other one by one and are never merged: an annotation of the
pod stands instead of the mesh's default. What was there before is kept in an annotation of the object that is changed, so that
``state: absent`` takes back exactly what was done.
"""

from __future__ import annotations

import copy
import ipaddress
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _values
from ansible_collections.meshops.istio_egress.plugins.module_utils._control_plane import DEFAULT_REVISION, INJECTOR
from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError
from ansible_collections.meshops.istio_egress.plugins.module_utils._injected import INIT, VALIDATION, containers, has_proxy
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Object, annotate
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait

BEFORE_ANNOTATION = "istio-egress.meshops.io/bypass-before"
KINDS = {
    "deployment": "Deployment", "deployments": "Deployment", "deploy": "Deployment",
    "statefulset": "StatefulSet", "statefulsets": "StatefulSet", "sts": "StatefulSet",
    "daemonset": "DaemonSet", "daemonsets": "DaemonSet", "ds": "DaemonSet",
}  # fmt: skip
"""Workloads that have a pod template and roll a change of it out, by the names that kubectl takes."""


@dataclass(frozen=True)
class Setting:
    """Where Istio has a setting: the annotation of a pod, the key in the injector's values, and the argument of the container that redirects."""

    annotation: str
    value: str
    argument: str
    default: str


SETTINGS = {
    "include": Setting("traffic.sidecar.istio.io/includeOutboundIPRanges", "includeIPRanges", "-i", "*"),
    "exclude": Setting("traffic.sidecar.istio.io/excludeOutboundIPRanges", "excludeIPRanges", "-x", ""),
    "exclude_ports": Setting("traffic.sidecar.istio.io/excludeOutboundPorts", "excludeOutboundPorts", "-o", ""),
}
"""The options of the module (istio/istio 1.31 manifests/charts/istio-control/istio-discovery/files/injection-template.yaml)."""

OPTIONS: dict[str, dict[str, Any]] = {option: {"type": "list", "elements": "str"} for option in SETTINGS}
"""The settings as Ansible takes them: of a task, or of one workload in a policy's document."""

Texts = Mapping[str, "str | None"]
"""Option → text as Istio has it, comma separated; None where nothing is said or known."""


class BypassError(EgressError):
    """Ranges that Istio would refuse, or a workload that cannot have any."""


# -- what is asked for --------------------------------------------------------------------------------------------------------------


def parse(params: Mapping[str, Any]) -> dict[str, str]:
    """The options that are given, as Istio writes them. Raises BypassError for what its injector would refuse, or would read otherwise."""
    given = {}
    for option in ("include", "exclude"):
        if params.get(option) is not None:
            given[option] = _ranges(option, _words(params[option]))
    if params.get("exclude_ports") is not None:
        given["exclude_ports"] = ",".join(dict.fromkeys(_port(word) for word in _words(params["exclude_ports"])))
    return given


def _words(items: Iterable[Any]) -> list[str]:
    """Items of a list, or text with several of them in a line or a line each, as a survey gives them."""
    return [word for item in items for word in re.split(r"[\s,]+", str(item)) if word]


def _ranges(option: str, words: list[str]) -> str:
    if option == "include" and not words:
        raise BypassError(
            "include is empty, which would lead everything around the sidecar, the cluster's own services too.\n"
            "Leave include out; or, if that is meant, set exclude to 0.0.0.0/0 and ::/0."
        )
    if "*" in words:
        if option == "exclude":
            raise BypassError('exclude has "*", which Istio refuses there.\nList ranges; everything is 0.0.0.0/0 and ::/0.')
        if words != ["*"]:
            raise BypassError('include has "*" beside other ranges, which Istio refuses.\nKeep "*" (everything goes by the sidecar) or the ranges.')
        return "*"
    return ",".join(dict.fromkeys(_range(option, word) for word in words))


def _range(option: str, word: str) -> str:
    """A range as Go's netip.ParsePrefix takes it: with a length, without netmask, zone or leading zeros."""
    address, _slash, length = word.partition("/")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        parsed = None
    if parsed is None or "%" in address:
        raise BypassError(f'{option}: "{word}" is not an IP range, and hosts cannot be led around the sidecar by name.\nWrite ranges such as 203.0.113.0/24.')
    if not length:
        raise BypassError(f"{option}: {word} has no length, which Istio refuses.\nWrite {word}/{parsed.max_prefixlen} for this one address.")
    if not re.fullmatch(r"0|[1-9]\d{0,2}", length) or int(length) > parsed.max_prefixlen:
        raise BypassError(f"{option}: {word} has no length that Istio takes.\nWrite a number of bits from 0 to {parsed.max_prefixlen} behind the slash.")
    return word


def _port(word: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,4}", word) or int(word) > 65535:
        raise BypassError(f'exclude_ports: "{word}" is not a port.\nWrite numbers from 1 to 65535; Istio takes no ranges of ports here.')
    return word


def parse_workload(text: str) -> tuple[str, str]:
    """Kind and name of ``kind/name``; a name alone is a Deployment. Raises BypassError."""
    kind, _slash, name = text.strip().rpartition("/")
    kind = (kind or "deployment").lower().split(".")[0]
    if not name or kind not in KINDS:
        raise BypassError(
            f'"{text}" does not name a workload with a pod template.\nWrite deployment/NAME, statefulset/NAME or daemonset/NAME; pods get their ranges from it.'
        )
    return KINDS[kind], name


def missing(kind: str, name: str, namespace: str) -> BypassError:
    """What is said of a workload that is not there."""
    return BypassError(
        f"There is no {kind} {name} in namespace {namespace}, so nothing was written.\n"
        "Correct workload or namespace; a pod gets its ranges from the workload that it belongs to."
    )


def annotations(texts: Texts) -> dict[str, str | None]:
    """The settings as annotations of a pod."""
    return {SETTINGS[option].annotation: text for option, text in texts.items()}


def as_lists(texts: Texts) -> dict[str, list[str] | None]:
    """The settings as a module returns them; None for one that is not known."""
    return {option: None if texts[option] is None else [part for part in texts[option].split(",") if part] for option in SETTINGS}


# -- what is there ------------------------------------------------------------------------------------------------------------------


def of_template(workload: Mapping[str, Any]) -> dict[str, str | None]:
    """What the pod template of a workload says."""
    annotations = workload["spec"]["template"].get("metadata", {}).get("annotations") or {}
    return {option: annotations.get(setting.annotation) for option, setting in SETTINGS.items()}


def of_values(config_map: Mapping[str, Any] | None) -> dict[str, str | None]:
    """What new pods get that say nothing: the injector's values; all None where they could not be read."""
    if config_map is None:
        return dict.fromkeys(SETTINGS)
    return {option: _default(_values.read(config_map["data"]["values"], setting.value), setting) for option, setting in SETTINGS.items()}


def _default(value: str | None, setting: Setting) -> str:
    return setting.default if value is None else value


def of_pod(pod: Mapping[str, Any]) -> dict[str, str] | None:
    """What the redirection of a pod was set up with when it started; None for a pod without a sidecar.

    With Istio's CNI plugin the container only checks, and has the same arguments. Without such a container nothing is redirected.
    """
    if not has_proxy(pod):
        return None
    named = {container["name"]: container for container in containers(pod)}
    redirecting = named.get(INIT) or named.get(VALIDATION)
    if redirecting is None:
        return {"include": "", "exclude": "", "exclude_ports": ""}
    arguments = redirecting.get("args") or []
    told = dict(itertools.pairwise(arguments))
    return {option: told.get(setting.argument, setting.default) for option, setting in SETTINGS.items()}


def in_force(own: Texts, default: Texts) -> dict[str, str | None]:
    """The whole that a new pod gets: what its template says, and the mesh's default for the rest."""
    return {option: default[option] if own[option] is None else own[option] for option in SETTINGS}


def same(one: str | None, other: str | None) -> bool:
    """Whether two settings mean the same; one that is not known agrees with any."""
    return one is None or other is None or set(one.split(",")) == set(other.split(","))


def differs(pod: Mapping[str, Any], expected: Texts) -> str:
    """Why a running pod does not have the settings, in words; empty when it has, or when nothing of it is captured at all."""
    has = of_pod(pod)
    if has is None or not has["include"]:
        return ""
    late = [f"{option} {has[option] or 'nothing'}" for option in SETTINGS if not same(has[option], expected[option])]
    if not late:
        return ""
    ending = ", until it has ended" if pod["metadata"].get("deletionTimestamp") else ""
    return f"was started with {' and '.join(late)}{ending}"


# -- the plan -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rollout(Wait):
    """New pods of a workload (kind/name) that are ready with the settings; without `patient` a look is enough."""

    workload: str = ""
    settings: tuple[tuple[str, str | None], ...] = ()
    patient: bool = True

    def __str__(self) -> str:
        return f"  wait           pods of {self.workload} in {self.namespaces[0]} are ready with {said(dict(self.settings))}"


@dataclass(frozen=True)
class Injection(Wait):
    """New pods get the settings from the injector of `revision`."""

    settings: tuple[tuple[str, str | None], ...] = ()

    def __str__(self) -> str:
        return f"  wait           new pods get {said(dict(self.settings))}"


def plan_workload(live: Object, given: Mapping[str, str] | None, default: Texts) -> Plan:
    """Sets what is given in the pod template of a workload, or (None) takes back what an earlier plan set there.

    What is not given is as it was before this collection came. `default` is the mesh's default, where it is known.
    """
    was = of_template(live)
    wanted, record = _settle(was, live, given)
    changed = copy.deepcopy(live)
    annotate(changed, annotations(wanted), "spec", "template")
    annotate(changed, {BEFORE_ANNOTATION: record})
    rolls = wanted != was
    kind, metadata = live["kind"], live["metadata"]
    wait = Rollout(
        (metadata["namespace"],),
        workload=f"{kind}/{metadata['name']}",
        settings=tuple(in_force(wanted, default).items()),
        patient=rolls or bool(given),
    )
    note = f"{_moves(in_force(was, default), in_force(wanted, default))}{', by new pods' if rolls else ''}"
    change = Change(live, changed, note, partial=True)
    return Plan((change, wait) if change.patch else (wait,))


def plan_mesh(config_map: Object, given: Mapping[str, str] | None) -> Plan:
    """Sets what is given in the injector's values, or (None) takes back what an earlier plan set there."""
    text = config_map["data"]["values"]
    was = {option: _values.read(text, setting.value) for option, setting in SETTINGS.items()}
    wanted, record = _settle(was, config_map, given)
    after = text
    for option, setting in SETTINGS.items():
        if wanted[option] != was[option]:
            after = _values.write(after, setting.value, wanted[option])
    changed = copy.deepcopy(config_map)
    changed["data"]["values"] = after
    annotate(changed, {BEFORE_ANNOTATION: record})
    revision = config_map["metadata"]["name"].removeprefix(INJECTOR).removeprefix("-") or DEFAULT_REVISION
    wait = Injection((), revision=revision, settings=tuple(of_values(changed).items()))
    change = Change(config_map, changed, f"{_moves(of_values(config_map), of_values(changed))} for new pods", partial=True)
    return Plan((change, wait) if change.patch else (wait,))


def is_ours(obj: Mapping[str, Any]) -> bool:
    """Whether the object holds settings of ours that can be taken back."""
    return _record(obj) is not None


def _settle(live: Texts, obj: Mapping[str, Any], given: Mapping[str, str] | None) -> tuple[dict[str, str | None], str | None]:
    """What each setting shall be, and the record of what was there before; None when there is nothing to take back.

    Where nothing is given, all stays. A setting that somebody else changed since stays as they left it.
    """
    if given is not None and not given:
        return dict(live), (obj["metadata"].get("annotations") or {}).get(BEFORE_ANNOTATION)
    record = _record(obj) or {"before": {}, "set": {}}
    still_ours = {option for option, text in record["set"].items() if live.get(option) == text}
    original = {option: record["before"].get(option) if option in still_ours else live[option] for option in SETTINGS}
    wanted = {**original, **(given or {})}
    ours = {option: text for option, text in wanted.items() if text != original[option]}
    if not ours:
        return wanted, None
    return wanted, json.dumps({"before": {option: original[option] for option in ours}, "set": ours})


def _record(obj: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    try:
        record = json.loads((obj["metadata"].get("annotations") or {}).get(BEFORE_ANNOTATION) or "null")
    except ValueError:
        return None
    complete = isinstance(record, dict) and all(isinstance(record.get(key), dict) for key in ("before", "set"))
    return record if complete else None


def said(texts: Texts) -> str:
    """The settings in a line, without those that are as Istio has them by itself."""
    return ", ".join(f"{option} {text or 'nothing'}" for option, text in texts.items() if text is not None and text != SETTINGS[option].default) or "include *"


def _moves(before: Texts, after: Texts) -> str:
    moves = [f"{o} {before[o] or 'nothing'} → {after[o] or 'nothing'}" for o in SETTINGS if before[o] != after[o]]
    return ", ".join(moves) or "what was there before is noted"
