# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Why a request of a workload gets out or not: the way through its pod and proxies, and the object that decides each hop.

Pure: the verdict comes from the proxies' own configuration (`_path`); the objects of the cluster only give names, reasons and the fix.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _path, _sidecars
from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError
from ansible_collections.meshops.istio_egress.plugins.module_utils._injected import INIT, PROXY, VALIDATION, containers, has_proxy
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import ports_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import policy_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._path import Arrival, Call, Configuration, Passage
from ansible_collections.meshops.istio_egress.plugins.module_utils._source import Source, choose_source

KINDS = ("ServiceEntry", "VirtualService", "DestinationRule", "Gateway", "Sidecar", "AuthorizationPolicy")
"""The objects that names and reasons come from."""
PLAIN_PORTS = {80, 8080}
"""Ports of far ends that are taken for plain HTTP: what they speak stands in no configuration, and TLS to them is a usual mistake."""
MOST_PROXIES = 4
"""Proxies that a request is followed through: more is a loop."""


class ExplainError(EgressError):
    """A question that cannot be answered."""


@dataclass(frozen=True)
class World:
    """The objects of the cluster that matter to egress, by kind, and how the mesh is set."""

    objects: Mapping[str, list[Mapping[str, Any]]]
    root_namespace: str = "istio-system"

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """The objects of a kind, the oldest first: in every tie, istiod takes the oldest."""
        return sorted(self.objects.get(kind) or (), key=lambda o: (o["metadata"].get("creationTimestamp") or "", o["metadata"]["name"]))

    def sidecar_of(self, pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
        metadata = pod["metadata"]
        return _sidecars.effective(self.of("Sidecar"), metadata["namespace"], metadata.get("labels") or {}, self.root_namespace)


@dataclass(frozen=True)
class Neighbour:
    """The pod behind an address of the cluster; `proxy` is its configuration where it is a gateway."""

    pod: Mapping[str, Any]
    proxy: Configuration | None


@dataclass(frozen=True)
class Hop:
    """One step of the way. `object` is what decided it; `lost` are those that it won against, or that were passed over, each with the reason."""

    hop: str
    at: str
    what: str
    object: str = ""
    lost: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        lost = [{"object": name, "why": why} for name, why in self.lost]
        return {"hop": self.hop, "at": self.at, "what": self.what, "object": self.object or None, "lost": lost}


@dataclass(frozen=True)
class Explanation:
    """`by` says who stops a blocked request: pod, dns, mesh, gateway or gateway policy. `via` is direct, or the gateway's namespace/pod."""

    verdict: str
    reason: str
    path: tuple[Hop, ...]
    fix: str = ""
    by: str = ""
    via: str = "direct"
    address: str = ""
    addresses: tuple[str, ...] = ()
    """All addresses of the far end that the last proxy chooses from; `address` is the first."""
    cluster: str = ""
    notes: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.verdict == "allowed"

    @property
    def passes(self) -> bool:
        """Let out as an undeclared host."""
        return self.cluster in (_path.PASSTHROUGH, _path.DYNAMIC_ANY)

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "by": self.by or None,
            "via": self.via,
            "address": self.address or None,
            "reason": self.reason,
            "fix": self.fix,
            "path": [hop.as_dict() for hop in self.path],
            "notes": list(self.notes),
        }


