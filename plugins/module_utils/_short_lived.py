# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. A short-lived pod that makes requests as a workload would whose own containers have no curl.

It has the workload's labels, service account, DNS and injection, is never ready, so that no Service sends it traffic, belongs to the pod it stands for, so
that no controller takes it for one of its own, and ends by itself. As a stranger it has a service account that was made with it and that nothing names.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._injected import PROXY, has_proxy
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import MANAGED_BY, MANAGED_BY_LABEL
from ansible_collections.meshops.istio_egress.plugins.module_utils._source import Source, SourceError

CONTAINER = "check"
LONGEST = 600
"""Seconds after which the pod ends by itself, should nobody be left to delete it."""
_COPIED = ("serviceAccountName", "imagePullSecrets", "dnsPolicy", "dnsConfig", "hostAliases", "hostNetwork", "nodeSelector", "tolerations")
_ANNOTATIONS = ("traffic.sidecar.istio.io/", "sidecar.istio.io/", "proxy.istio.io/", "inject.istio.io/", "istio.io/")
_OF_THE_INJECTOR = ("sidecar.istio.io/status", "security.istio.io/tlsMode", "istio.io/rev", "pod-template-hash")


def pod_for(pod: Mapping[str, Any], image: str, token: str, account: str = "") -> dict[str, Any]:
    """The short-lived pod that stands for `pod`, with its service account unless another one is named."""
    metadata, spec = pod["metadata"], pod["spec"]
    labels = {k: v for k, v in (metadata.get("labels") or {}).items() if k not in _OF_THE_INJECTOR}
    notes = {k: v for k, v in (metadata.get("annotations") or {}).items() if k.startswith(_ANNOTATIONS) and k not in _OF_THE_INJECTOR}
    container = {
        "name": CONTAINER,
        "image": image,
        "command": ["sleep", str(LONGEST)],
        "readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": LONGEST},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"egress-check-{token}",
            "namespace": metadata["namespace"],
            "labels": {**labels, MANAGED_BY_LABEL: MANAGED_BY},
            "annotations": notes,
            "ownerReferences": [_owned_by(pod)],
        },
        "spec": {
            **{key: spec[key] for key in _COPIED if spec.get(key)},
            **({"serviceAccountName": account} if account else {}),
            "activeDeadlineSeconds": LONGEST,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        },
    }


def has_client(cluster: Cluster, source: Source) -> bool:
    """Whether the container can make requests itself."""
    try:
        return cluster.exec(source.namespace, source.pod, source.container, ["sh", "-c", "command -v curl"])[0] == 0
    except ClusterError as error:
        if error.reason != "NotStarted":
            raise
        return False


@contextmanager
def stand_in(cluster: Cluster, pod: Mapping[str, Any], image: str, timeout: float, stranger: bool = False) -> Iterator[tuple[Source, dict[str, Any]]]:
    """A short-lived pod for `pod`, running, gone afterwards whatever happens. Raises SourceError when it does not start."""
    token = secrets.token_hex(4)
    with ExitStack() as afterwards:

        def create(obj: dict[str, Any]) -> dict[str, Any]:
            made = cluster.create(obj)
            afterwards.callback(cluster.delete, {**made, "kind": obj["kind"]})
            return made

        account = create(_stranger(pod, token))["metadata"]["name"] if stranger else ""
        yield _started(cluster, create(pod_for(pod, image, token, account)), timeout)


def _stranger(pod: Mapping[str, Any], token: str) -> dict[str, Any]:
    metadata = {"name": f"egress-check-{token}", "namespace": pod["metadata"]["namespace"], "labels": {MANAGED_BY_LABEL: MANAGED_BY}}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {**metadata, "ownerReferences": [_owned_by(pod)]}}


def _owned_by(pod: Mapping[str, Any]) -> dict[str, Any]:
    metadata = pod["metadata"]
    return {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"], "controller": True}


def _started(cluster: Cluster, made: Mapping[str, Any], timeout: float) -> tuple[Source, dict[str, Any]]:
    namespace, name = made["metadata"]["namespace"], made["metadata"]["name"]
    deadline = time.monotonic() + timeout
    while True:
        pod = cluster.get("Pod", namespace, name) or {"status": {"phase": "deleted"}}
        status = pod["status"]
        states = {c["name"]: c for c in (*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ()))}
        running = "running" in (states.get(CONTAINER, {}).get("state") or {})
        if running and (PROXY not in states or states[PROXY].get("ready")):
            return Source(namespace, name, CONTAINER, has_proxy(pod)), pod
        if time.monotonic() > deadline or status.get("phase") in ("Failed", "deleted"):
            waiting = [f"{n}: {c['state']['waiting'].get('reason')}" for n, c in states.items() if "waiting" in (c.get("state") or {})]
            raise SourceError(
                f"The short-lived pod {namespace}/{name} did not start ({', '.join(waiting) or status.get('phase')}); it was removed.\n"
                "Name an image with sh and curl that the node can pull in image, or a container of the workload that has curl."
            )
        time.sleep(0.3)
