"""Finds the Pythons of this machine that the collection promises to run with. `setup` has to do it in sh, before there is any."""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

VERSIONS = ("3.13", "3.12", "3.11")


def interpreter(version: str) -> str | None:
    """A Python of this version that really runs: pyenv's shims are on PATH for versions that are not selected, too."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for candidate in [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))]:
        if candidate and subprocess.run([candidate, "-c", "import venv, ensurepip, ssl"], check=False, capture_output=True).returncode == 0:
            return str(candidate)
    return None


def newest() -> str:
    """The newest one here, with which the newest ansible-core runs."""
    return next(found for found in map(interpreter, VERSIONS) if found)
