"""Every example runs: those of modules and filters, and the YAML of README, role READMEs and pages. One play runs them all, as written, in one order.

Three things are different from the text: the namespaces have names of this run; what would change the whole mesh is a check; and what cannot run at all
is named below with the reason. The folder `policies` of a page has a document for each namespace. An example that is neither run nor named fails the test,
and so does one that is named and has gone.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.modules import ApiServer
from tooling import tree

PREFIX = "meshops.istio_egress."
NAMESPACES = re.compile(r"(?<![\w.-])(demo|shop|istio-egress)(?![\w.-])")
NOT_RUN = {
    "docs/rbac.md": "rules for a Role, no tasks; tests/api gives an account exactly these",
    "examples/awx/README.md": "needs a controller; tests/mesh/test_awx.py runs the jobs that it describes",
}
DECLARED = [
    {PREFIX + "istio_egress_host": {"namespace": "demo", "policy": "given", "hosts": ["httpbin.org:80", "www.google.com"]}},
    {PREFIX + "istio_egress_gateway": {"namespace": "demo", "policy": "given-gateway", "hosts": ["edition.cnn.com"]}},
    {PREFIX + "istio_outbound_mode": {"namespace": "demo", "mode": "REGISTRY_ONLY"}},
]
BEFORE: dict[str, list[dict[str, Any]]] = {
    "istio_egress_check": DECLARED,
    "egress_svg": DECLARED,
    "istio_egress_gateway_deploy": [{"kubernetes.core.k8s": {"api_version": "v1", "kind": "Namespace", "name": "istio-egress"}}],
    "istio_egress_explain": DECLARED,
    "roles/egress_verify/README.md": DECLARED,
}
"""What an example relies on that its text does not say."""
LONGEST_RUN = 1800
"""Seconds, on a machine that is busy with other tests; it takes minutes, so it has a make target of its own, `make examples`."""


@dataclass(frozen=True)
class Example:
    source: str
    task: dict[str, Any]

    @property
    def mesh_wide(self) -> bool:
        """Whether it concerns more than a namespace: modules that are given none act on the whole mesh, or on all that was ever made in it."""
        return any("namespace" not in (arguments or {}) for action, arguments in self.task.items() if action.startswith(PREFIX))

    def in_play(self) -> dict[str, Any]:
        return {**self.task, "check_mode": True} if self.mesh_wide else self.task


def texts() -> Iterator[tuple[str, str]]:
    """Each YAML text with tasks in it, and where it stands."""
    for path in sorted(path for kind in ("filter", "modules") for path in (tree.CHECKOUT / "plugins" / kind).glob("*.py")):
        yield path.stem, re.search(r'^EXAMPLES = r"""\n(.*?)^"""', path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
    patterns = ("README.md", "roles/*/README.md", "docs/**/*.md", "examples/**/*.md")
    for path in sorted(page for pattern in patterns for page in tree.CHECKOUT.glob(pattern)):
        for block in re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            yield str(path.relative_to(tree.CHECKOUT)), block


def tasks(items: Any) -> list[dict[str, Any]]:
    """The tasks of a list of tasks or plays; for the document of a policy, a task that reads it."""
    if isinstance(items, dict):
        return [{PREFIX + "istio_egress_policy": {"namespace": "demo", "state": "rendered", "policy": items}}]
    return [task for item in items for task in (item["tasks"] if "hosts" in item else [item])]


@pytest.fixture(scope="module")
def place(api: ApiServer) -> Iterator[str]:
    """What the namespaces of the examples are called here, with their own name after it."""
    name = f"examples-{secrets.token_hex(3)}"
    yield name
    for namespace in api.list("Namespace"):
        if namespace["metadata"]["name"].startswith(name):
            api.delete("Namespace", None, namespace["metadata"]["name"])


def test_every_example_runs(place: str, kubeconfig: Path, tmp_path: Path) -> None:
    written = list(texts())
    assert NOT_RUN.keys() <= {source for source, _text in written}, "what is named as not run is not there any more"
    here = {name: f"{place}-{name}" for name in ("demo", "shop", "istio-egress")}

    def localized(text: str) -> str:
        return NAMESPACES.sub(lambda found: here[found[1]], text)

    blocks: dict[str, list[dict[str, Any]]] = {}
    for source, text in written:
        if source not in NOT_RUN:
            found = [Example(source, task).in_play() for task in tasks(yaml.safe_load(localized(text)))]
            blocks.setdefault(source, yaml.safe_load(localized(json.dumps(BEFORE.get(source, []))))).extend(found)
    failed = [{"ansible.builtin.set_fact": {"failed": "{{ failed | default([]) + [source ~ ': ' ~ ansible_failed_task.name] }}"}}]
    tidy = [{PREFIX + "istio_egress_cleanup": {"namespace": here["demo"]}}]
    play = {
        "hosts": "localhost", "gather_facts": False,
        "tasks": [
            *({"ansible.builtin.include_role": {"name": PREFIX + "test_source"}, "vars": {"test_source_namespace": here[name]}} for name in ("demo", "shop")),
            *(
                # a host goes one way: what one example sends through a gateway, the next may declare for direct use
                {"name": source, "vars": {"source": source}, "block": block, "rescue": failed, "always": tidy if "gateway" in str(block) else []}
                for source, block in blocks.items()
            ),
            {"ansible.builtin.assert": {"that": "failed | default([]) == []", "fail_msg": "{{ failed | default([]) | join(', ') }}"}},
        ],
    }  # fmt: skip
    (tmp_path / "policies").mkdir()
    for name in ("demo", "shop"):
        (tmp_path / "policies" / f"{here[name]}.yml").write_text("hosts: [httpbin.org:80]\n", encoding="utf-8")
    playbook = tmp_path / "examples.yml"
    playbook.write_text(yaml.safe_dump([play], sort_keys=False, width=1000), encoding="utf-8")
    done = subprocess.run(
        ["ansible-playbook", playbook], env={**os.environ, "K8S_AUTH_KUBECONFIG": str(kubeconfig), "ANSIBLE_NOCOLOR": "1"}, check=False, cwd=tmp_path,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONGEST_RUN,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
