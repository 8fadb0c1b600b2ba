# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What egress there is: per namespace the mode that its proxies have, the hosts that it may reach and how, and what is odd.

Pure: pods, objects and what proxies said go in; plain dictionaries come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _explain, _gateway, _sidecars
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import ports_of, read_metadata
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import owner_of, policy_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import Port

LEVELS = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """What is odd: a code to look it up by, how bad it is, the object, a sentence, and the way out."""

    code: str
    level: str
    object: str
    message: str
    fix: str = ""


@dataclass(frozen=True)
class Seen:
    """A pod of the namespace, and the mode that its sidecar has; None where it could not be read or is between two."""

    pod: Mapping[str, Any]
    sidecar: bool
    mode: str | None = None
    unread: str = ""


def overview(
    namespace: str, seen: Iterable[Seen], world: _explain.World, mesh: tuple[str, str] | None, ready: Mapping[str, bool | None], today: date
) -> dict[str, Any]:
    """One namespace. `mesh` is (mode, source) of the mesh config, `ready` says for each gateway (namespace/service) whether somebody serves there."""
    seen = list(seen)
    resource = _sidecars.effective(world.of("Sidecar"), namespace, {}, world.root_namespace)
    mode, source = _written(resource, mesh)
    hosts = hosts_of(namespace, world, resource)
    proxies = [_proxy(s, world, mesh) for s in seen if s.sidecar]
    findings = [
        *_of_proxies(namespace, seen, proxies),
        *_of_hosts(namespace, hosts, world, resource, today),
        *_of_mode(namespace, mode, source, hosts),
        *_of_gateways(hosts, ready),
    ]
    findings.sort(key=lambda f: (LEVELS.index(f.level), f.code, f.object))
    return {
        "namespace": namespace,
        "mode": mode,
        "source": source,
        "proxies": proxies,
        "hosts": hosts,
        "gateways": sorted({h["gateway"] for h in hosts if h["gateway"]}),
        "findings": [{"namespace": namespace, **vars(f)} for f in findings],
    }


def gateways(world: _explain.World) -> set[str]:
    """The gateways (namespace/service) that declared hosts go through."""
    return {route.gateway for route in _gateway.read_routes(e for e in world.of("ServiceEntry") if e["spec"].get("hosts"))}


def lines(spaces: Iterable[Mapping[str, Any]]) -> list[str]:
    """The overview as lines of text for a terminal."""
    result = []
    for space in spaces:
        proxies = space["proxies"]
        result.append(f"{space['namespace']}: {space['mode'] or 'mode not known'} ({space['source'] or 'not readable'}), {len(proxies)} sidecars")
        width = max((len(h["host"]) for h in space["hosts"]), default=0)
        for h in space["hosts"]:
            way = f"gateway {h['gateway']}" if h["gateway"] else "direct"
            result.append(f"  --> {h['host'].ljust(width)}  {', '.join(h['ports'])}  {way}  [{h['object']}, {h['owner']}]")
        result += [f"  {'!' if f['level'] != 'info' else '.'} {f['code']}: {f['object']}. {f['message']}" for f in space["findings"]]
    return result


def _written(resource: Mapping[str, Any] | None, mesh: tuple[str, str] | None) -> tuple[str | None, str | None]:
    own = _sidecars.mode_of(resource)
    if own:
        return own, f"Sidecar {_explain.name_of(resource)}"
    return mesh or (None, None)


def _proxy(seen: Seen, world: _explain.World, mesh: tuple[str, str] | None) -> dict[str, Any]:
    written, source = _written(world.sidecar_of(seen.pod), mesh)
    rules = _explain.redirection(seen.pod)
    around = {k: v for k, v in rules.items() if k != "mode" and v and not (k == "include" and v == ["*"])}
    return {"pod": seen.pod["metadata"]["name"], "mode": seen.mode, "written": written, "source": source, "around": around, "unread": seen.unread or None}


