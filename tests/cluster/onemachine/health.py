"""How a mesh is: what of it runs, and what does not. Only looks, from the machine outside."""

from __future__ import annotations

import json
import time

from . import control_plane, farend, machine
from .layout import Run, runs


def troubles(run: Run) -> list[str]:
    """What keeps a mesh that was started from being whole; empty when it is well. To be asked of one that has state."""
    state = run.read_state()
    if not state or machine.pid_of(run) is None:
        return ["its processes are gone"]
    if not state["ready"]:
        return ["its start did not come to an end"]
    dead = [name for name, alive in machine.components(run).items() if not alive]
    if dead:
        return [f"{', '.join(dead)} ended: mesh --name {run.name} logs {dead[0]}"]
    status, body = control_plane.request(run, "GET", "/readyz")
    if status != 200:
        return [f"the API server is not ready: {status or ''} {body.splitlines()[-1] if body else ''}".rstrip()]
    if not state["api_only"] and not _node_ready(run):
        return [f"node {run.name} is not Ready: mesh --name {run.name} logs kubelet"]
    return []


def _items(run: Run, path: str) -> list[dict]:
    status, body = control_plane.request(run, "GET", path)
    return json.loads(body)["items"] if status == 200 else []


def _node_ready(run: Run) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for n in _items(run, "/api/v1/nodes") for c in n["status"]["conditions"])


def report(run: Run) -> tuple[list[tuple[str, str]], bool]:
    """One screen: rows of (what, how), and whether all is well."""
    others = [n for n in runs(run.cache) if n != run.name and machine.pid_of(Run(run.cache, n))]
    rest = [("others", ", ".join(others))] if others else []
    state = run.read_state()
    if not state:
        return [(run.name, f"not running: mesh --name {run.name} up"), *rest], False
    bad = troubles(run)
    since = time.strftime("%H:%M:%S", time.localtime((run.root / "state.json").stat().st_mtime))
    rows = [
        (run.name, f"{'API only' if state['api_only'] else 'node and mesh'}, {'up since ' + since if not bad else 'NOT WELL: ' + '; '.join(bad)}"),
        ("kubeconfig", str(run.kubeconfig)),
    ]
    if machine.pid_of(run):
        status, body = control_plane.request(run, "GET", "/version")
        rows.append(
            ("API server", f"https://127.0.0.1:{state['port']}, " + (f"Kubernetes {json.loads(body)['gitVersion']}" if status == 200 else f"no answer: {body}"))
        )
        rows.append(("components", " ".join(name if alive else f"({name} ended)" for name, alive in machine.components(run).items())))
        if not state["api_only"] and status == 200:
            pods = _items(run, "/api/v1/pods")
            waiting = [f"{p['metadata']['namespace']}/{p['metadata']['name']}" for p in pods if not _pod_ready(p)]
            rows.append(
                ("node", f"{'Ready' if _node_ready(run) else 'NOT Ready'}, {len(pods)} pods" + (f", not ready: {' '.join(waiting)}" if waiting else ""))
            )
            rows.append(("Istio", _istio(run)))
            faults = farend.faults(run)
            rows.append(
                ("far end", f"{len(farend.hosts(run))} hosts" + "".join(f"; {h}: {' '.join(f'{k}={v}' for k, v in f.items())}" for h, f in faults.items()))
            )
    rows.append(("logs", str(run.log)))
    return rows + rest, not bad


def _pod_ready(pod: dict) -> bool:
    return pod["status"].get("phase") == "Succeeded" or any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def _istio(run: Run) -> str:
    deployments = _items(run, "/apis/apps/v1/namespaces/istio-system/deployments")
    if not deployments:
        return f"not installed: mesh --name {run.name} istio"
    image = deployments[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    return f"{image.rpartition(':')[2]}, " + ", ".join(
        f"{d['metadata']['name']} {d['status'].get('readyReplicas', 0)}/{d['spec']['replicas']}" for d in deployments
    )
