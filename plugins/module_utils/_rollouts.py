# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Waits for what only new pods have: a rollout that is through, or an injector that gives new pods what it shall.

It looks at the pods themselves, at what their redirection was set up with, and says which running pods still have something else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _bypass
from ansible_collections.meshops.istio_egress.plugins.module_utils._bypass import Injection, Rollout
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._control_plane import DEFAULT_REVISION, REVISION_LABEL
from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError
from ansible_collections.meshops.istio_egress.plugins.module_utils._observer import Observer
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Wait
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import has_ended, sidecars

PAUSE = 0.5
"""Seconds between two looks."""


class RolloutError(EgressError):
    """New pods did not come in time, or not as they shall be."""


class Onlooker(Observer):
    """Waits for rollouts and for the injector, and keeps what it saw for the module's result."""

    def __init__(self, cluster: Cluster, timeout: float, istio_namespace: str) -> None:
        super().__init__()
        self._cluster, self._timeout, self._istio_namespace = cluster, timeout, istio_namespace

    def follow(self, step: Rollout | Injection) -> float:
        """Waits for the step. Seconds that it took. Raises RolloutError."""
        return self._rollout(step) if isinstance(step, Rollout) else self._injection(step)

    def beside(self, follow: Callable[[Wait], float]) -> Callable[[Wait], float]:
        """What waits for the steps of a plan that concerns new pods and other things: those it leaves to `follow`."""
        return lambda step: self.follow(step) if isinstance(step, (Rollout, Injection)) else follow(step)

    # -- a workload -----------------------------------------------------------------------------------------------------------------

    def _rollout(self, step: Rollout) -> float:
        start = time.monotonic()
        kind, _slash, name = step.workload.partition("/")
        namespace, settings = step.namespaces[0], dict(step.settings)
        while True:
            workload = self._cluster.get(kind, namespace, name)
            if workload is None:
                raise RolloutError(f"{step.workload} in namespace {namespace} was deleted meanwhile.\nRun the task again for what is there now.")
            pods = self._cluster.list("Pod", namespace, labels=selector(workload))
            missing, never = unfinished(workload), by_hand(workload)
            own = {option: text if text is None else settings[option] for option, text in _bypass.of_template(workload).items()}
            late = [p for p in pods if not has_ended(p) and _bypass.differs(p, own)]
            self._report(pods, settings)
            self.verified = not missing and not late and self.proxies["looked_at"] > 0
            if not step.patient or not (missing or late):
                return round(time.monotonic() - start, 2)
            if never:
                self.warnings.append(f"{step.workload} in namespace {namespace} {never}.")
                return round(time.monotonic() - start, 2)
            if time.monotonic() - start + PAUSE > self._timeout:
                reason = why(workload, pods) or missing or "pods without the ranges"
                raise RolloutError(
                    f"{step.workload} in namespace {namespace} was not rolled out within {self._timeout:.0f} s: {reason}.\n"
                    "What was written stays, the pods of before go on. Mend it (kubectl describe pods), or take it back with state=absent.",
                    {"proxies": self.proxies, "verified": False},
                )
            time.sleep(PAUSE)

    # -- the mesh's default ---------------------------------------------------------------------------------------------------------

    def _injection(self, step: Injection) -> float:
        """Asks the API server to try the creation of a pod (dry run), until the injector gives it the settings."""
        start, settings = time.monotonic(), dict(step.settings)
        revision = {} if step.revision == DEFAULT_REVISION else {REVISION_LABEL: step.revision}
        trial = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "istio-egress-trial", "namespace": self._istio_namespace, "labels": {"sidecar.istio.io/inject": "true", **revision}},
            "spec": {"containers": [{"name": "trial", "image": "trial"}]},
        }  # fmt: skip
        while True:
            try:
                pod = self._cluster.create(trial, dry_run=True)
            except ClusterError as error:
                self.warnings.append(f"Whether the injector has it is not known, since no pod could be tried in {self._istio_namespace}: {error.message}.")
                break
            has = _bypass.of_pod(pod)
            if has is None:
                self.warnings.append(f"Whether the injector has it is not known: a pod tried in {self._istio_namespace} got no sidecar.")
                break
            if all(_bypass.same(has[option], settings[option]) for option in settings):
                self.verified = True
                break
            if time.monotonic() - start + PAUSE > self._timeout:
                raise RolloutError(
                    f"The injector still gives new pods {_bypass.said(has)} after {self._timeout:.0f} s.\n"
                    "What was written stays. Look at istiod's log: it reads the values by itself when they are what it expects.",
                    {"proxies": self.proxies, "verified": False},
                )
            time.sleep(PAUSE)
        try:
            pods = self._cluster.list("Pod")
            concerned = {str(proxy) for proxy in sidecars(pods) if proxy.revision in ("", step.revision)}
            self._report([p for p in pods if _name(p) in concerned], settings)
        except ClusterError as error:
            if error.status != 403:
                raise
            self.warnings.append("Which running pods have other ranges is not known, since the account may not list pods.")
        return round(time.monotonic() - start, 2)

    # -- inside ---------------------------------------------------------------------------------------------------------------------

    def _report(self, pods: Iterable[Mapping[str, Any]], settings: Mapping[str, str | None]) -> None:
        """Pods with a sidecar, those that are ending too: until then they send as they did."""
        there = [p for p in pods if (p.get("status") or {}).get("phase") not in ("Succeeded", "Failed") and _bypass.of_pod(p) is not None]
        pending = [{"pod": _name(p), "reason": reason} for p in there if (reason := _bypass.differs(p, settings))]
        self.proxies = {"total": len(there), "looked_at": len(there), "following": len(there) - len(pending), "pending": pending}