def parse_call(host: str, port: int, protocol: str | None, path: str, address: str | None) -> Call:
    """The request of a module's options. Raises ExplainError."""
    host = host.strip().lower().removesuffix(".")
    if not re.fullmatch(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|[0-9a-f.]*:[0-9a-f:.]+", host):
        raise ExplainError(
            f'"{" ".join(host.split())}" is not a host name or IP address.\n'
            "Write the host alone, without scheme, port or path; the API server is api_host here."
        )
    if not 1 <= port <= 65535:
        raise ExplainError(f"port is {port}.\nWrite a number from 1 to 65535.")
    if not path.startswith("/"):
        raise ExplainError(f'path is "{" ".join(path.split())}".\nWrite it with a slash in front, such as /headers.')
    if address and not _path.is_address(address):
        raise ExplainError(f'address is "{" ".join(address.split())}", which is not an IP address.\nWrite one such as 203.0.113.10, or leave it out.')
    return Call(protocol or {80: _path.HTTP, 443: _path.TLS}.get(port, _path.TCP), host, port, path)


def call_of(url: str, scheme: str, host: str, port: int) -> Call:
    """What a client sends for a URL, on a connection of that scheme (http, https or tcp) to that host and port, which a proxy's may be."""
    protocol = {"http": _path.HTTP, "https": _path.TLS, "tcp": _path.TCP}[scheme]
    return Call(protocol, host.lower(), port, "/" + url.partition("://")[2].partition("/")[2])


def choose_pod(pods: list[Mapping[str, Any]], namespace: str, workload: str, container: str | None) -> tuple[Source, Mapping[str, Any]]:
    """The pod that a workload's requests come from, as the check has it, and the container, which may be an init container."""
    source = choose_source(pods, namespace, workload)
    pod = next(p for p in pods if p["metadata"]["name"] == source.pod)
    if container and container not in containers_of(pod):
        raise ExplainError(f'Pod {namespace}/{source.pod} has no container "{container}".\nIt has {", ".join(containers_of(pod))}.')
    return replace(source, container=container or source.container), pod


def explain(
    call: Call,
    addresses: Iterable[str] | None,
    pod: Mapping[str, Any],
    container: str,
    sidecar: Configuration | None,
    neighbour: Callable[[str, str], Neighbour | None],
    world: World,
) -> Explanation:
    """What becomes of the request.

    `addresses` are those that the name has in the pod: empty when it has none, None when that could not be found out. `neighbour` gives the pod of
    (address, namespace).
    """
    walker = _Walker(call, pod, container, sidecar, neighbour, world)
    if addresses is None:
        return walker.walk(None)
    addresses = list(addresses)
    if not addresses:
        return walker.no_name()
    answers = {address: walker.walk(address) for address in addresses}
    first = answers[addresses[0]]
    other = next(
        (a for a, e in answers.items() if (e.verdict, e.via, e.reason.replace(a, "")) != (first.verdict, first.via, first.reason.replace(addresses[0], ""))),
        None,
    )
    if other is None:
        return first
    return replace(first, notes=(*first.notes, f"{call.host} has {len(addresses)} addresses, and not all go the same way: {other}: {answers[other].reason}"))


def picture(call: Call, explanation: Explanation) -> list[str]:
    """The way as lines of text for a terminal."""
    end = "==> allowed" if explanation.allowed else "=X= blocked"
    lines = [f"{call.protocol}://{call.host}:{call.port}"]
    width, at = max((len(h.hop) for h in explanation.path), default=0), ""
    for hop in explanation.path:
        if hop.at != at and hop.hop != "host":
            lines.append(f" |  {hop.at}")
        at = hop.at
        lines.append(f" |    {hop.hop.ljust(width)}  {hop.what}" + (f"  [{hop.object}]" if hop.object else ""))
        lines += [f" |    {' ' * width}  passed over: {name}, {why}" for name, why in hop.lost]
    return [*lines, f" {end}: {explanation.reason}", *([f"     fix: {explanation.fix}"] if explanation.fix else [])]


# -- the pod ------------------------------------------------------------------------------------------------------------------------


def containers_of(pod: Mapping[str, Any]) -> list[str]:
    """The application's containers, those that run before the others last."""
    return [c["name"] for c in containers(pod) if c["name"] not in (PROXY, INIT, VALIDATION)]


def around(pod: Mapping[str, Any], container: str, address: str | None, port: int) -> tuple[str, str]:
    """(why a connection of the container goes around the sidecar, why it cannot go anywhere); both empty when the sidecar gets it.

    Redirection is read from the arguments of the pod's own init container (istio/istio tools/istio-iptables), or, where a CNI plugin sets it up,
    from the annotations that the plugin reads.
    """
    spec, name = pod["spec"], f"Pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"
    if not has_proxy(pod):
        if spec.get("hostNetwork"):
            return f"{name} uses the node's network (hostNetwork), and has no sidecar", ""
        label = (pod["metadata"].get("labels") or {}).get("sidecar.istio.io/inject")
        return f"{name} has no sidecar" + (f" (label sidecar.istio.io/inject: {label})" if label == "false" else ""), ""
    order = [c["name"] for c in spec.get("initContainers") or ()]
    if container in order:
        if INIT in order and order.index(container) < order.index(INIT):
            return f"init container {container} runs before {INIT}, so nothing redirects it yet", ""
        if PROXY not in order or order.index(container) < order.index(PROXY):
            return "", f"init container {container} is redirected to the sidecar, which does not run before the init containers are done"
    own = next((c for c in containers(pod) if c["name"] == container), {})
    user = (own.get("securityContext") or {}).get("runAsUser", (spec.get("securityContext") or {}).get("runAsUser"))
    if user == 1337:
        return f"container {container} runs as user 1337, the sidecar's own, which is not redirected", ""
    rules = redirection(pod)
    if rules.get("mode") == "NONE":
        return "the pod's redirection is switched off (interceptionMode NONE)", ""
    if str(port) in rules["exclude_ports"]:
        return f"port {port} goes around the sidecar (excludeOutboundPorts)", ""
    if address is None:
        return "", ""
    if (network := _first(rules["exclude"], address)) is not None:
        return f"{address} goes around the sidecar (excludeOutboundIPRanges {network})", ""
    if str(port) in rules["include_ports"] or "*" in rules["include"]:
        return "", ""
    if _first(rules["include"], address) is None:
        return f"{address} goes around the sidecar: not in includeOutboundIPRanges {','.join(rules['include']) or '(empty)'}", ""
    return "", ""


def redirection(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Which connections of a pod go to its sidecar: mode, and ranges and ports that are included and excluded."""
    init = next((c for c in pod["spec"].get("initContainers") or () if c["name"] == INIT), None)
    if init is None:
        notes = pod["metadata"].get("annotations") or {}
        prefix = "traffic.sidecar.istio.io/"
        return {
            "mode": notes.get("sidecar.istio.io/interceptionMode", ""),
            "include": _items(notes.get(f"{prefix}includeOutboundIPRanges", "*")),
            "exclude": _items(notes.get(f"{prefix}excludeOutboundIPRanges", "")),
            "include_ports": _items(notes.get(f"{prefix}includeOutboundPorts", "")),
            "exclude_ports": _items(notes.get(f"{prefix}excludeOutboundPorts", "")),
        }
    arguments = [*(init.get("command") or ()), *(init.get("args") or ())]
    given = {a: b for a, b in itertools.pairwise(arguments) if a.startswith("-")}
    return {
        "mode": given.get("-m", ""),
        "include": _items(given.get("-i", "*")),
        "exclude": _items(given.get("-x", "")),
        "include_ports": _items(given.get("-q", "")),
        "exclude_ports": _items(given.get("-o", "")),
    }


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _first(networks: Iterable[str], address: str) -> str | None:
    return next((n for n in networks if _path.within(address, n)), None)


def identity(pod: Mapping[str, Any]) -> str:
    """The SPIFFE identity of a pod's proxy."""
    spec, domain = pod["spec"], "cluster.local"
    for container in containers(pod):
        if container["name"] == PROXY:
            domain = next((e["value"] for e in container.get("env") or () if e["name"] == "TRUST_DOMAIN" and e.get("value")), domain)
    return f"spiffe://{domain}/ns/{pod['metadata']['namespace']}/sa/{spec.get('serviceAccountName') or 'default'}"


# -- the way ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Walker:
    call: Call
    pod: Mapping[str, Any]
    container: str
    sidecar: Configuration | None
    neighbour: Callable[[str, str], Neighbour | None]
    world: World

    @property
    def namespace(self) -> str:
        return self.pod["metadata"]["namespace"]

    @property
    def name(self) -> str:
        return name_of(self.pod)

    def no_name(self) -> Explanation:
        hop = Hop("pod", self.name, f"{self.call.host} has no address in DNS")
        reason = f"{self.call.host} has no address in DNS, as {self.name} asks for it, so the client sends nothing."
        return Explanation("blocked", reason, (hop,), "Correct the host name, or see that the cluster's DNS knows it; no rule of the mesh is at fault.", "dns")

    def walk(self, address: str | None) -> Explanation:
        call = self.call
        why, dead = around(self.pod, self.container, address, call.port)
        if why:
            hop = Hop("pod", self.name, f"around the sidecar: {why}")
            end = Hop("host", call.host, f"{address or 'the address dialled'}:{call.port}, not seen by the mesh")
            fix = "To have it under the mesh's rules, " + _way_under_rules(why)
            return Explanation("allowed", f"{why[0].upper()}{why[1:]}: no rule of the mesh applies.", (hop, end), fix, address=address or "")
        if dead:
            fix = (
                "Give the sidecar a native one (restartPolicy Always, ENABLE_NATIVE_SIDECARS), or exclude the port with istio_egress_bypass for this workload."
            )
            return Explanation("blocked", f"{dead[0].upper()}{dead[1:]}.", (Hop("pod", self.name, dead),), fix, "pod")
        if self.sidecar is None:
            raise ExplainError(f"The sidecar of {self.name} could not be read.\nGive the account the right to create pods/portforward in {self.namespace}.")
        hops = [Hop("pod", self.name, f"container {self.container}, redirected to the sidecar")]
        arrival = Arrival(call, address, call.port, peer=(self.pod.get("status") or {}).get("podIP") or "")
        passage = _path.through(self.sidecar, arrival, True, identity(self.pod))
        hops += _SidecarWords(self, passage).hops(address)
        notes = list(passage.notes)
        if passage.needs_address and address is None:
            notes.append(f"the address of {call.host} is not known here, and another listener may decide for it; give it with the option address")
        notes += [f"{weight} of the requests by weight go to {cluster} instead" for cluster, weight in passage.others]
        result = Explanation("allowed", "", tuple(hops), notes=tuple(notes), cluster=passage.cluster)
        if passage.stopped:
            reason, fix = _SidecarWords(self, passage).stopped(address)
            return replace(result, verdict="blocked", by="mesh", reason=reason, fix=fix)
        return self._on(result, passage, address, self.pod, 1)

    def _on(self, result: Explanation, passage: Passage, address: str | None, proxy_pod: Mapping[str, Any], count: int) -> Explanation:
        """From the proxy of a pod to the next one, or to the far end."""
        there = self._next(passage)
        if there is None:
            return self._out(result, passage, address, count)
        endpoint, neighbour = there
        if neighbour.proxy is None:
            hop = Hop("workload", name_of(neighbour.pod), f"a pod of the cluster, {endpoint.address}:{endpoint.port}")
            reason = f"{self.call.host} is {name_of(neighbour.pod)}, a workload of the cluster, not a far end outside."
            return replace(result, reason=reason, path=(*result.path, hop), address=endpoint.address)
        if count >= MOST_PROXIES:
            reason = "The gateways send it from one to another without an end."
            return replace(
                result, verdict="blocked", by="gateway", reason=reason, fix="Bind the VirtualService of the gateway to the gateway alone, not to mesh."
            )
        peer = (proxy_pod.get("status") or {}).get("podIP") or ""
        arrival = Arrival(passage.call or self.call, endpoint.address, endpoint.port, passage.envelope, peer)
        then = _path.through(neighbour.proxy, arrival, False, identity(neighbour.pod))
        words = _GatewayWords(self, then, passage, neighbour.pod)
        result = replace(result, via=name_of(neighbour.pod), path=(*result.path, *words.hops(endpoint)), notes=(*result.notes, *then.notes))
        if then.stopped:
            reason, fix = words.stopped()
            return replace(result, verdict="blocked", by="gateway policy" if then.cause == "policy" else "gateway", reason=reason, fix=fix)
        return self._on(result, then, endpoint.address, neighbour.pod, count + 1)

    def _next(self, passage: Passage) -> tuple[_path.Endpoint, Neighbour] | None:
        for endpoint in passage.endpoints:
            found = self.neighbour(endpoint.address, passage.service[0])
            if found is not None:
                return endpoint, found
        return None

    def _out(self, result: Explanation, passage: Passage, address: str | None, count: int) -> Explanation:
        """To the far end."""
        call, entry = passage.call or self.call, self._entry(passage)
        if passage.to_dialled:
            where = f"{address}:{call.port}" if address else f"the address that the client dials, port {call.port}"
        elif passage.resolves:
            where = f"{call.host}, looked up by the proxy"
        else:
            where = ", ".join(f"{e.address}:{e.port}" for e in passage.endpoints[:3])
        end = passage.endpoints[0].address if passage.endpoints else address if passage.to_dialled else ""
        envelope = passage.envelope
        what = where + (f", in TLS that the proxy starts for {envelope.sni or call.host}" if envelope else "")
        result = replace(result, path=(*result.path, Hop("host", call.host, what, entry)), address=end or "")
        result = replace(result, addresses=tuple(dict.fromkeys(e.address for e in passage.endpoints)) or ((end,) if end else ()))
        if envelope and (envelope.principal or call.protocol == _path.TLS):
            kind = "the mesh's own TLS, which no far end outside knows" if envelope.principal else "TLS of its own around the client's TLS"
            reason = f"The proxy puts {kind}: {_pretty(passage.rule) or passage.cluster}."
            fix = f"Take tls out of {_pretty(passage.rule)} for this port." if passage.rule else ""
            return replace(result, verdict="blocked", by="mesh" if count == 1 else "gateway", reason=reason, fix=fix)
        ports = {e.port for e in passage.endpoints} or {call.port}
        if envelope and ports <= PLAIN_PORTS:
            port = min(ports)
            reason = f"The proxy starts TLS with port {port}, where far ends speak plain HTTP: {_pretty(passage.rule) or passage.cluster}."
            fix = f"Give the port of {entry or 'the ServiceEntry'} targetPort: 443, or take tls out of {_pretty(passage.rule)}."
            return replace(result, verdict="blocked", by="mesh" if count == 1 else "gateway", reason=reason, fix=fix)
        if passage.cluster in (_path.PASSTHROUGH, _path.DYNAMIC_ANY):
            reason = f"{call.host} is not declared for port {call.port}, and mode ALLOW_ANY ({self.mode_source()}) lets it out, to {where}."
            fix = f"Nothing is to be fixed. To allow named hosts only: istio_outbound_mode with namespace: {self.namespace}, mode: REGISTRY_ONLY."
        else:
            through = f" through gateway {result.via}" if result.via != "direct" else " directly"
            reason = f"{entry or 'cluster ' + passage.cluster} lets {call.host} out{through}, to {where}."
            fix = ""
            if envelope and ports & PLAIN_PORTS:
                plain = f"the proxy starts TLS with port {min(ports & PLAIN_PORTS)}, too, where far ends speak plain HTTP"
                result = replace(result, notes=(*result.notes, f"{plain}; a request that meets it is tried again"))
        return replace(result, reason=reason, fix=fix)

    # -- objects --------------------------------------------------------------------------------------------------------------------

    def mode_source(self) -> str:
        """Who sets the mode: the Sidecar of the pod, or the mesh."""
        resource = self.world.sidecar_of(self.pod)
        if _sidecars.mode_of(resource):
            return f"Sidecar {name_of(resource)}"
        return f"the mesh's own, ConfigMap {self.world.root_namespace}/istio"

    def _entry(self, passage: Passage) -> str:
        """The ServiceEntry (or Service) that a cluster is made of."""
        parts = passage.cluster.split("|")
        if len(parts) != 4:
            return ""
        namespace, host = passage.service
        return self.entry(namespace, host or parts[3], int(parts[1]))

    def entry(self, namespace: str, host: str, port: int) -> str:
        """The ServiceEntry (or Service) of a host; pilot leaves no namespace at clusters of DYNAMIC_DNS, which are the visible entry's then."""
        found = [e for e in self.world.of("ServiceEntry") if host in (e["spec"].get("hosts") or ())]
        found = [e for e in found if (e["metadata"]["namespace"] == namespace if namespace else exported(e, self.namespace))]
        found.sort(key=lambda e: not any(p["number"] == port for p in e["spec"].get("ports") or ()))
        if found:
            return f"ServiceEntry {name_of(found[0])}"
        return f"Service {namespace}/{host.split('.')[0]}" if ".svc." in host else ""

    def others(self, host: str, port: int, winner: str, instead: str = "") -> tuple[tuple[str, str], ...]:
        """The ServiceEntries that name the host, or cover it, and did not decide, each with the reason; `instead` is what decided in their place."""
        resource, winning = self.world.sidecar_of(self.pod), None
        for e in self.world.of("ServiceEntry"):
            if f"ServiceEntry {name_of(e)}" == winner:
                winning = e
        result = []
        for e in self.world.of("ServiceEntry"):
            named = [h for h in e["spec"].get("hosts") or () if _covers(h, host)]
            if named and e is not winning:
                result.append((f"ServiceEntry {name_of(e)}", self._why_not(e, named[0], host, port, winning, resource, instead)))
        return tuple(result)

    def is_behind_gateway(self, name: str) -> bool:
        """Whether an entry is this collection's record of a host for a gateway, which no client is meant to see."""
        return any(f"ServiceEntry {name_of(e)}" == name and "." in (policy_of(e) or "") for e in self.world.of("ServiceEntry"))

    def _why_not(self, entry: Any, named: str, host: str, port: int, winning: Any, resource: Any, instead: str) -> str:
        namespace = entry["metadata"]["namespace"]
        if not exported(entry, self.namespace):
            return f"not exported to namespace {self.namespace} (exportTo {', '.join(entry['spec'].get('exportTo') or ['*'])})"
        if resource is not None and not _sidecars.imports(resource, self.namespace, named, namespace):
            return f"Sidecar {name_of(resource)} does not import it"
        ports = {p.number: p.protocol for p in ports_of(entry)}
        if port not in ports:
            return f"it has no port {port}"
        if winning is None:
            return f"{instead} routes the host elsewhere" if instead else f"it declares port {port} as {ports[port]}"
        if named != host and host in (winning["spec"].get("hosts") or ()):
            return f"it covers {host} by {named} only"
        if namespace != self.namespace == winning["metadata"]["namespace"]:
            return "the entry of the workload's own namespace goes first"
        return "the other one is older"

    def routes(self, host: str, winner: str) -> tuple[tuple[str, str], ...]:
        """The VirtualServices of the mesh that name the host and did not decide."""
        result, won = [], False
        for v in self.world.of("VirtualService"):
            spec, name = v["spec"], f"VirtualService {name_of(v)}"
            if name == winner:
                won = True
            elif any(_covers(h, host) for h in spec.get("hosts") or ()) and "mesh" in (spec.get("gateways") or ["mesh"]):
                if not exported(v, self.namespace):
                    why = f"not exported to namespace {self.namespace} (exportTo {', '.join(spec.get('exportTo') or ['*'])})"
                elif host not in (spec.get("hosts") or ()):
                    why = f"it covers {host} by a wildcard only" if winner else "none of its routes takes this request"
                else:
                    why = "the other one is older" if won else "none of its routes takes this request"
                result.append((name, why))
        return tuple(result)


def exported(obj: Mapping[str, Any], namespace: str) -> bool:
    """Whether an object is exported to a namespace; without ``exportTo``, to all."""
    return any(n == "*" or n == namespace or (n == "." and obj["metadata"]["namespace"] == namespace) for n in obj["spec"].get("exportTo") or ("*",))


def _covers(pattern: str, host: str) -> bool:
    return pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]) and host != pattern[2:])


