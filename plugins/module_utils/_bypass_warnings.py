# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Warnings about ranges around the sidecar: that they hold the cluster itself, or that somebody else writes them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._bypass import SETTINGS, Texts
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, if_allowed
from ansible_collections.meshops.istio_egress.plugins.module_utils._text import few


def warn_of_cluster(cluster: Cluster, namespace: str | None, ranges: Mapping[str, Texts]) -> list[str]:
    """Warnings about those of `ranges` (whose they are → what is in force) that hold Services, or pods of the namespace (None: of the mesh)."""
    if not ranges:
        return []
    addresses = if_allowed(lambda: list(addresses_of(cluster.list("Service"), cluster.list("Pod", namespace))))
    if addresses is None:
        return ["Whether the ranges lead parts of the cluster itself around the sidecar is not known, since the account may not list services and pods."]
    held = {whose: swallowed(texts, addresses) for whose, texts in ranges.items()}
    return [
        f"The ranges of {whose} lead parts of the cluster itself around the sidecar ({few(lines)}), which then have no mTLS, policy or telemetry of the mesh. "
        "Keep the ranges of the cluster's Services and pods in include, and out of exclude."
        for whose, lines in held.items()
        if lines
    ]


def warn_of_manager(workload: Mapping[str, Any], given: Texts) -> list[str]:
    """A warning when somebody else writes the pod template in which the ranges `given` were set."""
    manager = manager_of(workload)
    if not manager:
        return []
    lines = ", ".join(f"{setting.annotation}: {given[option]!r}" for option, setting in SETTINGS.items() if option in given)
    return [
        f"{workload['kind']} {workload['metadata']['namespace']}/{workload['metadata']['name']} is managed by {manager[0]}, which writes its pod template "
        f"again. To keep the ranges, write the pod annotations {lines} {manager[1]}."
    ]


def swallowed(texts: Texts, addresses: Iterable[tuple[str, str]]) -> list[str]:
    """Those of `addresses` (what it is, IP) that the ranges lead around the sidecar. Sorted, the API server first."""
    include = None if texts["include"] in (None, "*") else _networks(texts["include"])
    exclude = _networks(texts["exclude"] or "")

    def around(text: str) -> bool:
        address = ipaddress.ip_address(text)
        return _within(address, exclude) or (include is not None and not _within(address, include))

    return sorted((f"{what} {ip}" for what, ip in addresses if around(ip)), key=lambda line: (not line.startswith("the API server"), line))


def _networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(part, strict=False) for part in text.split(",") if part]


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: Iterable[Any]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def addresses_of(services: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What the cluster itself answers at, Services and pods: what it is, and the IP."""
    for service in services:
        name = f"{service['metadata']['namespace']}/{service['metadata']['name']}"
        for ip in service["spec"].get("clusterIPs") or [service["spec"].get("clusterIP")]:
            if ip and ip != "None":
                yield "the API server" if name == "default/kubernetes" else f"Service {name}", ip
    for pod in pods:
        if (pod.get("status") or {}).get("podIP") and not pod["spec"].get("hostNetwork"):
            yield f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}", pod["status"]["podIP"]


_MANAGERS = (
    ("annotations", "meta.helm.sh/release-name", "Helm release", "in the chart's values for the annotations of its pods"),
    ("annotations", "argocd.argoproj.io/tracking-id", "Argo CD", "in the repository that it syncs from"),
    ("labels", "argocd.argoproj.io/instance", "Argo CD application", "in the repository that it syncs from"),
    ("labels", "helm.toolkit.fluxcd.io/name", "Flux HelmRelease", "in its values"),
    ("labels", "kustomize.toolkit.fluxcd.io/name", "Flux Kustomization", "in the repository that it syncs from"),
    ("labels", "olm.owner", "Operator Lifecycle Manager", "in the resource that the operator reads"),
)


def manager_of(workload: Mapping[str, Any]) -> tuple[str, str] | None:
    """Who else writes the pod template of a workload, and where annotations have to be written to stay; None when nobody is known."""
    metadata = workload["metadata"]
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("controller"):
            return f"{owner['kind']} {owner['name']}", "in that resource"
    for part, key, name, where in _MANAGERS:
        value = (metadata.get(part) or {}).get(key)
        if value:
            return f"{name} {value.partition(':')[0]}", where
    return None
