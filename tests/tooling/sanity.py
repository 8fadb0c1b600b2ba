"""Runs every test of `ansible-test sanity` on this checkout, with the ansible-core and the Python of the interpreter that runs this file.

Two things make it more than one command. ansible-test follows links, so it gets a copy of the checkout. And it wants to download a script that
bootstraps pip from a host that build machines often cannot reach, and drops pip's environment variables, so it gets a home directory below the
cache with a script that does the same from the package index, and pip's settings in a file.
No test is left out and no ignore file is allowed. Knows nothing of clusters.
"""
from __future__ import annotations

import ast
import configparser
import filecmp
import os
import shutil
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import tree
from unchanged import files

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
WORK = tree.own_directory("sanity") / f"core{version('ansible-core')}-python{PYTHON}"
HOME = tree.CACHE / "home"  # short, because the shebangs of ansible-test's own venvs below it have to stay under 127 characters
ANSIBLE_TEST = Path(sys.executable).with_name("ansible-test")
# Two lanes for two cores. Tests without requirements of their own share one virtual environment, which ansible-test does not lock: they stay together.
HEAVY = ["ansible-doc", "import", "validate-modules"]
BOOTSTRAP_PIP = '''\
"""Stands in for the get-pip script that ansible-test downloads: same arguments, pip taken from the interpreter and the package index."""
import subprocess
import sys

# in a process of its own, because ensurepip switches pip's configuration off for the process that it runs in
subprocess.check_call([sys.executable, "-m", "ensurepip"])
arguments = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *arguments]))
'''


def mirror(paths: list[Path], target: Path) -> None:
    """Make `target` hold exactly `paths`. Files that are equal stay untouched, and so does ansible-test's own tests/output."""
    for present in sorted(target.rglob("*"), reverse=True):
        relative = present.relative_to(target)
        if relative.parts[:2] == ("tests", "output"):
            continue
        if present.is_dir() and not present.is_symlink():
            if not any(present.iterdir()):
                present.rmdir()
        elif relative not in paths:
            present.unlink()
    for relative in paths:
        source, copy = tree.CHECKOUT / relative, target / relative
        if copy.is_file() and not copy.is_symlink() and not source.is_symlink() and filecmp.cmp(source, copy, shallow=False):
            shutil.copymode(source, copy)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        shutil.copy2(source, copy, follow_symlinks=False)


def make_home() -> None:
    """The home of ansible-test: pip's bootstrap where it looks first (this ansible-core says for which version), and pip's settings."""
    from ansible_test._internal.python_requirements import get_venv_packages

    wanted = get_venv_packages(SimpleNamespace(version=PYTHON))["pip"]
    script = HOME / ".ansible" / "test" / "cache" / f"get_pip_{wanted.replace('.', '_')}.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(BOOTSTRAP_PIP, encoding="utf-8")

    def pip(*arguments: str) -> str:
        return subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True, capture_output=True, text=True).stdout

    settings = configparser.RawConfigParser()
    settings["global"] = {"cache-dir": pip("cache", "dir").strip()}
    # section.name='value', and :env:.name='value' for the environment, which wins
    for line in sorted(pip("config", "list").splitlines(), key=lambda line: line.startswith(":env:")):
        key, value = line.split("=", 1)
        section, name = key.rsplit(".", 1)
        section = "global" if section == ":env:" else section
        if not settings.has_section(section):
            settings.add_section(section)
        settings.set(section, name, ast.literal_eval(value))
    place = HOME / ".config" / "pip" / "pip.conf"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch(mode=0o600)  # the address of an index may hold a password
    with place.open("w", encoding="utf-8") as file:
        settings.write(file)


class Lane(threading.Thread):
    """One ansible-test process in a copy of its own; tells which test it is at, and keeps the whole output in a log."""

    def __init__(self, name: str, paths: list[Path], selection: list[str]) -> None:
        super().__init__(name=name)
        self.root = WORK / name
        self.paths = paths
        self.command = [str(ANSIBLE_TEST), "sanity", "--local", "--python", PYTHON, "--color", "no", *selection]
        self.log = self.root / "log.txt"
        self.status = -1

    def run(self) -> None:
        copy = self.root / "ansible_collections" / "meshops" / "istio_egress"
        copy.mkdir(parents=True, exist_ok=True)
        mirror(self.paths, copy)
        environment = {**os.environ, "HOME": str(HOME), "PATH": f"{ANSIBLE_TEST.parent}{os.pathsep}{os.environ['PATH']}"}
        environment.pop("ANSIBLE_COLLECTIONS_PATH", None)
        with self.log.open("w", encoding="utf-8") as log, subprocess.Popen(
                self.command, cwd=copy, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout:
                log.write(line)
                if line.startswith("Running sanity test "):
                    print("sanity:", line.split('"')[1], flush=True)
        self.status = process.returncode

    def complaints(self) -> str:
        """What ansible-test says is wrong, without pip's talk; the whole log when it died before it could say anything."""
        output = self.log.read_text(encoding="utf-8")
        lines = [line for line in output.splitlines() if line.startswith(("ERROR:", "FATAL:"))]
        return "\n".join(lines) if lines else output


def main() -> int:
    paths = files()
    if ignored := [path for path in paths if path.parts[:2] == ("tests", "sanity") and path.name.startswith("ignore")]:
        print(f"sanity: {ignored[0]} is not allowed here: fix what it hides, then delete it.")
        return 1
    print(f"sanity: ansible-test of ansible-core {version('ansible-core')} on {len(paths)} files, Python {PYTHON}", flush=True)
    started = time.monotonic()
    make_home()
    lanes = [
        Lane("light", paths, [argument for test in HEAVY for argument in ("--skip-test", test)]),
        Lane("heavy", paths, [argument for test in HEAVY for argument in ("--test", test)]),
    ]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    failed = [lane for lane in lanes if lane.status != 0]
    for lane in failed:
        print(f"{lane.complaints()}\nsanity: whole output in {lane.log}")
    if failed:
        return 1
    print(f"sanity: all tests green in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