def name_of(obj: Mapping[str, Any]) -> str:
    """``namespace/name`` of an object."""
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"


_KIND_OF_PATH = {"virtual-service": "VirtualService", "destination-rule": "DestinationRule", "service-entry": "ServiceEntry", "gateway": "Gateway"}


def _pretty(config: str) -> str:
    """A reference of pilot's, ``virtual-service demo/cnn``, as ``VirtualService demo/cnn``."""
    kind, _space, name = config.partition(" ")
    return f"{_KIND_OF_PATH.get(kind, kind)} {name}" if name else ""


def _way_under_rules(why: str) -> str:
    if "no sidecar" in why:
        return "give the pod a sidecar: label its namespace istio-injection=enabled (or the pod sidecar.istio.io/inject=true) and restart it."
    if "init container" in why or "user 1337" in why:
        return "make the request from a container that starts after the sidecar and runs as another user than 1337."
    return "take the range or port out with istio_egress_bypass (state: absent), and restart the workload."


def host_entry(call: Call, address: str | None) -> str:
    """The host entry that allows a request, as one writes it."""
    if call.protocol == _path.TCP or _path.is_address(call.host):
        given = f", addresses: [{address}]" if not _path.is_address(call.host) else ""
        return f"{{host: {call.host}, ports: [tcp/{call.port}]{given if address else ', addresses: [...]' if given else ''}}}"
    usual = {80: _path.HTTP, 443: _path.TLS}.get(call.port) == call.protocol
    return f"{{host: {call.host}, ports: [{call.port if usual else f'{call.protocol}/{call.port}'}]}}"


