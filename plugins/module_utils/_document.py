# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. A policy as one document: mode, hosts, ways through gateways, ranges around the sidecar; and the record of it in its namespace.

Pure. The record is a ConfigMap that holds the document as it is and as it was before its last change, so that it can be brought back from another
machine and another day. `_document_plan` makes the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _bypass, _gateway, _policy
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Object
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import owner_of, policy_labels, policy_of

OPTIONS: dict[str, dict[str, Any]] = {
    "mode": {"type": "str", "choices": ["ALLOW_ANY", "REGISTRY_ONLY"]},
    "hosts": {"type": "list", "elements": "raw", "default": []},
    "export_to": {"type": "list", "elements": "str", "default": ["."]},
    "gateways": {"type": "list", "elements": "dict", "default": [], "options": {**_gateway.OPTIONS, "hosts": {**_gateway.OPTIONS["hosts"], "required": True}}},
    "bypass": {
        "type": "list", "elements": "dict", "default": [], "no_log": False,
        "options": {"workload": {"type": "str", "required": True}, **_bypass.OPTIONS},
    },
}  # fmt: skip
"""What a document may say, as Ansible takes it."""

NOW, BEFORE, LEFT, TRIAL = "policy.yaml", "before.yaml", "left.yaml", "trial"
"""Keys of the record."""

Workload = tuple[str, str]
"""Kind and name."""


@dataclass(frozen=True)
class Document:
    """A document, typed. `ranges` are the settings of each workload, as `_bypass.parse` returns them."""

    mode: str | None = None
    hosts: tuple[_policy.HostEntry, ...] = ()
    export_to: tuple[str, ...] = (".",)
    routes: tuple[_gateway.Route, ...] = ()
    everything: _gateway.DefaultRoute | None = None
    ranges: Mapping[Workload, Mapping[str, str]] = field(default_factory=dict)

    @property
    def entries(self) -> tuple[_policy.HostEntry, ...]:
        """All hosts, whichever way they take."""
        return (*self.hosts, *(route.entry for route in self.routes))


def parse(given: Mapping[str, Any], namespace: str, policy: str) -> Document:
    """A document for a namespace. Raises PolicyError, GatewayError or BypassError that names what is wrong in it."""
    given = _completed(given, OPTIONS)
    hosts = _policy.parse_hosts(given["hosts"])
    routes: dict[str, _gateway.Route] = {}
    everything: _gateway.DefaultRoute | None = None
    for part in given["gateways"]:
        _gateway.named(part["gateway"])
        asks, listed = _gateway.split_everything(part["hosts"])
        if asks and everything:
            raise _policy.PolicyError("gateways has everything twice, and there is one way for all that is not listed.\nLeave it in one of them.")
        if asks:
            export_to = _policy.export_to(part["export_to"])
            everything = _gateway.DefaultRoute(namespace, policy, part["gateway"], _gateway.DOMAINS, export_to)
        for route in _gateway.parse_routes({**part, "hosts": listed}, namespace, policy):
            _once(route.entry.host, [*(e.host for e in hosts), *routes], "goes through a gateway twice, or is listed in hosts beside it")
            routes[route.entry.host] = route
    ranges: dict[Workload, Mapping[str, str]] = {}
    for part in given["bypass"]:
        workload = _bypass.parse_workload(part["workload"])
        _once("/".join(workload), ["/".join(w) for w in ranges], "is in bypass twice")
        ranges[workload] = _bypass.parse(part)
        if not ranges[workload]:
            raise _policy.PolicyError(f"{part['workload']} is in bypass without ranges.\nGive include, exclude or exclude_ports; or leave it out.")
    exported = _policy.export_to("." if name == namespace else name for name in given["export_to"])
    return Document(given["mode"], hosts, exported, tuple(routes.values()), everything, ranges)


def _once(name: str, there: Iterable[str], what: str) -> None:
    if name in there:
        raise _policy.PolicyError(f"{name} {what}.\nKeep it in one place of the document: there is one way to it.")


