"""The machine of a mesh: start it, run something on it, end it; and the processes on it.

A machine is one process tree with PID, mount and network namespaces of its own (pid1.py). All that exists outside of it is the folder of the run
and an empty branch of the cgroup tree. Knows nothing of Kubernetes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .layout import ENTRY, HERE, SYSTEM_PATH, MeshError, Run
from .pid1 import MOUNT_POINTS

MARK = "ISTIO_EGRESS_MESH_RUN"  # in the environment of all that belongs to a run, commands of `mesh exec` included
CGROUPS = Path("/sys/fs/cgroup")
POD_WEIGHT = {"cpu.shares": "10240", "cpu.weight": "1000"}
"""All pods together against one process outside, which has 1024, or 100. With as little as that, DNS and proxies wait for seconds beside a busy test run."""


# ---- seen from outside -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(what: str) -> Iterator[None]:
    """One holder at a time; ends with the process, leaves no file (an abstract socket)."""
    holder, told = socket.socket(socket.AF_UNIX), False
    while True:
        try:
            holder.bind(f"\0istio-egress-mesh:{what}")
            break
        except OSError:
            if not told:
                print(f"waiting for another command on {what} to end", flush=True)
                told = True
            time.sleep(0.2)
    with holder:
        yield


def _process_started(pid: int, proc: Path = Path("/proc")) -> str | None:
    """Start time of a process in clock ticks since boot, its identity together with the PID; None when it is gone or a zombie."""
    try:
        fields = Path(proc, str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_of(run: Run) -> int | None:
    """PID of the machine's first process; None when it does not run. A number that now belongs to somebody else is not taken for it."""
    state = run.read_state()
    if state and state["boot"] == _boot() and _process_started(state["pid"]) == state["started"]:
        return state["pid"]
    return None


def components(run: Run) -> dict[str, bool]:
    """Each component that was started, and whether it runs."""
    proc = Path(f"/proc/{pid_of(run)}/root/proc")
    return {f.name: _process_started(int(f.read_text()), proc) is not None for f in sorted(run.pids.iterdir())}


def start(run: Run, state: dict) -> int:
    """Start the machine, empty, and write the run's state file. Expects `end` to have been called."""
    for path in (run.log, run.pids):
        path.mkdir(parents=True)
    for folder in MOUNT_POINTS:
        folder.mkdir(parents=True, exist_ok=True)
    _make_cgroups(run)
    with (run.log / "machine.log").open("ab") as log:
        first = subprocess.Popen(
            [sys.executable, HERE / "pid1.py", run.root],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**os.environ, "PATH": SYSTEM_PATH, MARK: str(run.root)},
        )
        assert first.stdout
        line = first.stdout.readline().strip()
        if not line:
            raise MeshError(f"no namespaces for {run.name}: {(run.log / 'machine.log').read_text().strip().splitlines()[-1]}")
        pid = int(line)
        run.write_state({**state, "pid": pid, "started": _process_started(pid), "boot": _boot(), "ready": False})
        first.wait()
        ready = first.stdout.readline().strip()
    if ready != "ready":
        raise MeshError(f"the machine of {run.name} did not start: see {run.log}/machine.log")
    return pid


def enter(pid: int, *, network_only: bool = False) -> list[str]:
    """The words before a command that make it run on the machine."""
    if network_only:
        return ["nsenter", f"--net=/proc/{pid}/ns/net", "--"]
    return ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--"]


def inside(run: Run, *arguments: str, pass_fds: tuple[int, ...] = (), stdin: str = "") -> None:
    """Run a step of this program on the machine, its output being ours; a failure it has told about itself ends us, too."""
    pid = pid_of(run)
    if pid is None:
        raise MeshError(f"mesh {run.name} is not running: mesh --name {run.name} up")
    done = subprocess.run(
        [*enter(pid), sys.executable, str(ENTRY), "--name", run.name, "on-machine", *arguments],
        check=False,
        pass_fds=pass_fds,
        input=stdin,
        text=True,
        env={**os.environ, MARK: str(run.root), "MESH_CACHE": str(run.cache.root)},
    )
    if done.returncode:
        raise SystemExit(done.returncode)


