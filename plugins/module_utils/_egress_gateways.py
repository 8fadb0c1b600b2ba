# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Finds egress gateways in a cluster, by what runs behind their Service, however they were installed, and sees them serve."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Mapping
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _gateway_workload
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway import HTTP_PORT, TLS_PORT, Gateway, GatewayError, named
from ansible_collections.meshops.istio_egress.plugins.module_utils._injected import PROXY
from ansible_collections.meshops.istio_egress.plugins.module_utils._observer import Observer
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import Proxy, routers
from ansible_collections.meshops.istio_egress.plugins.module_utils._rollouts import unfinished, why

PAUSE = 0.5
"""Seconds between two looks at a gateway that does not serve yet."""


def find_gateways(cluster: Cluster, references: Iterable[str], required: Container[str]) -> dict[str, Gateway]:
    """The gateways of the references (namespace/service), by reference.

    Raises GatewayError when one that is `required` has no Service, lacks a port, or has no proxy that is ready. Of the others, those that are gone
    are made up from their name, so that what leads to them can be removed.
    """
    return {reference: _find(cluster, reference, reference in required) for reference in sorted(references)}


def _find(cluster: Cluster, reference: str, required: bool) -> Gateway:
    by_name = named(reference)
    namespace, name = by_name.namespace, by_name.service
    service = cluster.get("Service", namespace, name)
    if service is None:
        if required:
            raise GatewayError(
                f"There is no egress gateway {reference}: no Service of that name. Nobody was sent there.\n"
                "Deploy one (role egress_gateway_deploy, or istioctl with an egress gateway), or correct the option gateway."
            )
        return by_name
    selector = service["spec"].get("selector") or {}
    ports = {p["port"]: p.get("targetPort", p["port"]) for p in service["spec"].get("ports") or ()}
    if required:
        missing = [str(p) for p in (HTTP_PORT, TLS_PORT) if p not in ports]
        if missing:
            raise GatewayError(
                f"Service {reference} has no port {' and '.join(missing)}, which the way through the gateway needs.\n"
                f"Add to its spec.ports: {', '.join(f'{{name: port-{p}, port: {p}, targetPort: 8{int(p):03d}}}' for p in missing)}."
            )
        found = _proxies_behind(cluster, namespace, selector)
        if not any(proxy.ready for proxy in found):
            raise GatewayError(
                f"Egress gateway {reference} has no proxy that is ready ({len(found)} pods). Nobody was sent there.\n"
                "Bring its Deployment up (kubectl get pods shows why it is not), then run the task again."
            )
    target = ports.get(TLS_PORT, 8443)
    if isinstance(target, str):
        containers = (c for pod in _pods_behind(cluster, namespace, selector) for c in pod["spec"]["containers"])
        target = next((p["containerPort"] for c in containers for p in c.get("ports") or () if p.get("name") == target), 8443)
    own = service if _gateway_workload.is_ours(service) else None
    return Gateway(namespace, name, tuple(sorted(selector.items())), target, tuple(sorted(ports)), own)


def _proxies_behind(cluster: Cluster, namespace: str, selector: Mapping[str, str]) -> list[Proxy]:
    return routers(_pods_behind(cluster, namespace, selector))


def _pods_behind(cluster: Cluster, namespace: str, selector: Mapping[str, str]) -> list[dict[str, Any]]:
    return cluster.list("Pod", namespace, labels=",".join(f"{k}={v}" for k, v in sorted(selector.items()))) if selector else []


# -- all that there are -------------------------------------------------------------------------------------------------------------


def discover(cluster: Cluster, namespace: str | None, istio_namespace: str) -> list[_gateway_workload.Found]:
    """Every gateway of the cluster or of one namespace, of any purpose. An account that may not look everywhere sees those beside the control plane."""

    def look(kind: str) -> list[dict[str, Any]]:
        return cluster.list(kind, namespace) if namespace else cluster.list_visible(kind, istio_namespace)

    virtual_services = cluster.list_visible("VirtualService", namespace or istio_namespace)
    return _gateway_workload.find(look("Service"), look("Deployment"), routers(look("Pod")), virtual_services)


