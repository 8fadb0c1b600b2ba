"""The one-machine mesh takes no stranger's process for its own, and no name that would collide."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.onemachine import machine
from cluster.onemachine.layout import Cache, MeshError, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(Cache(tmp_path), "unit")
    run.root.mkdir(parents=True)
    return run


def own_state(**changes: object) -> dict:
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return {"pid": os.getpid(), "started": started, "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(), **changes}


def test_a_run_is_known_by_pid_start_time_and_boot(run: Run) -> None:
    run.write_state(own_state())
    assert machine.pid_of(run) == os.getpid()


@pytest.mark.parametrize("change", [{"started": "1"}, {"boot": "another"}, {"pid": 2**22 + 1}])
def test_a_pid_that_belongs_to_somebody_else_is_not_taken(run: Run, change: dict) -> None:
    run.write_state(own_state(**change))
    assert machine.pid_of(run) is None


def test_a_torn_state_file_is_no_run(run: Run) -> None:
    (run.root / "state.json").write_text('{"pid": 1')
    assert machine.pid_of(run) is None


def test_processes_of_a_run_are_found_by_their_mark(run: Run) -> None:
    sleeper = [sys.executable, "-c", "input()"]
    ours = subprocess.Popen(sleeper, stdin=subprocess.PIPE, env={**os.environ, machine.MARK: str(run.root)})
    other = subprocess.Popen(sleeper, stdin=subprocess.PIPE, env={**os.environ, machine.MARK: f"{run.root}-2"})
    try:
        assert machine._marked(run) == [ours.pid]
    finally:
        for process in (ours, other):
            process.communicate(b"\n")


@pytest.mark.parametrize("name", ["", "Mesh", "a/b", "..", "-a", "a" * 21, "a b"])
def test_names_that_cannot_be_a_folder_and_a_cgroup_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="--name"):
        Run(Cache(tmp_path), name)
