# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The pod of a workload that makes requests, chosen among the pods of its namespace. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError
from ansible_collections.meshops.istio_egress.plugins.module_utils._injected import PROXY, has_proxy


class SourceError(EgressError):
    """A workload that cannot make requests."""


@dataclass(frozen=True)
class Source:
    """The pod that makes the requests. `sidecar` tells whether it has one."""

    namespace: str
    pod: str
    container: str
    sidecar: bool

    def __str__(self) -> str:
        return f"Container {self.container} of pod {self.namespace}/{self.pod}"


def pods_of(pods: Sequence[Mapping[str, Any]], namespace: str, workload: str) -> list[Mapping[str, Any]]:
    """The pods of a workload among those of its namespace.

    `workload` is ``kind/name``, ``pod/name``, or a name, which means a Deployment. The owner is read from the pods themselves (a Deployment's pods belong
    to the ReplicaSet ``name-<pod-template-hash>``), so no right to read workloads is needed. Raises SourceError when there is none.
    """
    kind, _sep, name = workload.strip().rpartition("/")
    kind = (kind or "deployment").lower().split(".")[0]
    kind = _KINDS.get(kind, kind)
    if not name or "/" in kind:
        raise SourceError(f'"{workload}" does not name a workload.\nWrite kind/name, such as deployment/sleep or pod/sleep-0.')
    own = [pod for pod in pods if (kind, name) in owners(pod)]
    if not own:
        others = sorted({"/".join(owners(pod)[-1]) for pod in pods})
        there = f"Pods there belong to {', '.join(others[:5])}{' and others' if len(others) > 5 else ''}" if others else "There is no pod at all"
        raise SourceError(f"{kind}/{name} has no pod in namespace {namespace}.\n{there}; correct workload or namespace, or give it a replica.")
    return own


def choose_source(pods: Sequence[Mapping[str, Any]], namespace: str, workload: str, container: str | None = None) -> Source:
    """The newest running and ready pod of a workload (see `pods_of`).

    Raises SourceError when there is none, or none that is ready, and when it has no such container.
    """
    own = pods_of(pods, namespace, workload)
    ready = [pod for pod in own if _is_ready(pod)]
    if not ready:
        pod = own[0]
        state = "is being deleted" if pod["metadata"].get("deletionTimestamp") else f"is {(pod.get('status') or {}).get('phase')}, not ready"
        raise SourceError(
            f"None of the {len(own)} pods of {workload.strip()} in namespace {namespace} is ready: {pod['metadata']['name']} {state}.\n"
            f"Look at kubectl describe pod -n {namespace} {pod['metadata']['name']}, and run the task again when it is ready."
        )
    chosen = max(ready, key=lambda p: (p["metadata"].get("creationTimestamp") or "", p["metadata"]["name"]))
    pod = chosen["metadata"]["name"]
    containers = [c["name"] for c in chosen["spec"]["containers"]]
    container = container or next((name for name in containers if name != PROXY), "")
    if container not in containers:
        raise SourceError(f'Pod {namespace}/{pod} has no container "{container}".\nIt has {", ".join(containers)}; name one that has curl.')
    return Source(namespace, pod, container, has_proxy(chosen))


_KINDS = {
    "deploy": "deployment", "deployments": "deployment", "sts": "statefulset", "statefulsets": "statefulset", "ds": "daemonset",
    "daemonsets": "daemonset", "rs": "replicaset", "replicasets": "replicaset", "jobs": "job", "po": "pod", "pods": "pod",
}  # fmt: skip
"""Short and plural names as kubectl has them."""


def owners(pod: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(kind, name) of the pod itself and of what it belongs to, the workload last."""
    metadata = pod["metadata"]
    result = [("pod", metadata["name"])]
    for owner in metadata.get("ownerReferences") or ():
        result.append((owner["kind"].lower(), owner["name"]))
        template = (metadata.get("labels") or {}).get("pod-template-hash")
        if owner["kind"] == "ReplicaSet" and template and owner["name"].endswith(f"-{template}"):
            result.append(("deployment", owner["name"].removesuffix(f"-{template}")))
    return result


def _is_ready(pod: Mapping[str, Any]) -> bool:
    status = pod.get("status") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
    return status.get("phase") == "Running" and ready and not pod["metadata"].get("deletionTimestamp")