def _completed(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What `given` says, with the defaults of `options`, as Ansible fills in what a task leaves out."""
    result = {}
    for name, option in options.items():
        value = given.get(name)
        value = option.get("default") if value is None else value
        result[name] = [_completed(part, option["options"]) for part in value] if "options" in option else value
    return result


def essence(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `given` says beside the defaults: how a document is recorded, shown and compared."""
    return _without_defaults(given, OPTIONS)


def _without_defaults(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    result = {}
    for name, option in options.items():
        value = given.get(name)
        if value is not None and value != option.get("default"):
            result[name] = [_without_defaults(part, option["options"]) for part in value] if "options" in option else value
    return result


# -- the record ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """The essence of a document that is applied, and of the one before it: ``{}`` when there was none, None when there is no way back.

    While it is being applied, `left` are those of the documents whose mode or ranges have to be taken back, so that a task that breaks off can be finished.
    A document is on `trial` until a proof has passed, so that one that fails later, too, knows that the document of before is the one to go back to.
    """

    document: Mapping[str, Any]
    before: Mapping[str, Any] | None = None
    left: tuple[Mapping[str, Any], ...] = ()
    trial: bool = False


def record_name(policy: str) -> str:
    return f"istio-egress-policy-{policy}"


def records(config_maps: Iterable[Object]) -> dict[str, Object]:
    """The ConfigMaps that are records, by the name of the policy."""
    return {policy: o for o in config_maps if (policy := policy_of(o)) and o["metadata"]["name"] == record_name(policy)}


def read_record(config_map: Mapping[str, Any] | None) -> Record | None:
    """The record that a ConfigMap holds; None where there is none. Raises PolicyError for one that is somebody else's or was spoiled."""
    import yaml  # EgressModule has said so if it is missing

    if config_map is None:
        return None
    name = f"ConfigMap {config_map['metadata']['namespace']}/{config_map['metadata']['name']}"
    if policy_of(config_map) is None:
        raise _policy.PolicyError(f"{name} ({owner_of(config_map)}) stands where the policy would be recorded; nothing was written.\nChoose another name.")
    data = config_map.get("data") or {}
    try:
        found = {key: yaml.safe_load(data[key]) or {} for key in (NOW, BEFORE, LEFT) if key in data}
    except yaml.YAMLError:
        found = {}
    left = found.pop(LEFT, None) or []
    if NOW not in found or not all(isinstance(value, dict) for value in (*found.values(), *left)):
        raise _policy.PolicyError(
            f"{name} holds no document of a policy in {NOW}: somebody changed it; nothing was written.\n"
            "Correct it, or delete it and apply the document again; what it recorded of the time before is lost then."
        )
    return Record(found[NOW], found.get(BEFORE), tuple(left), TRIAL in data)


def record_object(record: Record, namespace: str, policy: str) -> Object:
    """The ConfigMap for a record, readable for people."""
    import yaml

    texts = {NOW: record.document, **({} if record.before is None else {BEFORE: record.before}), **({LEFT: list(record.left)} if record.left else {})}
    data = {key: yaml.safe_dump(document, sort_keys=False, allow_unicode=True) for key, document in texts.items()}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": record_name(policy), "namespace": namespace, "labels": policy_labels(policy)},
        "data": {**data, **({TRIAL: "not proven yet"} if record.trial else {})},
    }


def next_record(live: Record | None, state: str, asked: Mapping[str, Any] | None, trial: bool = False) -> Record | None:
    """What shall be recorded in the end: of the essence `asked` (``present``), of the one before (``restored``), or nothing (``absent``).

    The same document again changes nothing but that it is no longer on `trial`, and a policy is brought back once: from there on it is as it was. What
    comes after a document on trial does not go back to that one, but to the one before it.
    """
    if state == "present":
        same = live is not None and live.document == asked
        before = {} if live is None else live.before if same or live.trial else live.document
        return Record(asked or {}, before, trial=trial and (not same or live.trial))
    if state == "absent" or live is None:
        return None
    back = Record(live.document if live.before is None else live.before)
    return back if back.document else None


def first_record(live: Record | None, now: Record | None, left: tuple[Mapping[str, Any], ...]) -> Record | None:
    """What is recorded while the way from `live` to `now` is gone. A record that goes stays until then, for what has to be taken back."""
    if now is None:
        return Record({}, None, left) if left else live
    return replace(now, left=left)


def together(documents: Iterable[Document]) -> Document:
    """Documents that were applied, as far as it takes to know what has to be taken back: the first one, with the mode and the ranges of all."""
    documents = list(documents)
    mode = next((d.mode for d in documents if d.mode), None)
    ranges = {workload: given for d in documents for workload, given in d.ranges.items()}
    return replace(documents[0], mode=mode, ranges=ranges)
