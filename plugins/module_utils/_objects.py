# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. From policy to objects and back: ServiceEntries for host entries, Sidecars for a mode.

Pure: it takes what is wanted and the objects that exist, and returns the objects that should exist, as dictionaries of the API.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import (
    DEFAULT_POLICY,
    EVERYTHING_SCOPE,
    KNOWN_SCOPE,
    MANAGED_BY_LABEL,
    POLICY_LABEL,
    SCOPE_LABEL,
    policy_labels,
    policy_of,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import HOSTS_ANNOTATION, IP_DOMAIN, MAX_HOSTS, HostEntry, Port

NETWORKING = "networking.istio.io/v1"

Object = dict[str, Any]


# -- ours and not ours --------------------------------------------------------------------------------------------------------------


def same_object(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether `live` already says what `wanted` says: its spec but for defaults, and the labels and annotations that are ours to set."""
    if normal_spec(live) != normal_spec(wanted):
        return False
    return all(_ours(live, key) == _ours(wanted, key) for key in ("labels", "annotations"))


def updated(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> Object:
    """`live` with our spec, labels and annotations, and with everybody else's labels and annotations left as they are."""
    result = copy.deepcopy(dict(live))
    result["spec"] = copy.deepcopy(wanted["spec"])
    for key in ("labels", "annotations"):
        kept = {k: v for k, v in (result["metadata"].get(key) or {}).items() if not _is_ours(k)}
        merged = {**kept, **(wanted["metadata"].get(key) or {})}
        if merged:
            result["metadata"][key] = merged
        else:
            result["metadata"].pop(key, None)
    return result


def normal_spec(obj: Mapping[str, Any]) -> Any:
    """The spec with what the API server, istiod or another author may leave out or fill in made equal.

    Defaults are the protobuf zero values of istio/api networking/v1alpha3; empty lists and absent ones are one and the same there.
    """
    spec = {key: value for key, value in (obj.get("spec") or {}).items() if value not in (None, [], {}, "")}
    if obj["kind"] == "ServiceEntry":
        spec.setdefault("location", "MESH_EXTERNAL")
        spec.setdefault("resolution", "NONE")
        spec["hosts"] = sorted(spec.get("hosts") or [])
        spec["addresses"] = sorted(spec.get("addresses") or [])
        spec["endpoints"] = sorted(spec.get("endpoints") or [], key=lambda e: json.dumps(e, sort_keys=True))
        spec["exportTo"] = sorted(spec.get("exportTo") or ["*"])
        ports = [{**p, "targetPort": p.get("targetPort") or p["number"]} for p in spec.get("ports") or []]
        spec["ports"] = sorted(ports, key=lambda p: p["number"])
    return spec


def annotate(obj: Object, annotations: Mapping[str, str | None], *path: str) -> None:
    """Sets (None: removes) annotations of `obj`, or of the template at `path` in it."""
    holder = obj
    for key in path:
        holder = holder[key]
    metadata = holder.setdefault("metadata", {})
    after = {key: value for key, value in {**(metadata.get("annotations") or {}), **annotations}.items() if value is not None}
    if after:
        metadata["annotations"] = after
    else:
        metadata.pop("annotations", None)  # as the server does


def _is_ours(key: str) -> bool:
    return key == MANAGED_BY_LABEL or key.startswith("istio-egress.meshops.io/")


def _ours(obj: Mapping[str, Any], key: str) -> dict[str, str]:
    return {k: v for k, v in (obj["metadata"].get(key) or {}).items() if _is_ours(k)}


# -- host entries as ServiceEntries -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """A host entry together with the namespaces that it is exported to."""

    entry: HostEntry
    export_to: tuple[str, ...]

    @property
    def shape(self) -> tuple[Any, ...]:
        """Hosts of one shape can stand in one ServiceEntry."""
        return (self.entry.ports, self.entry.resolution)


def ports_of(obj: Mapping[str, Any]) -> list[Port]:
    """The ports of a ServiceEntry of anybody. Istio takes a protocol in any case (istio/istio pkg/config/protocol, ``Parse``), and none for TCP."""
    return [Port(p["number"], (p.get("protocol") or "TCP").upper()) for p in obj["spec"].get("ports") or ()]


def read_service_entry(obj: Mapping[str, Any]) -> list[Declared]:
    """The host entries that a ServiceEntry of ours stands for; the inverse of `service_entries`."""
    spec = obj["spec"]
    ports = tuple(sorted(ports_of(obj)))
    addresses = tuple(spec.get("addresses") or ()) or tuple(e["address"] for e in spec.get("endpoints") or () if "address" in e)
    metadata = read_metadata(obj)
    return [
        Declared(
            HostEntry(host, ports, addresses, spec.get("resolution") or "NONE", tuple(sorted(metadata.get(host, {}).items()))),
            tuple(sorted({"." if name == obj["metadata"]["namespace"] else name for name in spec.get("exportTo") or ("*",)})),
        )
        for host in spec.get("hosts") or []
    ]


def read_metadata(obj: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """owner, ticket, reason and expires by host, from the annotation. One that somebody broke reads as empty, and is written anew."""
    try:
        value = json.loads((obj["metadata"].get("annotations") or {}).get(HOSTS_ANNOTATION) or "{}")
    except ValueError:
        return {}
    if not isinstance(value, dict):
        return {}
    return {host: {k: v for k, v in kept.items() if isinstance(v, str)} for host, kept in value.items() if isinstance(kept, dict)}


def service_entries(wanted: Iterable[Declared], live: Iterable[Object], namespace: str, policy: str) -> list[Object]:
    """The ServiceEntries that hold the wanted hosts, in the order of their names.

    `live` is every ServiceEntry of the namespace. A host stays in the object it is in as long as its ports and resolution stay, so that adding
    or removing one touches one object and no connection of another (moving all of them together costs nothing but the write).
    istiod merges two entries of one host, as during a move, only when they have the same labels (istio/istio pilot/pkg/model, ``canMergeServices``);
    otherwise the older one counts, and ports that only the other has do not exist. So all objects of a policy have the same labels, and beside a
    gateway, where policies of several namespaces meet, those of all policies: there the policy's name is an annotation.
    """
    wanted = list(wanted)
    live = [o for o in live if o["metadata"]["namespace"] == namespace]
    mine = {o["metadata"]["name"]: o for o in live if policy_of(o) == policy}
    names = _Names(policy, taken={o["metadata"]["name"] for o in live} - set(mine))
    shared = [d for d in wanted if d.entry.shares]
    result = [_service_entry(names.own(d.entry), namespace, policy, [d], d.export_to) for d in wanted if not d.entry.shares]
    buckets, unplaced = _keep_places(shared, mine, {d.entry.host for d in wanted})
    for declared in unplaced:
        bucket = next((b for b in buckets.values() if b.takes(declared)), None)
        if bucket is None:
            bucket = buckets.setdefault(names.shared(declared.entry, buckets), _Bucket(declared.shape, declared.export_to, []))
        bucket.hosts.append(declared)
    result += [_service_entry(name, namespace, policy, b.hosts, b.export_to) for name, b in buckets.items() if b.hosts]
    return sorted(result, key=lambda o: o["metadata"]["name"])


@dataclass
class _Bucket:
    """A ServiceEntry that hosts of one shape share. `leaving` counts those that it holds until they are in their new place."""

    shape: tuple[Any, ...]
    export_to: tuple[str, ...]
    hosts: list[Declared]
    leaving: int = 0

    def takes(self, declared: Declared) -> bool:
        return len(self.hosts) + self.leaving < MAX_HOSTS and (self.shape, self.export_to) == (declared.shape, declared.export_to)


def _keep_places(shared: list[Declared], mine: Mapping[str, Object], wanted: Container[str]) -> tuple[dict[str, _Bucket], list[Declared]]:
    """(object name → what it is for and the hosts that stay in it, hosts that need a place).

    An object whose hosts all change their exportTo keeps them.
    """
    place: dict[str, str] = {}
    buckets: dict[str, _Bucket] = {}
    for name, obj in sorted(mine.items()):
        for declared in read_service_entry(obj):
            if declared.entry.shares:
                place.setdefault(declared.entry.host, name)
                buckets.setdefault(name, _Bucket(declared.shape, declared.export_to, []))
    stay: dict[str, list[Declared]] = defaultdict(list)
    unplaced: list[Declared] = []
    for declared in shared:
        name = place.get(declared.entry.host)
        (stay[name] if name and buckets[name].shape == declared.shape else unplaced).append(declared)
    for name, hosts in stay.items():
        votes = Counter(h.export_to for h in hosts)
        if not votes[buckets[name].export_to]:
            buckets[name].export_to = votes.most_common(1)[0][0]
        buckets[name].hosts = [h for h in hosts if h.export_to == buckets[name].export_to]
        unplaced += [h for h in hosts if h.export_to != buckets[name].export_to]
    for name, bucket in buckets.items():
        staying = {h.entry.host for h in bucket.hosts}
        bucket.leaving = sum(host in wanted and host not in staying for host in mine[name]["spec"].get("hosts") or ())
    return buckets, unplaced


def stem(policy: str) -> str:
    """How names of a policy's objects begin: ``egress-POLICY``. Beside a gateway it is the clients' namespace, after the policy's name unless that is
    ``default``: the gateway holds these names once to four times for each host, so they are short.
    """
    return policy.removeprefix(f"{DEFAULT_POLICY}.") if _is_beside_gateway(policy) else f"egress-{policy}"


def _is_beside_gateway(policy: str) -> bool:
    return policy.partition(".")[2] not in ("", KNOWN_SCOPE, EVERYTHING_SCOPE)


class _Names:
    """Object names: after the policy's stem ``PORTS-N`` for shared entries, ``HOST`` for one that stands alone."""

    def __init__(self, policy: str, taken: set[str]) -> None:
        self._stem, self._taken = stem(policy), taken

    def own(self, entry: HostEntry) -> str:
        base, number = _short(f"{self._stem}-{entry.as_name}", 240), 1
        name = base
        while name in self._taken:
            number += 1
            name = f"{base}-{number}"
        return name

    def shared(self, entry: HostEntry, used: Container[str]) -> str:
        ports = "-".join(str(port.number) for port in entry.ports)
        kind = "" if entry.resolution == "DNS" else "-" + entry.resolution.lower().replace("_", "-")
        base, number = _short(f"{self._stem}-{ports}{kind}", 200), 1
        while f"{base}-{number}" in used or f"{base}-{number}" in self._taken:
            number += 1
        return f"{base}-{number}"


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 9].rstrip('.-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _service_entry(name: str, namespace: str, policy: str, declared: list[Declared], export_to: tuple[str, ...]) -> Object:
    first = declared[0].entry
    metadata = {d.entry.host: dict(d.entry.metadata) for d in declared if d.entry.metadata}
    labels, annotations = policy_labels(policy), {}
    if _is_beside_gateway(policy):
        annotations = {name: labels.pop(name) for name in (POLICY_LABEL, SCOPE_LABEL)}
    if metadata:
        annotations[HOSTS_ANNOTATION] = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    spec: Object = {
        "hosts": sorted(d.entry.host for d in declared),
        "ports": [{"number": p.number, "name": p.name, "protocol": p.protocol} for p in first.ports],
        "location": "MESH_EXTERNAL",
        "resolution": first.resolution,
        "exportTo": sorted({"." if name == namespace else name for name in export_to}),
    }
    if first.resolution == "STATIC":
        spec["endpoints"] = [{"address": a} for a in first.addresses]
    if first.addresses and (first.is_opaque or first.resolution != "STATIC" or first.host.endswith(f".{IP_DOMAIN}")):
        spec["addresses"] = list(first.addresses)
    return {
        "apiVersion": NETWORKING,
        "kind": "ServiceEntry",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": spec,
    }
