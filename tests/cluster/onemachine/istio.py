"""Istio on a running mesh, by istioctl from the machine outside: istiod and an egress gateway."""

from __future__ import annotations

import hashlib
import subprocess

from .layout import MANIFESTS, MeshError, Run

SETTINGS = MANIFESTS / "istio.yaml"


def _wanted(run: Run) -> str:
    return hashlib.sha256(SETTINGS.read_bytes()).hexdigest() + f" {(run.cache.bin / 'istioctl').stat().st_mtime_ns}"


def installed(run: Run) -> bool:
    """Whether `install` has run on this mesh with these settings, and its two Deployments are there."""
    mark = run.root / "istio-installed"
    return mark.exists() and mark.read_text() == _wanted(run)


def install(run: Run) -> None:
    log = run.log / "istioctl.log"
    with log.open("a") as out:
        done = subprocess.run(
            [str(run.cache.bin / "istioctl"), "install", "-y", "--kubeconfig", str(run.kubeconfig), "-f", str(SETTINGS), "--readiness-timeout", "2m"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = "\n    ".join(log.read_text().strip().splitlines()[-6:])
        raise MeshError(f"istioctl install ended with code {done.returncode}; the end of {log}:\n    {tail}")
    (run.root / "istio-installed").write_text(_wanted(run))