def hosts_of(namespace: str, world: _explain.World, resource: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What the namespace may reach: hosts sent through gateways, then those of every entry that it sees, the collection's own first."""
    entries = [e for e in world.of("ServiceEntry") if e["spec"].get("hosts")]
    result = []
    for route in _gateway.read_routes(entries):
        if namespace in route.clients or not route.clients:
            owner = f'policy "{route.policy}" of namespace {route.namespace}'
            result.append(_host(route.entry.host, _ports(route.entry.ports), route.gateway, True, owner, f"policy {route.policy}", dict(route.entry.metadata)))
    routed = {h["host"] for h in result}
    for e in entries:
        policy = policy_of(e) or ""
        if "." in policy or not _explain.exported(e, namespace):
            continue
        ports = _ports(ports_of(e))
        metadata = read_metadata(e)
        for host in e["spec"]["hosts"]:
            if not policy and resource is not None and not _sidecars.imports(resource, namespace, host, e["metadata"]["namespace"]):
                continue
            if host not in routed or not policy:
                result.append(_host(host, ports, "", bool(policy), owner_of(e), f"ServiceEntry {_explain.name_of(e)}", metadata.get(host, {})))
    return sorted(result, key=lambda h: (not h["managed"], h["host"]))


def _host(host: str, ports: list[str], gateway: str, managed: bool, owner: str, obj: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    return {"host": host, "ports": ports, "gateway": gateway or None, "managed": managed, "owner": owner, "object": obj, **metadata_of(metadata)}


def metadata_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Who asked for a host and until when; the host's owner is `requested_by` beside the object's."""
    return {"requested_by" if k == "owner" else k: v for k, v in metadata.items() if k in ("owner", "ticket", "reason", "expires")}


def _ports(ports: Iterable[Port]) -> list[str]:
    return [f"{p.protocol.lower()}/{p.number}" for p in ports]


# -- findings -----------------------------------------------------------------------------------------------------------------------


def _of_proxies(namespace: str, seen: list[Seen], proxies: list[dict[str, Any]]) -> Iterable[Finding]:
    for s in seen:
        if not s.sidecar:
            why = _explain.around(s.pod, "", None, 0)[0]
            yield Finding(
                "no-sidecar", "warning", f"Pod {_explain.name_of(s.pod)}", f"{why}: it reaches everything.", "Give it a sidecar, or use a NetworkPolicy."
            )
    for proxy in proxies:
        name = f"Pod {namespace}/{proxy['pod']}"
        if proxy["unread"]:
            yield Finding("not-read", "info", name, f"Its proxy could not be read: {proxy['unread']}.")
        elif proxy["written"] and proxy["mode"] != proxy["written"]:
            message = f"Its sidecar has mode {proxy['mode'] or 'between two modes'}, and {proxy['source']} says {proxy['written']}."
            yield Finding("mode-not-in-force", "error", name, message, "Look at istiod's log and istioctl proxy-status.")
        if proxy["around"]:
            told = "; ".join(f"{key.replace('_', ' ')}: {', '.join(value)}" for key, value in proxy["around"].items())
            yield Finding("bypass", "warning", name, f"Some of its traffic goes around the sidecar ({told}).", "istio_egress_bypass with state: absent.")


def _of_hosts(namespace: str, hosts: list[dict[str, Any]], world: _explain.World, resource: Any, today: date) -> Iterable[Finding]:
    managed = {(h["host"], p.partition("/")[2]) for h in hosts if h["managed"] for p in h["ports"]}
    for h in hosts:
        if h["managed"]:
            if h.get("expires") and h["expires"] < today.isoformat():
                yield Finding("expired", "warning", h["object"], f"{h['host']} was to be open until {h['expires']}.", "Remove it, or give it a new date.")
            continue
        beyond = [p for p in h["ports"] if (h["host"], p.partition("/")[2]) not in managed]
        if beyond and ".svc." not in h["host"] and managed:
            message = f"It opens {h['host']} {', '.join(beyond)} for {namespace}, which no policy declares ({h['owner']})."
            fix = f"Have its owner remove it or set exportTo, or declare {h['host']} with istio_egress_host."
            yield Finding("opened-by-others", "warning", h["object"], message, fix)
    for e in world.of("ServiceEntry"):
        policy = policy_of(e) or ""
        if policy and "." not in policy and _explain.exported(e, namespace) and resource is not None:
            hidden = [h for h in e["spec"].get("hosts") or () if not _sidecars.imports(resource, namespace, h, e["metadata"]["namespace"])]
            if hidden:
                name = _explain.name_of(resource)
                message = f"Sidecar {name} does not import {', '.join(hidden[:3])}."
                yield Finding("not-imported", "error", f"ServiceEntry {_explain.name_of(e)}", message, f"Add it to egress.hosts of Sidecar {name}.")
    by_host: dict[tuple[str, str], set[str]] = {}
    for h in hosts:
        for port in h["ports"]:
            by_host.setdefault((h["host"], port.partition("/")[2]), set()).add(h["object"])
    for host in sorted({host for (host, _port), objects in by_host.items() if len(objects) > 1}):
        objects = sorted({o for (other, _port), found in by_host.items() if other == host and len(found) > 1 for o in found})
        yield Finding("declared-twice", "info", objects[0], f"{host} is declared by {' and '.join(objects)}; the older one decides.", "Keep one of them.")


def _of_mode(namespace: str, mode: str | None, source: str | None, hosts: list[dict[str, Any]]) -> Iterable[Finding]:
    if mode and mode != "REGISTRY_ONLY" and any(h["managed"] for h in hosts):
        message = f"Hosts are declared for {namespace}, but its mode is {mode} ({source}), so undeclared ones are let out, too."
        yield Finding("not-enforced", "info", source or "", message, f"istio_outbound_mode with namespace: {namespace}, mode: REGISTRY_ONLY.")


def _of_gateways(hosts: list[dict[str, Any]], ready: Mapping[str, bool | None]) -> Iterable[Finding]:
    for gateway in sorted({h["gateway"] for h in hosts if h["gateway"]}):
        if ready.get(gateway) is False:
            sent = [h["host"] for h in hosts if h["gateway"] == gateway]
            message = f"{', '.join(sent[:3])}{' and others' if len(sent) > 3 else ''} go through it, and nobody serves there."
            yield Finding("gateway-down", "error", f"Service {gateway}", message, "Bring it up: role egress_gateway_deploy.")
