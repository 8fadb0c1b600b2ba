"""Istio on a running mesh, by istioctl from the machine outside: istiod and an egress gateway."""

from __future__ import annotations

import hashlib
import json
import subprocess

from . import control_plane
from .layout import ISTIO, MeshError, Run, manifest


def _settings() -> str:
    return manifest("istio.yaml", {"ISTIO": ISTIO})


def _wanted(run: Run) -> str:
    return hashlib.sha256(_settings().encode()).hexdigest() + f" {(run.cache.bin / 'istioctl').stat().st_mtime_ns}"


def installed(run: Run) -> bool:
    """Whether `install` has run on this mesh with these settings, and its Deployments are still there and ready."""
    mark = run.root / "istio-installed"
    if not mark.exists() or mark.read_text() != _wanted(run):
        return False
    status, body = control_plane.request(run, "GET", "/apis/apps/v1/namespaces/istio-system/deployments")
    ready = {d["metadata"]["name"] for d in json.loads(body)["items"] if d["status"].get("readyReplicas")} if status == 200 else set()
    return {"istiod", "istio-egressgateway"} <= ready


def install(run: Run) -> None:
    log = run.log / "istioctl.log"
    with log.open("a") as out:
        done = subprocess.run(
            [str(run.cache.bin / "istioctl"), "install", "-y", "--kubeconfig", str(run.kubeconfig), "-f", "-", "--readiness-timeout", "2m"],
            input=_settings().encode(),
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = "\n    ".join(log.read_text().strip().splitlines()[-6:])
        raise MeshError(f"istioctl install ended with code {done.returncode}; the end of {log}:\n    {tail}")
    (run.root / "istio-installed").write_text(_wanted(run))
