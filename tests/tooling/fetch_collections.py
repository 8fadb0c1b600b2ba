"""Fetches the collections that galaxy.yml depends on, out of the Python package `ansible`, into the cache.

The package holds every community collection (50 MB packed, 500 MB unpacked); only the wanted ones are unpacked. Run by `setup` in its venv.
"""
from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import yaml

import tree


def main() -> None:
    wanted = yaml.safe_load((tree.CHECKOUT / "galaxy.yml").read_text(encoding="utf-8"))["dependencies"]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                        "--no-deps", "--only-binary", ":all:", "--dest", scratch, "ansible"], check=True)
        [wheel] = Path(scratch).glob("ansible-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in wanted:
                prefix = f"ansible_collections/{name.replace('.', '/')}/"
                members = [member for member in archive.namelist() if member.startswith(prefix)]
                if not members:
                    sys.exit(f"{wheel.name} does not hold {name}, which galaxy.yml depends on.\n"
                             f"Put the collection into {tree.FETCHED} by other means, or drop the dependency.")
                shutil.rmtree(tree.FETCHED / name.replace(".", "/"), ignore_errors=True)
                archive.extractall(tree.FETCHED.parent, members)


if __name__ == "__main__":
    main()
