"""Runs a command unless it passed before and nothing that it reads has changed since.

    unchanged.py NAME [--reads PATH ...] -- COMMAND ...

It reads the files that a commit of the checkout would hold, or those below PATH alone, and the packages of this interpreter's environment. What passed
is kept below the cache, under NAME, for every checkout of this machine. FORCE=1 in the environment runs the command anyway.
"""
from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

import tree


def files(*below: str) -> list[Path]:
    """What a commit of the working tree would hold, relative to the checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *below]
    listed = subprocess.run(command, cwd=tree.CHECKOUT, check=True, capture_output=True)
    return sorted(path for name in set(listed.stdout.decode().split("\0")) if name and os.path.lexists(tree.CHECKOUT / (path := Path(name))))


def fingerprint(command: list[str], paths: Iterable[Path]) -> str:
    """Changes with the command, with every byte, mode and link of the files, and with the tools that judge them."""
    tools = sorted(f"{found.name}=={found.version}" for found in distributions())
    digest = hashlib.sha256(f"{command} {sys.version} {tools}".encode())
    for path in paths:
        source = tree.CHECKOUT / path
        content = str(source.readlink()).encode() if source.is_symlink() else source.read_bytes()
        digest.update(f"{path}\0{source.lstat().st_mode:o}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs a command unless it passed before and nothing that it reads has changed since.")
    parser.add_argument("name")
    parser.add_argument("--reads", nargs="+", default=[], metavar="PATH")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    seen = fingerprint(arguments.command, files(*arguments.reads))
    passed = tree.CACHE / "passed" / arguments.name
    if not os.environ.get("FORCE") and passed.exists() and passed.read_text(encoding="utf-8") == seen:
        print(f"{arguments.name}: passed before, and nothing that it reads has changed since; FORCE=1 runs it anyway.")
        return 0
    code = subprocess.run(arguments.command, check=False).returncode
    if code == 0:
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.write_text(seen, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