def selector(workload: Mapping[str, Any]) -> str:
    """The label selector of a workload's pods, as the API takes it."""
    chosen = workload["spec"]["selector"]
    parts = [f"{key}={value}" for key, value in (chosen.get("matchLabels") or {}).items()]
    for rule in chosen.get("matchExpressions") or ():
        key, values = rule["key"], ",".join(rule.get("values") or ())
        parts.append({"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": key, "DoesNotExist": f"!{key}"}[rule["operator"]])
    return ",".join(parts)


def unfinished(workload: Mapping[str, Any]) -> str:
    """What is missing until a workload's pods are all of its newest template and ready; empty when nothing is (kubectl rollout status)."""
    spec, status = workload["spec"], workload.get("status") or {}
    if status.get("observedGeneration", 0) < workload["metadata"]["generation"]:
        return "its controller has not seen the change yet"
    if workload["kind"] == "DaemonSet":
        wanted, new, ready = status.get("desiredNumberScheduled", 0), status.get("updatedNumberScheduled", 0), status.get("numberAvailable", 0)
        old = 0
    else:
        wanted, new, ready = spec.get("replicas", 1), status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
        old = status.get("replicas", 0) - new
    if workload["kind"] == "StatefulSet" and wanted and status.get("currentRevision") == status.get("updateRevision"):
        new, old = status.get("replicas", 0), 0  # a finished StatefulSet counts no updated replicas in some releases
    if new < wanted:
        return f"{new} of {wanted} new pods are there"
    if old > 0:
        return f"the new pods are not all ready, {old} of before go on"
    return f"{ready} of {wanted} pods are ready" if ready < wanted else ""


def by_hand(workload: Mapping[str, Any]) -> str:
    """Why new pods do not come by themselves; empty when they do."""
    strategy = workload["spec"].get("updateStrategy") or {}
    if workload["spec"].get("paused"):
        return "is paused, so that no new pods come: resume it with kubectl rollout resume"
    if strategy.get("type") == "OnDelete":
        return "has updateStrategy OnDelete, so that a pod gets the ranges when somebody deletes it"
    partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
    return f"has partition {partition}, so that pods below that number keep what they have" if partition else ""


def why(workload: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> str:
    """What the workload or the containers of its pods say about why they are not ready."""
    reasons = [c.get("message") or c["reason"] for c in (workload.get("status") or {}).get("conditions") or () if c["type"] == "ReplicaFailure"]
    for pod in pods:
        status = pod.get("status") or {}
        reasons += [c["message"] for c in status.get("conditions") or () if c["type"] == "PodScheduled" and c["status"] == "False" and c.get("message")]
        for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
                reasons.append(f"container {container['name']} of {pod['metadata']['name']}: {waiting['reason']}")
    return "; ".join(reason.rstrip(".") for reason in reasons[:2])


def _name(pod: Mapping[str, Any]) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
