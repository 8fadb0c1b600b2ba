"""istio_egress_host tasks against a cluster that is a list.

From arguments to plan it is the collection's own code; from plan to objects it does what an API server does.

It knows which of several ServiceEntries istiod takes for a host, because that is what a plan has to get right. It knows nothing of how a plan is made.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._lint import check_clashes
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Declared
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait, plan_hosts, wanted_hosts
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import export_to, parse_hosts, parse_names

Object = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """The options of one istio_egress_host task."""

    hosts: Sequence[Any] = ()
    namespace: str = "demo"
    policy: str = "default"
    export_to: Sequence[str] = (".",)
    purge: bool = False
    state: str = "present"

    def wanted(self, live: Iterable[Object]) -> list[Declared]:
        present, exported = self.state == "present", export_to(self.export_to)
        listed = parse_hosts(self.hosts) if present else ()
        check_clashes([Declared(entry, exported) for entry in listed], live, self.namespace, self.policy)
        return wanted_hosts(listed, set() if present else set(parse_names(self.hosts)), self.purge, exported, live, self.namespace, self.policy)

    def plan(self, live: Iterable[Object]) -> Plan:
        """As the module makes it. Raises PolicyError."""
        return plan_hosts(self.wanted(live), live, self.namespace, self.policy)


def service_entry(
    name: str, *hosts: str, namespace: str = "demo", labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None, **spec: Any
) -> Object:
    """A ServiceEntry as somebody else writes it: port 443 TLS unless `ports` says otherwise, and no more than what is given."""
    spec = {"hosts": list(hosts), "ports": [{"number": 443, "name": "https", "protocol": "TLS"}], **spec}
    metadata = {"name": name, "namespace": namespace, **({"labels": labels} if labels else {}), **({"annotations": annotations} if annotations else {})}
    return {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata, "spec": spec}


def written(live: Iterable[Object], change: Change) -> list[Object]:
    """The objects after one change; like an API server it refuses to create what exists and to change what does not."""
    before = {_key(o): o for o in live}
    key = _key(change.object)
    assert (key in before) == (change.before is not None), f"{change} meets {sorted(before)}"
    after = dict(before)
    if change.after is None:
        del after[key]
    elif change.before is None:
        after[key] = created(before.values(), change.after)
    else:
        after[key] = copy.deepcopy(change.after)
    return list(after.values())


def created(live: Iterable[Object], obj: Object) -> Object:
    """`obj` with what the server adds, younger than all that is live."""
    times = [o["metadata"].get("creationTimestamp", "") for o in live]
    number = int(max(times, default="")[-5:-1] or 0) + 1
    obj = copy.deepcopy(obj)
    obj["metadata"].update(creationTimestamp=f"2026-01-01T00:00:00.{number:04}Z", uid=f"uid-{number}", resourceVersion=str(number), generation=1)
    return obj


def walk(live: Iterable[Object], plan: Plan) -> Iterator[tuple[Change | Wait, list[Object]]]:
    """Each step with what is live after it."""
    live = list(live)
    for step in plan.steps:
        if isinstance(step, Change):
            live = written(live, step)
        yield step, live


def states(live: Iterable[Object], plan: Plan) -> list[list[Object]]:
    """What is live before the plan, and after each of its changes."""
    return [list(live), *(state for step, state in walk(live, plan) if isinstance(step, Change))]


def after(live: Iterable[Object], *tasks: Task) -> list[Object]:
    """What is live when the tasks have run one after the other."""
    live = list(live)
    for task in tasks:
        live = states(live, task.plan(live))[-1]
    return live


def exported(obj: Object, namespace: str) -> bool:
    """Whether sidecars of `namespace` see the object."""
    names = obj["spec"].get("exportTo") or ["*"]
    return "*" in names or namespace in names or ("." in names and obj["metadata"]["namespace"] == namespace)


def known_to(live: Iterable[Object], namespace: str) -> set[tuple[str, int]]:
    """(host, port) that sidecars of `namespace` get from istiod.

    Of several ServiceEntries of a host the oldest counts. Ports of a younger one are added when it is of the same namespace, with the same labels,
    exportTo and resolution; otherwise it is ignored (istio/istio pilot/pkg/model, ``canMergeServices``).
    """
    oldest: dict[str, Object] = {}
    known: set[tuple[str, int]] = set()
    for obj in sorted(live, key=lambda o: o["metadata"].get("creationTimestamp", "")):
        if not exported(obj, namespace):
            continue
        for host in obj["spec"]["hosts"]:
            if _merge_key(oldest.setdefault(host, obj)) == _merge_key(obj):
                known |= {(host, port["number"]) for port in obj["spec"].get("ports") or []}
    return known


def in_vain(wait: Wait, live: Iterable[Object], namespaces: Iterable[str]) -> list[str]:
    """What a wait expects of sidecars that istiod, with these objects, will never bring about. `namespaces` are all that have sidecars."""
    complaints = []
    for namespace in wait.namespaces or namespaces:
        known = known_to(live, namespace)
        complaints += [f"{d[0]}:{d[1]} does not come to {namespace}" for d in sorted(wait.present) if d[:2] not in known]
        complaints += [f"{d[0]}:{d[1]} does not leave {namespace}" for d in sorted(wait.absent) if d[:2] in known]
    return complaints


def _merge_key(obj: Object) -> tuple[Any, ...]:
    spec, metadata = obj["spec"], obj["metadata"]
    return metadata["namespace"], metadata.get("labels") or {}, sorted(spec.get("exportTo") or []), spec.get("resolution") or "NONE"


def _key(obj: Object) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]