class _SidecarWords:
    """What a sidecar did, in words."""

    def __init__(self, walker: _Walker, passage: Passage) -> None:
        self.walker, self.passage, self.call = walker, passage, walker.call

    def hops(self, address: str | None) -> list[Hop]:
        p, walker = self.passage, self.walker
        if not p.listener:
            return [Hop("sidecar", walker.name, p.stopped)]
        by_mode = p.cause == "mode" or p.cluster in (_path.PASSTHROUGH, _path.DYNAMIC_ANY)
        mode = f"{walker.mode_source()}" if by_mode else ""
        hops = [Hop("sidecar", walker.name, f"listener {p.listener}" + (f", {p.chain}" if p.chain else ""), "" if p.http else self._decider())]
        if p.http:
            what = f"route table {p.route_config}" + (f", host {p.virtual_host}" if p.virtual_host else "")
            hops.append(
                Hop("route", walker.name, what, mode if by_mode else self._decider(), () if by_mode else walker.routes(self.call.host, self._decider()))
            )
        elif by_mode:
            hops[0] = replace(hops[0], object=mode)
        if p.cluster:
            rule, entry = _pretty(p.rule), walker._entry(p)
            lost = walker.others(self.call.host, self.call.port, entry if self._host_is_own() else "", _pretty(p.config)) if not by_mode else ()
            hops.append(Hop("cluster", walker.name, p.cluster + (f": {p.stopped}" if p.stopped and not by_mode else ""), rule or entry, lost))
        if by_mode:
            hops[-1] = replace(hops[-1], lost=(*walker.others(self.call.host, self.call.port, ""), *walker.routes(self.call.host, "")))
        return hops

    def _host_is_own(self) -> bool:
        return _covers(self.passage.service[1] or "", self.call.host)

    def _decider(self) -> str:
        return _pretty(self.passage.config) or self.walker._entry(self.passage)

    def stopped(self, address: str | None) -> tuple[str, str]:
        p, call, walker = self.passage, self.call, self.walker
        what = f"{call.host} port {call.port}"
        if p.cause == "mode":
            how = "answers 502 itself (route block_all)" if p.http else "closes the connection (BlackHoleCluster)"
            near = [(name, why) for name, why in walker.others(call.host, call.port, "") if not walker.is_behind_gateway(name)]
            told = f"; {near[0][0]} names it, but: {near[0][1]}" if near else ""
            reason = (
                f"{what} ({call.protocol}) is not declared for {walker.name}, and under mode REGISTRY_ONLY ({walker.mode_source()}) the sidecar {how}{told}."
            )
            return reason, self._fix_of_mode(near, address)
        if p.cause == "cluster":
            return self._no_cluster()
        if p.cause == "endpoint":
            return self._no_endpoint()
        decider = self._decider()
        by = f" ({decider})" if decider else ""
        if p.cause == "fault":
            return f"{what}: {p.stopped}{by}.", f"Take the fault out of {decider}."
        if p.cause == "route":
            return f"{what}: {p.stopped}{by}.", f"Give {decider} a route for {call.method} {call.path}." if decider else self._declare(address)
        return f"{what}: {p.stopped}{by}.", self._declare(address)

    def _declare(self, address: str | None) -> str:
        return f"istio_egress_host with namespace: {self.walker.namespace}, hosts: [{host_entry(self.call, address)}]."

    def _fix_of_mode(self, near: list[tuple[str, str]], address: str | None) -> str:
        """What lets the host in: what hides an entry that there is, or an entry of one's own."""
        declare = self._declare(address)
        for name, why in near:
            namespace = name.partition(" ")[2].partition("/")[0]
            if "does not import" in why:
                where = "." if namespace == self.walker.namespace else namespace
                return f"Add {where}/{self.call.host} to egress.hosts of {why.split(' does')[0]}, which hides {name}."
            if why.startswith("not exported"):
                return f"{declare} Or have {name} exported to {self.walker.namespace} (export_to)."
        return declare

    def _no_cluster(self) -> tuple[str, str]:
        p, decider = self.passage, self._decider()
        parts = p.cluster.split("|")
        sender = _pretty(p.config) or "the route"
        if "looking" in p.stopped:
            return f"{sender} leads to {p.cluster}, whose host is still being looked up.", "Run it again; if it stays so, the host has no address in DNS."
        if len(parts) == 4 and parts[2]:
            reason = f"{sender} sends it to subset {parts[2]} of {parts[3]}, which no DestinationRule has, so there is no cluster {p.cluster}."
            return reason, f"Add subset {parts[2]} to the DestinationRule of {parts[3]}, or take the subset out of {decider}."
        host = parts[3] if len(parts) == 4 else p.cluster
        port = parts[1] if len(parts) == 4 else ""
        reason = f"{sender} sends it to {host} port {port}, which the workload does not see, so there is no cluster {p.cluster}."
        if ".svc." in host:
            return reason, f"Create Service {host} with port {port} (role egress_gateway_deploy), or import its namespace in egress.hosts of the Sidecar."
        return reason, f"Declare it: istio_egress_host with namespace: {self.walker.namespace}, hosts: [{{host: {host}, ports: [{port}]}}]."

    def _no_endpoint(self) -> tuple[str, str]:
        p, parts = self.passage, self.passage.cluster.split("|")
        host, entry = parts[-1], self.walker._entry(p)
        if ".svc." in host:
            sender = f"{_pretty(p.config)} sends it to" if p.config else "It goes to"
            return f"{sender} {host}, behind which no pod is ready.", f"Bring the gateway up: role egress_gateway_deploy, or the Deployment behind {entry}."
        return (
            f"{entry or p.cluster} has no address for {host}: {p.stopped}.",
            f"Correct the endpoints or the resolution of {entry or host}; DNS has no such name.",
        )