def end(run: Run) -> bool:
    """End whatever there is of a run, dead or alive; whether there was anything."""
    found = run.root.exists() or bool(_cgroup_folders(run))
    pid = pid_of(run)
    victims = ([pid] if pid else []) + _marked(run)
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    _until(lambda: not any(_process_started(v) for v in victims), 20, f"processes {victims} of mesh {run.name} do not end")
    foreign = f"{CGROUPS}/*/{run.cgroup} holds processes that are not of this MESH_CACHE: choose another --name"
    _until(lambda: not _cgroups_busy(run), 5, foreign)
    _until(lambda: _remove_cgroups(run), 20, f"cannot remove the cgroups {CGROUPS}/*/{run.cgroup}")
    _until(lambda: _remove_folder(run.root), 20, f"cannot remove {run.root}")
    return found


def _remove_folder(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _until(done: Callable[[], bool], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise MeshError(complaint)
        time.sleep(0.02)


def _marked(run: Run) -> list[int]:
    """Every process whose environment says that it belongs to this run, but for ourselves and the shells above us."""
    mark, spared, found = f"{MARK}={run.root}".encode(), set(), []
    pid = os.getpid()
    while pid > 1:
        spared.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in spared:
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def hierarchies() -> list[Path]:
    """Roots of the cgroup hierarchies: one with cgroup v2; with v1 one per controller, and maybe a v2 one without any."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(m[1]) for m in mounts if m[2] in ("cgroup", "cgroup2") and Path(m[1]).is_relative_to(CGROUPS)]


def _cgroup_folders(run: Run, existing: bool = True) -> list[Path]:
    groups = [root / run.cgroup for root in hierarchies()]
    return [g for g in groups if g.exists()] if existing else groups


def _make_cgroups(run: Run) -> None:
    """An empty branch in each hierarchy, for kubelet to put the pods below. With cgroup v2 it has the controllers only if the root hands them down."""
    handed_down = CGROUPS / "cgroup.subtree_control"
    if handed_down.exists():
        try:
            handed_down.write_text(" ".join(f"+{c}" for c in (CGROUPS / "cgroup.controllers").read_text().split()))
        except OSError as failure:
            raise MeshError(f"{handed_down}: {failure.strerror}: in a container, run it privileged and with the machine's cgroup namespace") from None
    for group in _cgroup_folders(run, existing=False):
        group.mkdir(exist_ok=True)
        for name, weight in POD_WEIGHT.items():
            if (group / name).exists():
                (group / name).write_text(weight)


def _cgroups_busy(run: Run) -> bool:
    for folder in _cgroup_folders(run):
        for processes in folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):  # gone meanwhile
                if processes.read_text().strip():
                    return True
    return False


def _remove_cgroups(run: Run) -> bool:
    for group in _cgroup_folders(run):
        for path, _folders, _files in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()
    return not _cgroup_folders(run)


# ---- seen from the machine itself ------------------------------------------------------------------------------------------------------


class Component:
    """A long-running program on the machine, with a log and a PID file named after it."""

    def __init__(self, run: Run, name: str, *command: object, far: bool = False, pass_fds: tuple[int, ...] = ()) -> None:
        self.name, self.log = name, run.log / f"{name}.log"
        words = [*(["nsenter", "--net=/run/netns/far", "--"] if far else []), *map(str, command)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=run.root,
                pass_fds=pass_fds,
                env={**os.environ, "PATH": f"{run.cache.bin}:{SYSTEM_PATH}"},
            )
        (run.pids / name).write_text(str(self.process.pid))

    def check(self) -> None:
        """Raise when the program has ended, with the last lines it wrote."""
        if self.process.poll() is not None:
            tail = "\n    ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])
            raise MeshError(f"{self.name} ended with code {self.process.returncode}; the end of {self.log}:\n    {tail}")


def signal_component(run: Run, name: str, number: signal.Signals) -> None:
    os.kill(int((run.pids / name).read_text()), number)


def stop_component(run: Run, name: str) -> None:
    """End a component and see that it is gone, with the ports it had."""
    pid = int((run.pids / name).read_text())
    os.kill(pid, signal.SIGKILL)
    _until(lambda: _process_started(pid) is None, 20, f"{name} does not end")


def wait_for(what: str, ready: Callable[[], bool], watched: list[Component], seconds: float = 180, every: float = 0.1) -> None:
    """Wait until `ready`, as long as all the watched components live."""
    deadline = time.monotonic() + seconds
    while not ready():
        for component in watched:
            component.check()
        if time.monotonic() > deadline:
            raise MeshError(f"{what}: not ready after {seconds:.0f} s; logs: {watched[0].log.parent if watched else '-'}")
        time.sleep(every)
