"""Builds the artifact, looks at what is in it, and lets Galaxy's importer judge it. Knows nothing of clusters; `release` goes on from here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import tree

OUTPUT = tree.CHECKOUT / "tests" / "output" / "release"
BIN = Path(sys.executable).parent
COLLECTION = "meshops.istio_egress"
MOST = 1_000_000
"""Bytes of an artifact; what is bigger holds something that no user asked for."""
FOR_USERS = {
    "CHANGELOG.rst", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md", "changelogs", "docs", "examples", "meta",
    "playbooks", "plugins", "roles",
}  # fmt: skip
IMPORTER = "galaxy-importer>=0.4.30,<1"


def say(text: str) -> None:
    print(f"artifact: {text}", flush=True)


def run(*command: str | Path, **keywords: object) -> str:
    """The output of a command; when it fails, ends here with that output."""
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **keywords)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))} failed; its output is above.")
    return done.stdout


def build() -> Path:
    shutil.rmtree(OUTPUT, ignore_errors=True)
    run(BIN / "ansible-galaxy", "collection", "build", "--output-path", OUTPUT, tree.CHECKOUT)
    [artifact] = OUTPUT.glob("*.tar.gz")
    return artifact


def look_into(artifact: Path) -> None:
    """Everything in it is meant for users, and is in the repository: a build takes whatever lies in the directory."""
    with tarfile.open(artifact) as archive:
        held = {Path(member.name) for member in archive.getmembers() if member.isfile()}
    tracked = {Path(name) for name in run("git", "ls-files", "-z", cwd=tree.CHECKOUT).split("\0") if name}
    stray = sorted(str(path) for path in held if path.parts[0] not in FOR_USERS or path not in tracked | {Path("FILES.json"), Path("MANIFEST.json")})
    if stray:
        sys.exit(f"artifact: it holds what is not for users or not in git: {', '.join(stray)}\nAdd it to build_ignore of galaxy.yml, or to git.")
    if artifact.stat().st_size > MOST:
        sys.exit(f"artifact: {artifact.name} has {artifact.stat().st_size:,} bytes, more than {MOST:,}; see what is in it with tar tzvf {artifact}")
    say(f"{artifact.name}: {len(held)} files, {artifact.stat().st_size:,} bytes")


def environment(place: Path, *requirements: str, python: str = sys.executable) -> Path:
    """The programs of a new virtual environment."""
    run(python, "-m", "venv", place)
    run(place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    return place / "bin"


def importer() -> Path:
    """The programs of an environment with Galaxy's importer, kept below the cache: it pins old releases of what others use."""
    place = tree.CACHE / "importer"
    stamp, wanted = place / ".requirements", f"{IMPORTER} {sys.version}"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(place, ignore_errors=True)
        environment(place, IMPORTER)
        stamp.write_text(wanted, encoding="utf-8")
    return place / "bin"


def judge(artifact: Path, lint: bool) -> None:
    """What Galaxy does with an upload, `lint` with its ansible-lint: an older release of the one that `make lint` has, and half of the time."""
    programs = importer()
    with tempfile.TemporaryDirectory() as scratch:
        # The linter that the importer runs wants to see what the playbooks refer to, and looks for collections where Python does, nowhere else.
        collections = Path(scratch) / "python" / "ansible_collections"
        shutil.copytree(tree.FETCHED, collections)
        shutil.unpack_archive(artifact, collections / COLLECTION.replace(".", "/"))
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        variables = {**os.environ, "PATH": path, "PYTHONPATH": str(collections.parent), "GALAXY_IMPORTER_RUN_ANSIBLE_LINT": str(lint)}
        told = run(programs / "python", "-m", "galaxy_importer.main", artifact, env=variables, cwd=scratch)
    if complaints := [line for line in told.splitlines() if re.match(r"(WARNING|ERROR)", line)]:
        sys.exit("\n".join([*complaints, "artifact: this is what Galaxy would say to an upload; see above."]))
    say("galaxy-importer has nothing to say")


def make(lint: bool) -> Path:
    """The artifact, judged."""
    artifact = build()
    look_into(artifact)
    judge(artifact, lint)
    return artifact


if __name__ == "__main__":
    make(lint=False)