class _GatewayWords:
    """What a gateway did, in words."""

    def __init__(self, walker: _Walker, passage: Passage, before: Passage, pod: Mapping[str, Any]) -> None:
        self.walker, self.passage, self.before, self.pod = walker, passage, before, pod
        self.gateways = [g for g in walker.world.of("Gateway") if _selects(g["spec"].get("selector") or {}, pod)]

    def hops(self, endpoint: _path.Endpoint) -> list[Hop]:
        p, at = self.passage, name_of(self.pod)
        way = "the mesh's TLS" if self.before.envelope and self.before.envelope.principal else "no TLS of the mesh"
        if not p.listener:
            return [Hop("gateway", at, f"{endpoint.address}:{endpoint.port}: {p.stopped}")]
        hops = [Hop("gateway", at, f"listener {p.listener}" + (f", {p.chain}" if p.chain else "") + f", by {way}", self.gateway())]
        if p.cause == "policy" or p.policy:
            hops.append(Hop("policy", at, p.stopped or f"allowed by {p.policy}", self.policies()))
        if p.cause == "policy" or not (p.http or p.cluster):
            return hops
        if p.http:
            what = f"route table {p.route_config}" + (f", host {p.virtual_host}" if p.virtual_host else "")
        else:
            what = f"to {p.cluster}"
        hops.append(Hop("gateway route", at, what + (f": {p.stopped}" if p.stopped else ""), self.route()))
        if p.cluster and (p.rule or p.stopped):
            hops.append(Hop("cluster", at, p.cluster, _pretty(p.rule)))
        return hops

    def gateway(self) -> str:
        """The Gateway that opens the listener: named in its route table, bound by the route's VirtualService, or the only one there."""
        named = re.fullmatch(r"https\.\d+\.[^.]+\.(.+)\.([^.]+)", self.passage.route_config)
        if named:
            return f"Gateway {named[2]}/{named[1]}"
        route = self._virtual_service()
        bound = {_reference(g, route["metadata"]["namespace"]) for g in route["spec"].get("gateways") or ()} if route else None
        fitting = [name_of(g) for g in self.gateways if bound is None or name_of(g) in bound]
        return ", ".join(f"Gateway {n}" for n in fitting[:3])

    def route(self) -> str:
        route = self._virtual_service()
        return f"VirtualService {name_of(route)}" if route else ""

    def _virtual_service(self) -> Mapping[str, Any] | None:
        """By pilot's own reference; TLS and TCP routes of a gateway have none, so by what they say."""
        named = _pretty(self.passage.config)
        ours = {name_of(g) for g in self.gateways}
        destination = self.passage.cluster.rpartition("|")[2]
        sni = self.before.envelope.sni if self.before.envelope else self.walker.call.sni
        for v in self.walker.world.of("VirtualService"):
            spec = v["spec"]
            if named == f"VirtualService {name_of(v)}":
                return v
            if named or self.passage.http or not ours & {_reference(g, v["metadata"]["namespace"]) for g in spec.get("gateways") or ()}:
                continue
            rules = [r for r in spec.get("tls") or () if any(_covers(h, sni) for m in r.get("match") or () for h in m.get("sniHosts") or ())]
            rules += [r for r in spec.get("tcp") or () if any(_covers(h, sni) for h in spec.get("hosts") or ())]
            if destination and any(d["destination"]["host"] == destination for r in rules for d in r.get("route") or ()):
                return v
        return None

    def policies(self) -> str:
        named = re.fullmatch(r"ns\[(.+?)\]-policy\[(.+?)\]-rule\[\d+\]", self.passage.policy)
        if named:
            return f"AuthorizationPolicy {named[1]}/{named[2]}"
        found = []
        for a in self.walker.world.of("AuthorizationPolicy"):
            spec, here = a.get("spec") or {}, a["metadata"]["namespace"] in (self.pod["metadata"]["namespace"], self.walker.world.root_namespace)
            if here and spec.get("action", "ALLOW") == "ALLOW" and _selects((spec.get("selector") or {}).get("matchLabels") or {}, self.pod):
                found.append(f"AuthorizationPolicy {name_of(a)}")
        return ", ".join(found[:3])

    def stopped(self) -> tuple[str, str]:
        p, call, namespace = self.passage, self.walker.call, self.walker.namespace
        at = f"gateway {name_of(self.pod)}"
        send = f"istio_egress_gateway with namespace: {namespace}, hosts: [{host_entry(call, None)}]"
        if p.cause == "policy":
            who = self.before.envelope.principal if self.before.envelope else ""
            asks = f"identity {who.removeprefix('spiffe://')}" if who else "the request, which comes without an identity (hop plain)"
            fix = f"Allow {identity(self.walker.pod).removeprefix('spiffe://')} to reach {call.host}"
            fix += f" in {self.policies() or 'the AuthorizationPolicy of the gateway'}"
            fix += "" if who else ", and send it by hop: mutual_tls, so that the gateway knows who asks"
            return f"{at[0].upper()}{at[1:]} refuses {asks} for {call.host}: {self.policies() or 'an AuthorizationPolicy'} ({p.stopped}).", fix + "."
        if p.cause in ("route", "listener", "chain"):
            sender = _pretty(self.before.config) or "the route"
            return f"{sender} sends {call.host} to {at}, which has no way on for it: {p.stopped}.", f"Give the gateway the host: {send}."
        if p.cause == "protocol":
            return f"{at[0].upper()}{at[1:]} cannot take it: {p.stopped}.", f"Make hop and Gateway fit: {send}."
        if p.cause in ("cluster", "endpoint"):
            entry = self.walker._entry(p)
            return f"{at[0].upper()}{at[1:]} has no way to {call.host}: {p.stopped}.", f"Declare the host for the gateway's namespace: {send}" + (
                f" (or correct {entry})." if entry else "."
            )
        return f"{at[0].upper()}{at[1:]}: {p.stopped}.", send + "."


def _selects(selector: Mapping[str, str], pod: Mapping[str, Any]) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return all(labels.get(k) == v for k, v in selector.items())


def _reference(gateway: str, namespace: str) -> str:
    return gateway if "/" in gateway else f"{namespace}/{gateway}"
