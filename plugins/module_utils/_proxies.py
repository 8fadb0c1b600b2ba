# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The proxies of a mesh: which there are, and asking one of them, through `_cluster`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._injected import PROXY, containers

ADMIN_PORT = 15000
"""Where Envoy's admin interface listens, on loopback alone (Istio: Application Requirements, "Ports used by Istio")."""

ANSWERS = 3
"""How often a proxy is asked whose answers break off."""

SIDECAR, ROUTER = "sidecar", "router"
ROLES = (ROUTER, "waypoint", "ztunnel")
"""What a container with the proxy's name runs that is no sidecar: the word after ``proxy`` in its arguments (istio/istio manifests/charts)."""


@dataclass(frozen=True)
class Proxy:
    """A sidecar: the pod that it is in, and the control plane revision that it belongs to."""

    namespace: str
    pod: str
    labels: Mapping[str, str] = field(hash=False, compare=False)
    revision: str = ""
    ready: bool = True

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"


def sidecars(pods: Iterable[Mapping[str, Any]]) -> list[Proxy]:
    """The sidecars among `pods`, leaving out pods that have ended."""
    return [proxy for proxy, role in _proxies(pods) if role == SIDECAR]


def routers(pods: Iterable[Mapping[str, Any]]) -> list[Proxy]:
    """The gateway proxies among `pods`: their proxy runs as ``router``."""
    return [proxy for proxy, role in _proxies(pods) if role == ROUTER]


def workloads(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The running pods among `pods` that are no part of the mesh themselves (gateways and the like), with a sidecar or without."""
    running = [p for p in pods if (p.get("status") or {}).get("phase") == "Running" and not has_ended(p)]
    return [p for p in running if all(role == SIDECAR for _proxy, role in _proxies([p]))]


def has_ended(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is ending or done; one of a Job stays when it is done, and one that was evicted."""
    return bool(pod["metadata"].get("deletionTimestamp")) or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _proxies(pods: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Proxy, str]]:
    for pod in pods:
        metadata, status = pod["metadata"], pod.get("status") or {}
        if has_ended(pod):
            continue
        proxy = next((c for c in containers(pod) if c["name"] == PROXY), None)
        if proxy is None:
            continue
        statuses = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
        ready = any(s["name"] == PROXY and s.get("ready") for s in statuses)
        found = Proxy(metadata["namespace"], metadata["name"], metadata.get("labels") or {}, _revision(metadata), ready)
        yield found, next((word for word in proxy.get("args") or () if word in ROLES), SIDECAR)


def _revision(metadata: Mapping[str, Any]) -> str:
    """The revision that injected the pod, from the injector's own note."""
    try:
        return json.loads((metadata.get("annotations") or {}).get("sidecar.istio.io/status") or "{}").get("revision") or ""
    except ValueError:
        return ""


def ask(cluster: Cluster, namespace: str, pod: str, *paths: str) -> list[str]:
    """What the proxy of a pod answers to GETs of its admin interface. Raises ClusterError.

    They travel over a forwarded port, which costs a fifth of a command in the container; an account that may not forward ports may run one.
    """
    try:
        return cluster.fetch(namespace, pod, ADMIN_PORT, paths)
    except ClusterError as error:
        if error.status != 403:
            raise
    return [_request(cluster, namespace, pod, path) for path in paths]


def ask_for(cluster: Cluster, namespace: str, pod: str, *paths: str) -> list[dict[str, Any]]:
    """The same as objects; asked again when an answer breaks off, which a busy node does to the output of long commands now and then."""
    for _attempt in range(ANSWERS):
        try:
            return [json.loads(answer or "{}") for answer in ask(cluster, namespace, pod, *paths)]
        except ValueError:
            continue
    raise ClusterError(0, "Incomplete", f"its answer broke off {ANSWERS} times", "ask the proxy of", "Pod", namespace, pod)


def _request(cluster: Cluster, namespace: str, pod: str, path: str) -> str:
    code, out, err = cluster.exec(namespace, pod, PROXY, ["pilot-agent", "request", "GET", path])
    if code:
        raise ClusterError(0, f"exit {code}", err.strip() or out.strip(), "ask the proxy of", "Pod", namespace, pod)
    return out
