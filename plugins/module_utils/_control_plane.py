# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The Istio control plane: which one, which version, and who manages its config.

It asks the cluster for istiod's Deployment and for the ConfigMaps that istiod reads; it does not read or change what is in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError, if_allowed
from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError

MESH_KEY, VALUES_KEY = "mesh", "values"
DEFAULT_REVISION = "default"
INJECTOR = "istio-sidecar-injector"
REVISION_LABEL = "istio.io/rev"


class ControlPlaneError(EgressError):
    """There is no such control plane, or it cannot do what is asked of it."""


@dataclass(frozen=True)
class Owner:
    """Who manages the mesh config. `overwritten` says when a change made here is lost (empty: not known); `values` are the lines that keep it."""

    name: str
    overwritten: str
    values: str


def mesh_config_map(cluster: Cluster, istio_namespace: str, revision: str) -> dict[str, Any]:
    """The ConfigMap that istiod of `revision` reads: ``istio``, or ``istio-REVISION``. Raises ControlPlaneError naming those that exist."""
    return _config_map(cluster, istio_namespace, revision, "istio", MESH_KEY, "mesh config")


def injector_config_map(cluster: Cluster, istio_namespace: str, revision: str) -> dict[str, Any]:
    """The ConfigMap of what new sidecars get: ``istio-sidecar-injector``, or with the revision behind it. Raises ControlPlaneError as above."""
    return _config_map(cluster, istio_namespace, revision, INJECTOR, VALUES_KEY, "injector config")


def injector_if_any(cluster: Cluster, istio_namespace: str, revision: str) -> dict[str, Any] | None:
    """The same; None where there is none or it may not be read, for what does not depend on it."""
    try:
        return if_allowed(injector_config_map, cluster, istio_namespace, revision)
    except ControlPlaneError:
        return None


def _config_map(cluster: Cluster, istio_namespace: str, revision: str, base: str, key: str, what: str) -> dict[str, Any]:
    name = base if revision in ("", DEFAULT_REVISION) else f"{base}-{revision}"
    found = cluster.get("ConfigMap", istio_namespace, name)
    if found is None:
        raise ControlPlaneError(
            f'There is no ConfigMap "{name}" in namespace "{istio_namespace}", where istiod of revision "{revision}" would keep its {what}.\n'
            f"{_existing(cluster)}"
        )
    if key not in (found.get("data") or {}):
        raise ControlPlaneError(
            f'ConfigMap {istio_namespace}/{name} has no key "{key}", so it holds no {what} of Istio.\n'
            f"Check istio_namespace and revision; nothing was written."
        )
    return found


def _existing(cluster: Cluster) -> str:
    try:
        istiods = cluster.list("Deployment", labels="app=istiod")
    except ClusterError:
        istiods = []
    known = sorted(f"{d['metadata']['namespace']} (revision {_revision(d)})" for d in istiods)
    if not known:
        return "No istiod was found in the cluster: install Istio first, or choose another kubeconfig or context."
    return f"Set istio_namespace and revision to one that exists: {', '.join(known)}."


def istiod_version(cluster: Cluster, istio_namespace: str, revision: str) -> tuple[int, int, int] | None:
    """The version of istiod from its Deployment (label, else image tag); None where neither tells."""
    for deployment in cluster.list("Deployment", istio_namespace, labels="app=istiod"):
        if _revision(deployment) == (revision or DEFAULT_REVISION):
            label = (deployment["metadata"].get("labels") or {}).get("app.kubernetes.io/version", "")
            images = [c.get("image", "").rpartition(":")[2] for c in deployment["spec"]["template"]["spec"]["containers"]]
            for text in (label, *images):
                match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
                if match:
                    return int(match[1]), int(match[2]), int(match[3] or 0)
    return None


def _revision(deployment: Mapping[str, Any]) -> str:
    return (deployment["metadata"].get("labels") or {}).get(REVISION_LABEL) or DEFAULT_REVISION


def owner_of_mesh_config(config_map: Mapping[str, Any], mode: str) -> Owner:
    """Who renders the mesh config, and the lines that make the mode `mode` there."""
    policy = f"outboundTrafficPolicy:\n  mode: {mode}\n"
    return _owner(config_map, f"meshConfig:\n{_indent(policy, 2)}", operator=f"meshConfig:\n{_indent(policy, 2)}", aks=policy)


def owner_of_injector(config_map: Mapping[str, Any], proxy: Mapping[str, str]) -> Owner:
    """Who renders the injector config, and the lines that give sidecars the values `proxy` there."""
    lines = "global:\n  proxy:\n" + "".join(f"    {key}: {json.dumps(value)}\n" for key, value in proxy.items())
    return _owner(config_map, lines, operator=f"values:\n{_indent(lines, 2)}", aks="")


def _owner(config_map: Mapping[str, Any], values: str, operator: str, aks: str) -> Owner:
    """Who renders a ConfigMap of istiod, told by the marks that installers leave. Sail runs Helm inside, so it is looked for first.

    `values` are the lines for Helm values, `operator` those below ``spec`` of an IstioOperator, `aks` those of the add-on's shared ConfigMap.
    """
    metadata = config_map["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    sail = [r for r in metadata.get("ownerReferences") or [] if r.get("kind") == "IstioRevision"]
    if sail or labels.get("app.kubernetes.io/managed-by") == "sail-operator" or "operator-sdk/primary-resource" in annotations:
        return Owner("Sail operator", "within seconds, by the operator", f"# Istio resource (sailoperator.io/v1)\nspec:\n  values:\n{_indent(values, 4)}")
    if metadata["namespace"] == "aks-istio-system":
        revision = labels.get(REVISION_LABEL, "REVISION")
        shared = f"# ConfigMap istio-shared-configmap-{revision} in aks-istio-system, key mesh\n{aks}" if aks else "# AKS has no setting for it\n"
        return Owner("AKS add-on", "by the add-on's own reconciliation", shared)
    if annotations.get("meta.helm.sh/release-name"):
        release = annotations["meta.helm.sh/release-name"]
        return Owner("Helm", f"by the next helm upgrade of release {release}", f"# values of Helm release {release} (chart istiod)\n{values}")
    if "install.operator.istio.io/owning-resource" in labels or "operator.istio.io/managed" in labels:
        return Owner("istioctl", "by the next istioctl install or upgrade", f"# IstioOperator file given to istioctl install\nspec:\n{_indent(operator, 2)}")
    return Owner("unknown", "", f"# {'mesh config' if aks else 'values of Istio'}\n{values}")


def _indent(text: str, by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in text.splitlines())
