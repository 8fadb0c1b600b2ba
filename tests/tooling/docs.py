"""Builds the site of the documentation: the pages of docs/ and, from antsibull-docs, the reference of modules and roles. A warning of either is an error.

Needs ANSIBLE_COLLECTIONS_PATH from tree.py, and nothing from the network. The pages stay Markdown, so that they read well in the repository and on Galaxy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import tree

DOCS = tree.CHECKOUT / "docs"
OUTPUT = tree.CHECKOUT / "tests" / "output" / "docs"
BIN = Path(sys.executable).parent
COLLECTION = "meshops.istio_egress"


def assemble(source: Path) -> None:
    """What Sphinx reads: the pages, beside them the reference."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("docsite"))
    for page in (DOCS / "docsite").glob("*.md"):
        shutil.copy(page, source)
    reference = source / "reference"
    reference.mkdir(mode=0o755)
    generate = [BIN / "antsibull-docs", "collection", "--use-current", "--squash-hierarchy", "--fail-on-error", "--dest-dir", reference, COLLECTION]
    subprocess.run(generate, check=True, cwd=tree.link() / "ansible_collections" / COLLECTION.replace(".", "/"))


def main() -> int:
    source, site = OUTPUT / "source", OUTPUT / "html"
    assemble(source)
    shutil.rmtree(site, ignore_errors=True)
    options = ["-b", "html", "--fail-on-warning", "--keep-going", "--quiet", "-d", OUTPUT / "doctrees", "-c", DOCS / "docsite"]
    if subprocess.run([BIN / "sphinx-build", *options, source, site], check=False).returncode != 0:
        print("docs: the pages above have faults; the reference comes from the documentation strings in plugins/ and roles/*/meta/argument_specs.yml.")
        return 1
    print(f"docs: {site / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