def made_here(cluster: Cluster, namespace: str | None, istio_namespace: str) -> list[tuple[str, str]]:
    """(namespace, name) of the gateways that we deployed, those too of which only a part is left."""
    found = set()
    for kind in ("Deployment", "Service"):
        objects = cluster.list(kind, namespace) if namespace else cluster.list_visible(kind, istio_namespace)
        found |= {(o["metadata"]["namespace"], o["metadata"]["name"]) for o in objects if _gateway_workload.is_ours(o)}
    return sorted(found)


def read_workload(cluster: Cluster, namespace: str, name: str) -> dict[str, dict[str, Any] | None]:
    """What exists under the names of a gateway that we deploy, by kind."""
    return {kind: cluster.get(kind, namespace, own) for kind, own in _gateway_workload.names_of(name).items()}


# -- seeing one serve ---------------------------------------------------------------------------------------------------------------


class ServiceWatcher(Observer):
    """Waits until a gateway serves, and keeps what it saw for the module's result, as `_watcher.Watcher` does for sidecars."""

    def __init__(self, cluster: Cluster, timeout: float) -> None:
        super().__init__()
        self._cluster, self._timeout = cluster, timeout

    def follow(self, wait: _gateway_workload.Serving) -> float:
        """Waits until the gateway serves. Seconds that it took; raises GatewayError when time is up, or is no help."""
        start = time.monotonic()
        while missing := self._missing(wait.gateway):
            if time.monotonic() - start + PAUSE > self._timeout:
                raise GatewayError(
                    f"Egress gateway {wait.gateway} does not serve after {self._timeout:.0f} s: {missing}.\n"
                    f"What was written stays. Look at kubectl --namespace {wait.namespaces[0]} describe deployment,pod, then run the task again.",
                    {"proxies": self.proxies, "verified": False},
                )
            time.sleep(PAUSE)
        self.verified = True
        return round(time.monotonic() - start, 2)

    def _missing(self, reference: str) -> str:
        """Why the gateway does not serve yet; empty when it does. One of somebody else serves when one of its proxies does."""
        namespace, _sep, name = reference.partition("/")
        service = self._cluster.get("Service", namespace, name)
        if service is None:
            return "there is no Service of that name any more"
        pods = _pods_behind(self._cluster, namespace, service["spec"].get("selector") or {})
        proxies = routers(pods)
        self._see(proxies)
        ready = {p.pod for p in proxies if p.ready}
        if _gateway_workload.is_ours(service):
            _check_injected(pods, namespace)
            deployment = self._cluster.get("Deployment", namespace, name)
            if deployment is None:
                return "its Deployment is gone"
            missing, wanted = unfinished(deployment), deployment["spec"].get("replicas", 1)
            if missing:
                return f"{missing} ({reason})" if (reason := why(deployment, pods)) else missing
            if len(proxies) != wanted or len(ready) != wanted:
                return f"{len(ready)} of {len(proxies)} proxies are ready, and {wanted} shall be"
        if not ready:
            return f"none of {len(proxies)} proxies is ready"
        slices = self._cluster.list("EndpointSlice", namespace, labels=f"kubernetes.io/service-name={name}")
        served = {(e.get("targetRef") or {}).get("name") for s in slices for e in s.get("endpoints") or () if (e.get("conditions") or {}).get("ready", True)}
        return "" if ready <= served else f"the Service does not lead to {', '.join(sorted(ready - served))} yet"

    def _see(self, proxies: list[Proxy]) -> None:
        pending = [{"pod": str(p), "reason": "the pod is not ready"} for p in proxies if not p.ready]
        self.proxies = {"total": len(proxies), "looked_at": len(proxies), "following": len(proxies) - len(pending), "pending": pending}


def _check_injected(pods: Iterable[Mapping[str, Any]], namespace: str) -> None:
    """Raises at once when nothing put a proxy into the pods, for that does not come by itself."""
    for pod in pods:
        if any(c["name"] == PROXY and c.get("image") == "auto" for c in pod["spec"]["containers"]) and not pod["metadata"].get("deletionTimestamp"):
            raise GatewayError(
                f"Pod {namespace}/{pod['metadata']['name']} got no proxy: no injector of Istio cares for namespace {namespace} with this revision.\n"
                "Set revision to one that is installed, or take the label istio-injection=disabled off the namespace, then run the task again."
            )
