# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Fetches what an explanation needs: objects, pods, pieces of proxies' configuration, and the addresses of a name.

It reads through `_cluster`, several things at a time; what they mean is `_explain`'s business.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from ansible_collections.meshops.istio_egress.plugins.module_utils import _explain, _path
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._injected import INIT, PROXY, containers, has_proxy
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import ask_for, routers

CLUSTERS, ENDPOINTS = "dynamic_active_clusters", "dynamic_endpoint_configs"

RESOLVE = (
    'h=$1; if command -v getent >/dev/null; then getent ahostsv4 "$h" || getent ahosts "$h"; '
    "elif command -v python3 >/dev/null; then "
    "python3 -c 'import socket,sys; [print(i[4][0]) for i in socket.getaddrinfo(sys.argv[1], None)]' \"$h\"; "
    'elif command -v nslookup >/dev/null; then nslookup "$h" | sed -n "/^Name/,\\$s/^Address[^:]*: *//p"; else exit 99; fi'
)
"""Looks a name up with what a container has, as its programs would; exit 99 where it has nothing."""


SLOW_LOOKUP, LOOKUPS = 3.0, 3
"""A lookup without a result that took longer (seconds) may have met a DNS that did not answer, for which programs have the same exit code; it is made
again. A name that does not exist is told at once."""


class Inquiry:
    """Questions to one cluster; each is asked once. Keeps what is worth a warning in `warnings`."""

    def __init__(self, cluster: Cluster, root_namespace: str) -> None:
        self._cluster, self._root = cluster, root_namespace
        self._proxies: dict[tuple[str, str], _path.Configuration] = {}
        self._pods: dict[str, list[dict[str, Any]]] = {}
        self._ahead = ThreadPoolExecutor(1)
        self.warnings: list[str] = []

    def world(self, namespace: str) -> _explain.World:
        """The objects of the cluster, or of `namespace` where only those may be read."""

        def read(kind: str) -> list[dict[str, Any]]:
            try:
                return self._cluster.list_visible(kind, namespace)
            except ClusterError as error:
                if error.status not in (403, 404):
                    raise
                self.warnings.append(f"{kind} objects could not be read ({error.status}); names and reasons that rest on them are missing.")
                return []

        with ThreadPoolExecutor(len(_explain.KINDS)) as pool:
            return _explain.World(dict(zip(_explain.KINDS, pool.map(read, _explain.KINDS), strict=True)), self._root)

    def pods(self, namespace: str) -> list[dict[str, Any]]:
        if namespace not in self._pods:
            self._pods[namespace] = self._cluster.list("Pod", namespace)
        return self._pods[namespace]

    def configuration(self, pod: Mapping[str, Any]) -> _path.Configuration:
        """The configuration of the pod's proxy, read piece by piece as it is needed: with a cluster its endpoints, which are wanted next."""
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        begun: dict[tuple[str, str], Future[list[Mapping[str, Any]]]] = {}

        def ask(resource: str, names: str) -> list[Mapping[str, Any]]:
            if resource == CLUSTERS:
                begun[ENDPOINTS, names] = self._ahead.submit(read, ENDPOINTS, names)
            return begun.pop((resource, names)).result() if (resource, names) in begun else read(resource, names)

        def read(resource: str, names: str) -> list[Mapping[str, Any]]:
            eds = "include_eds&" if resource == ENDPOINTS else ""
            [answer] = ask_for(self._cluster, namespace, name, f"config_dump?{eds}resource={resource}&name_regex={quote(names)}")
            return answer.get("configs") or []

        if (namespace, name) not in self._proxies:
            self._proxies[namespace, name] = _path.Configuration(ask)
        return self._proxies[namespace, name]

    def neighbour(self, address: str, namespace: str) -> _explain.Neighbour | None:
        """The pod of the cluster that has the address."""
        for pod in self.pods(namespace) if namespace else ():
            if (pod.get("status") or {}).get("podIP") == address and pod["status"].get("phase") == "Running" and not pod["spec"].get("hostNetwork"):
                return _explain.Neighbour(pod, self.configuration(pod) if routers([pod]) else None)
        return None

    def serves(self, namespace: str, service: str) -> bool:
        """Whether a gateway proxy behind a Service is ready."""
        found = self._cluster.get("Service", namespace, service)
        selector = ((found or {}).get("spec") or {}).get("selector") or {}
        return bool(selector) and any(
            proxy.ready and all(proxy.labels.get(key) == value for key, value in selector.items()) for proxy in routers(self.pods(namespace))
        )

    def gateway_addresses(self) -> dict[str, str]:
        """The gateway pods (namespace/pod) that were met so far, by address."""
        found = {}
        for pods in self._pods.values():
            for pod in pods:
                if (pod.get("status") or {}).get("podIP") and routers([pod]):
                    found[pod["status"]["podIP"]] = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        return found

    def resolve(self, pod: Mapping[str, Any], container: str, host: str) -> list[str] | None:
        """The addresses of a name as the container has it, IPv4 first; empty when it has none, None when nothing there can tell.

        Where the container has no program for it the sidecar's does: it has the same resolv.conf and hosts, but not the mesh's own DNS
        (DNS capture), for which None is returned then.
        """
        if _path.is_address(host):
            return [host]
        places = [container] if container not in _inits(pod) else []
        if has_proxy(pod) and not _captures_dns(pod):
            places.append(PROXY)
        for place in places:
            for _attempt in range(LOOKUPS):
                started = time.monotonic()
                try:
                    code, out, _err = self._cluster.exec(pod["metadata"]["namespace"], pod["metadata"]["name"], place, ["sh", "-c", RESOLVE, "sh", host])
                except ClusterError as error:
                    if error.reason != "NotStarted":
                        raise
                    break
                found = [word for line in out.splitlines() for word in line.split()[:1] if _path.is_address(word)]
                if found:
                    return sorted(dict.fromkeys(found), key=lambda a: ipaddress.ip_address(a).version)
                if code in (99, 127):
                    break
                if time.monotonic() - started < SLOW_LOOKUP:
                    return []
        return None


def _inits(pod: Mapping[str, Any]) -> list[str]:
    return [c["name"] for c in pod["spec"].get("initContainers") or ()]


def _captures_dns(pod: Mapping[str, Any]) -> bool:
    """Whether DNS questions of the pod go to the proxy: seen in what its redirection was told."""
    init = next((c for c in pod["spec"].get("initContainers") or () if c["name"] == INIT), {})
    env = {e["name"]: e.get("value") for c in containers(pod) if c["name"] in (PROXY, INIT) for e in c.get("env") or ()}
    return env.get("ISTIO_META_DNS_CAPTURE") == "true" or any(a.startswith("--redirect-dns") for a in init.get("args") or ())
