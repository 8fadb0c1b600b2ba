"""Runs make targets: lanes side by side, the targets of a lane one after the other. Knows nothing of what they do.

    stages.py lint,mesh unit,api        lint and then mesh, beside them unit and then api

The first lane's output is seen as it comes, that of the others when they end. After a failure nothing more is begun, and each target says what it took.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor


class Stages:
    def __init__(self, lanes: list[list[str]]) -> None:
        self._lanes = lanes
        self._rows: dict[str, tuple[str, str]] = {}
        self._broken: list[str] = []

    def run(self) -> int:
        with ThreadPoolExecutor(len(self._lanes)) as pool:
            list(pool.map(self._lane, self._lanes, [True] + [False] * len(self._lanes)))
        print("\n=== summary")
        for target in (target for lane in self._lanes for target in lane):
            result, seconds = self._rows.get(target, ("not run", ""))
            print(f"{target:8} {result:8} {seconds}".rstrip())
        for target in self._broken:
            print(f"\n{target} failed; its output is above. Repeat it alone with: make {target}")
        return 1 if self._broken else 0

    def _lane(self, targets: list[str], seen: bool) -> None:
        for target in targets:
            if self._broken:
                return
            title = f"\n=== {target}"
            if seen:
                print(title, flush=True)
            started = time.monotonic()
            output = {} if seen else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            done = subprocess.run(["make", "--no-print-directory", target], check=False, **output)
            if not seen:
                print(f"{title}\n{done.stdout}", flush=True)
            if done.returncode != 0:
                self._broken.append(target)
            self._rows[target] = ("ok" if done.returncode == 0 else "FAILED", f"{time.monotonic() - started:5.0f} s")


if __name__ == "__main__":
    sys.exit(Stages([lane.split(",") for lane in sys.argv[1:]]).run())
