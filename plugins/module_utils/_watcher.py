# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Reads what proxies have now, and waits until they follow.

One place for every wait, with one clock. It reads proxies through `_cluster` and understands them through `_envoy`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _envoy, _sidecars
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError
from ansible_collections.meshops.istio_egress.plugins.module_utils._observer import Observer
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Wait
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import Proxy, ask, ask_for, has_ended, routers, sidecars
from ansible_collections.meshops.istio_egress.plugins.module_utils._text import few

PARALLEL = 8
SAMPLE = 100
"""How many sidecars are read at the most; of more, every n-th is, and the result says how many were looked at."""

FIRST_PAUSE, LAST_PAUSE = 0.2, 2.0
"""Seconds between two looks at a proxy that does not follow yet: the first pause, and what it grows to."""

Test = Callable[[Proxy, _envoy.Snapshot], str]
"""Why a proxy does not follow, in words; empty when it does."""


class FollowError(EgressError):
    """Proxies did not follow in time."""


class Watcher(Observer):
    """Waits for sidecars, and keeps what it saw for the module's result."""

    def __init__(self, cluster: Cluster, timeout: float, istio_namespace: str = "istio-system") -> None:
        super().__init__()
        self._cluster, self._timeout, self._istio_namespace = cluster, timeout, istio_namespace
        self._sidecar_resources: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self._proxies: dict[tuple[tuple[str, ...], bool], list[Proxy]] = {}

    def follow(self, wait: Wait) -> float:
        """Waits until the sidecars concerned have what `wait` says. Seconds that it took.

        Not waited for, but reported with the reason: sidecars that will never follow, because another Sidecar resource or another revision decides for
        them. A host that a Sidecar resource does not import is not waited for in its pods, and a warning says so.
        """
        there = self._selected(wait)
        if wait.gateways and not any(p.ready for p in there):
            raise FollowError(
                f"No pod of the egress gateway in namespace {', '.join(wait.namespaces)} is ready, so nobody was sent there.\n"
                "Bring the gateway up (its Deployment, or the role egress_gateway_deploy), then run the task again."
            )
        excused = {p: reason for p in there if (reason := self._overridden(p, wait))} if wait.mode else {}
        expected = {p: self._imported(p, wait) for p in there}

        def test(proxy: Proxy, snapshot: _envoy.Snapshot) -> str:
            if wait.mode and snapshot.mode != wait.mode:
                return f"has mode {snapshot.mode or ' and '.join(sorted(snapshot.modes))}"
            missing = sorted(d for d in expected[proxy] if not snapshot.serves(d))
            left = sorted(d[:2] for d in wait.absent if any(c.endswith(f"|{d[0]}") for c in snapshot.routes.get(d[:2], ())))  # not those to a gateway
            cold = sorted({*(wait.clusters - snapshot.clusters), *(snapshot.warming & {d[2] for d in wait.routes})})
            cold += sorted(name for name, who in wait.guards if not snapshot.guards(name, who))
            stray = sorted(d[:2] for d in wait.routes if not _goes(snapshot, d, wait.gateways))
            left += sorted(d[:2] for d in wait.not_routes if d[2] in snapshot.routes.get(d[:2], ()))
            return "; ".join(
                f"{word} {_destinations(what)}" for word, what in (("does not have", [*missing, *cold]), ("does not route", stray), ("still has", left)) if what
            )

        seconds = self.wait(there, test, excused, bool(wait.clusters or wait.gateways))
        if wait.gateways and self.proxies["looked_at"] and not self.proxies["following"]:  # all of them went meanwhile; perhaps others came
            del self._proxies[wait.namespaces, True]
            return round(seconds + self.follow(wait), 2)
        if wait.looked_up:
            self._look_up(self._following(wait), wait.looked_up)
        return seconds

    def shadow_denied(self, namespace: str, selector: tuple[tuple[str, str], ...]) -> int:
        """How often the ready gateway proxies with these labels let through what an AuthorizationPolicy in dry run would have refused, since they started.

        Envoy counts per filter, not per policy (``rbac...shadow_denied``; Istio puts ``istio_dry_run_deny_`` before the counters of denials).
        """
        proxies = [p for p in self.concerned((namespace,), gateways=True) if p.ready and all(p.labels.get(k) == v for k, v in selector)]
        return sum(self._total(p, "istio_dry_run_deny_.shadow_denied") for p in proxies)

    def draining(self, wait: Wait) -> list[Proxy]:
        """The sidecars that follow `wait` but still serve connections of a former configuration.

        Envoy keeps them for its drain time; an open connection to a host that is no longer allowed lives as long.
        """
        return [p for p in self._following(wait) if self._chains_draining(p)]

    def drained(self, wait: Wait) -> float:
        """Waits until no sidecar is `draining` any more, or its drain time has passed. Seconds that it took.

        Other tasks may have changed listeners since, so the gauge alone could stay above 0 for good; what this task ended is gone after the drain time.
        """
        start = time.monotonic()
        proxies = self.draining(wait)
        limit = max((self._drain_time(p) for p in proxies), default=0.0) + 1
        while proxies and time.monotonic() - start < limit:
            if time.monotonic() - start > self._timeout:
                raise FollowError(
                    f"{len(proxies)} sidecars still drain connections of their former configuration after {self._timeout:.0f} s (the first is {proxies[0]}).\n"
                    f"The mode itself is in force for new connections. Raise wait_timeout above the mesh's drain time ({limit - 1:.0f} s).",
                    {"proxies": self.proxies, "verified": self.verified},
                )
            time.sleep(1)
            proxies = [p for p in proxies if self._chains_draining(p)]
        return round(time.monotonic() - start, 2)

    def wait(self, proxies: list[Proxy], test: Test, excused: Mapping[Proxy, str], clusters: bool = False) -> float:
        """Reads `proxies` until `test` has nothing to say about any of them; those `excused` are reported with their reason, not waited for.

        Returns the seconds it took. Raises FollowError when time is up. Sets `proxies` and `verified` for the module's result.
        """
        start, pause = time.monotonic(), FIRST_PAUSE
        waiting = _sample([p for p in proxies if p not in excused and p.ready])
        looked_at = len(waiting)
        reasons = {**excused, **{p: "the pod is not ready" for p in proxies if not p.ready and p not in excused}}
        gone: set[Proxy] = set()
        while waiting:
            seen = self._look(waiting, test, clusters)
            if seen is None:
                self._report(proxies, dict.fromkeys(proxies, "not looked at: no right to create pods/portforward"), 0, verified=False)
                return 0.0
            gone |= {p for p, reason in seen.items() if reason is None}
            self._proxies = {which: [p for p in them if p not in gone] for which, them in self._proxies.items()}
            late = {p: reason for p, reason in seen.items() if reason}
            waiting = list(late)
            if not waiting:
                break
            if time.monotonic() - start + pause > self._timeout:
                self._report([p for p in proxies if p not in gone], {**reasons, **late}, looked_at, verified=False)
                examples = "; ".join(f"{p}: {r}" for p, r in list(late.items())[:3])
                raise FollowError(
                    f"{len(late)} of {looked_at} sidecars did not follow within {self._timeout:.0f} s ({examples}).\n"
                    "What was written stays. Look at istiod's log and istioctl proxy-status, then run the task again, or raise wait_timeout.",
                    {"proxies": self.proxies, "verified": False},
                )
            time.sleep(pause)
            pause = min(pause * 1.5, LAST_PAUSE)
        self._report([p for p in proxies if p not in gone], reasons, looked_at, verified=True)
        return round(time.monotonic() - start, 2)

    def read(self, proxy: Proxy) -> _envoy.Snapshot:
        """The proxy's configuration now, but for clusters. Raises ClusterError where it cannot be read."""
        return _envoy.read({"configs": chain(*self._configs(proxy, *_envoy.RESOURCES))})

    def concerned(self, namespaces: tuple[str, ...], gateways: bool = False) -> list[Proxy]:
        """The sidecars (or gateway proxies) of the namespaces (none: of the mesh); one list of pods per task."""
        if (namespaces, gateways) not in self._proxies:
            try:
                pods = [p for n in namespaces for p in self._cluster.list("Pod", n)] if namespaces else self._cluster.list("Pod")
            except ClusterError as error:
                if error.status != 403:
                    raise
                self.warnings.append("The sidecars could not be looked at, since the account may not list pods; whether they follow is not known.")
                pods = []
                self.proxies["looked_at"] = None
            self._proxies[namespaces, gateways] = (routers if gateways else sidecars)(pods)
        return self._proxies[namespaces, gateways]

    def sidecar_resources(self, namespaces: tuple[str, ...]) -> list[dict[str, Any]]:
        """The Sidecar resources of the cluster, or, where only those may be read, of the namespaces; read once per task."""
        if namespaces not in self._sidecar_resources:
            self._sidecar_resources[namespaces] = self._cluster.list_visible("Sidecar", *namespaces)
        return self._sidecar_resources[namespaces]

    # -- inside ---------------------------------------------------------------------------------------------------------------------

    def _chains_draining(self, proxy: Proxy) -> int:
        """How many listeners and filter chains of the proxy still serve old connections (Envoy's gauges)."""
        return self._total(proxy, "listener_manager.total_(listeners|filter_chains)_draining")

    def _drain_time(self, proxy: Proxy) -> float:
        """Seconds that the proxy was started with (45 unless the mesh says otherwise)."""
        try:
            [info] = ask_for(self._cluster, proxy.namespace, proxy.pod, "server_info")
        except ClusterError:
            if self._has_ended(proxy):
                return 0.0
            raise
        options = info.get("command_line_options") or {}
        return float(str(options.get("drain_time", "45s")).rstrip("s"))

    def _total(self, proxy: Proxy, names: str) -> int:
        """The sum of the proxy's statistics with such names; 0 when its pod has ended."""
        try:
            [text] = ask(self._cluster, proxy.namespace, proxy.pod, f"stats?filter={names}")
        except ClusterError:
            if self._has_ended(proxy):
                return 0
            raise
        return sum(int(line.rpartition(":")[2]) for line in text.splitlines() if ":" in line)

    def _has_ended(self, proxy: Proxy) -> bool:
        """Whether the pod of a proxy that could not be read has ended since it was listed."""
        try:
            return all(has_ended(pod) for pod in self._cluster.list("Pod", proxy.namespace, name=proxy.pod))
        except ClusterError:
            return False

    def _selected(self, wait: Wait) -> list[Proxy]:
        return [p for p in self.concerned(wait.namespaces, wait.gateways) if all(p.labels.get(k) == v for k, v in wait.selector)]

    def _following(self, wait: Wait) -> list[Proxy]:
        """Of those that `wait` concerns, the ones that were seen to follow."""
        late = {entry["pod"] for entry in self.proxies["pending"]}
        return _sample([p for p in self._selected(wait) if str(p) not in late])

    def _look_up(self, proxies: list[Proxy], clusters: frozenset[str]) -> None:
        """Notes which of the clusters have no address in these proxies, which then answer 503."""

        def one(proxy: Proxy) -> set[str]:
            try:
                return _envoy.without_address(*self._configs(proxy, _envoy.ENDPOINTS)) & clusters
            except ClusterError:  # it has gone since it was seen to follow
                return set()

        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            found = list(pool.map(one, proxies))
        hosts = {cluster.rpartition("|")[2] for names in found for cluster in names} - self.unresolved
        if hosts:
            them = [str(proxy) for proxy, names in zip(proxies, found, strict=True) if any(name.rpartition("|")[2] in hosts for name in names)]
            self.warnings.append(
                f"{few(sorted(hosts))} {'has' if len(hosts) == 1 else 'have'} no address in {len(them)} of {len(proxies)} proxies ({few(them)}): DNS does not "
                "know the name, or did not answer. Requests fail there (503, or a closed connection) until Envoy, which asks again after a minute, gets an "
                "address. Correct the name, or look at the cluster's DNS."
            )
            self.unresolved |= hosts

    def _overridden(self, proxy: Proxy, wait: Wait) -> str:
        """Why a sidecar does not take its mode from what `wait` waits for; empty when it does."""
        resource = _sidecars.effective(self.sidecar_resources(wait.namespaces), proxy.namespace, proxy.labels, self._istio_namespace)
        name = f"{resource['metadata']['namespace']}/{resource['metadata']['name']}" if resource else ""
        mode = _sidecars.mode_of(resource)
        if name and name != wait.sidecar and mode != wait.mode and (mode or wait.sidecar):
            return f"Sidecar {name} sets {mode}" if mode else f"Sidecar {name} decides for it and leaves the mode to the mesh"
        if not mode and wait.revision and proxy.revision and proxy.revision != wait.revision:
            return f"it belongs to revision {proxy.revision}"
        return ""

    def _imported(self, proxy: Proxy, wait: Wait) -> set[tuple[str, int]]:
        resource = _sidecars.effective(self.sidecar_resources(wait.namespaces), proxy.namespace, proxy.labels, self._istio_namespace)
        if resource is None:
            return {d[:2] for d in wait.present}
        imported = {d[:2] for d in wait.present if _sidecars.imports(resource, proxy.namespace, d[0], wait.declared_in)}
        hidden = sorted({d[0] for d in wait.present if d[:2] not in imported})
        if hidden:
            name = f"{resource['metadata']['namespace']}/{resource['metadata']['name']}"
            self.warnings.append(f"Sidecar {name} does not import {few(hidden)} into the pods that it selects; add them to its egress.hosts.")
        return imported

    def _look(self, proxies: list[Proxy], test: Test, clusters: bool) -> dict[Proxy, str | None] | None:
        """Why each proxy does not follow: empty when it does, None when it is gone. None altogether without the right to look."""
        resources = (*_envoy.RESOURCES, *([_envoy.CLUSTERS] if clusters else ()))

        def one(proxy: Proxy) -> str | None:
            try:
                *configs, warming = self._configs(proxy, *resources, _envoy.WARMING)
                return test(proxy, _envoy.read({"configs": chain(*configs), "warming": warming}))
            except ClusterError as error:
                if error.status == 403:
                    raise
                return None if self._has_ended(proxy) else f"cannot be read: {error.message}"

        try:
            with ThreadPoolExecutor(max_workers=min(PARALLEL, len(proxies))) as pool:
                return dict(zip(proxies, pool.map(one, proxies), strict=True))
        except ClusterError as error:
            if "create pods/portforward" not in " ".join(self.warnings):
                self.warnings.append(
                    f'The sidecars could not be looked at, since the account may not create pods/portforward in namespace "{error.namespace}"; '
                    "whether they follow is not known."
                )
            return None

    def _configs(self, proxy: Proxy, *resources: str) -> list[list[Any]]:
        """Parts of the proxy's ``config_dump``, read one after the other. Raises ClusterError."""
        answers = ask_for(self._cluster, proxy.namespace, proxy.pod, *(f"config_dump?resource={resource}" for resource in resources))
        return [answer.get("configs") or [] for answer in answers]

    def _report(self, proxies: list[Proxy], reasons: Mapping[Proxy, str], looked_at: int, verified: bool) -> None:
        pending = [{"pod": str(p), "reason": reasons[p]} for p in proxies if p in reasons]
        self.proxies = {"total": len(proxies), "looked_at": looked_at, "following": len(proxies) - len(pending), "pending": pending}
        self.verified = verified and looked_at > 0


def _sample(proxies: list[Proxy]) -> list[Proxy]:
    if len(proxies) <= SAMPLE:
        return proxies
    step = len(proxies) / SAMPLE
    return [proxies[int(i * step)] for i in range(SAMPLE)]


def _goes(snapshot: _envoy.Snapshot, destination: tuple[str, int, str], among: bool) -> bool:
    """Whether (host, port) goes to the cluster. A client sends a host one way; a gateway may have others with it (`among`)."""
    clusters = snapshot.routes.get(destination[:2], frozenset())
    return destination[2] in clusters if among else clusters == {destination[2]}


def _destinations(items: Iterable[Any]) -> str:
    return few([f"{i[0]}:{i[1]}" if isinstance(i, tuple) else str(i) for i in items])
