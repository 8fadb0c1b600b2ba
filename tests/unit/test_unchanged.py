"""What passed is not run again before something that it reads has changed; what failed is."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tooling import tree


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, which finds its neighbour as programs do: beside itself."""
    monkeypatch.syspath_prepend(tree.CHECKOUT / "tests" / "tooling")
    return importlib.import_module("unchanged")


@pytest.fixture
def checkout(unchanged: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    (root / "docs").mkdir(parents=True)
    (root / "code.py").write_text("1")
    (root / "docs" / "page.md").write_text("1")
    subprocess.run(["git", "init", "--quiet", root], check=True)
    monkeypatch.setattr(unchanged.tree, "CHECKOUT", root)
    monkeypatch.setattr(unchanged.tree, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("FORCE", raising=False)
    return root


@pytest.fixture
def runs(unchanged: ModuleType, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`runs("--reads", "docs", code=0)`: how often the command had been run after this call, which must end with its code."""
    log = tmp_path / "runs"
    log.touch()

    def run(*options: str, code: int = 0) -> int:
        monkeypatch.setattr("sys.argv", ["unchanged.py", "judge", *options, "--", "sh", "-c", f'echo >> "{log}"; exit {code}'])
        assert unchanged.main() == code
        return len(log.read_text().splitlines())

    return run


def test_what_passed_waits_for_a_change(checkout: Path, runs: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [runs(), runs()] == [1, 1]
    (checkout / "code.py").write_text("2")
    assert [runs(), runs()] == [2, 2]
    (checkout / "new.py").touch()
    assert [runs(), runs()] == [3, 3]
    (checkout / "code.py").chmod(0o755)
    assert runs() == 4
    monkeypatch.setenv("FORCE", "1")
    assert runs() == 5


def test_what_failed_is_run_again(runs: Callable[..., int]) -> None:
    assert [runs(code=1), runs(code=1)] == [1, 2]


def test_what_it_does_not_read_may_change(checkout: Path, runs: Callable[..., int]) -> None:
    assert runs("--reads", "docs") == 1
    (checkout / "code.py").write_text("2")
    assert runs("--reads", "docs") == 1
    (checkout / "docs" / "page.md").write_text("2")
    assert runs("--reads", "docs") == 2
