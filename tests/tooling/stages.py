"""Runs make targets one after the other, stops at the first that fails, and closes with what each took. Knows nothing of what they do."""
from __future__ import annotations

import subprocess
import sys
import time


def main(targets: list[str]) -> int:
    rows: list[tuple[str, str, str]] = []
    broken = None
    for target in targets:
        if broken:
            rows.append((target, "not run", ""))
            continue
        print(f"\n=== {target}", flush=True)
        started = time.monotonic()
        if subprocess.run(["make", "--no-print-directory", target], check=False).returncode != 0:
            broken = target
        rows.append((target, "FAILED" if target == broken else "ok", f"{time.monotonic() - started:5.0f} s"))
    print("\n=== summary")
    for target, result, seconds in rows:
        print(f"{target:8} {result:8} {seconds}".rstrip())
    if broken:
        print(f"\n{broken} failed; its output is above. Repeat it alone with: make {broken}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
