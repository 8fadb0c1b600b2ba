"""What the collection says about itself agrees with what is in it: action group, requirements, artifact."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tooling import tree

MODULES = sorted(path.stem for path in (tree.CHECKOUT / "plugins" / "modules").glob("*.py"))
ROLES = sorted(path.name for path in (tree.CHECKOUT / "roles").iterdir())
PLAYBOOKS = sorted(path.stem for path in (tree.CHECKOUT / "playbooks").glob("*.yml"))
BIN = Path(sys.executable).parent


def load(path: str) -> dict:
    return yaml.safe_load((tree.CHECKOUT / path).read_text(encoding="utf-8"))


def action_group() -> list[str | dict]:
    return load("meta/runtime.yml")["action_groups"]["istio_egress"]


def test_the_action_group_is_all_modules_and_follows_kubernetes_core() -> None:
    """One `module_defaults: group/meshops.istio_egress.istio_egress` has to reach every module of ours and of kubernetes.core."""
    assert sorted(member for member in action_group() if isinstance(member, str)) == MODULES
    assert {"metadata": {"extend_group": ["kubernetes.core.k8s"]}} in action_group()


@pytest.fixture(scope="module")
def documentation() -> dict[str, dict]:
    names = [f"meshops.istio_egress.{name}" for name in MODULES]
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(tree.link())}
    shown = subprocess.run([BIN / "ansible-doc", "--type", "module", "--json", *names], env=environment, check=False, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_documents_its_attributes(documentation: dict[str, dict], name: str) -> None:
    attributes = documentation[f"meshops.istio_egress.{name}"]["doc"]["attributes"]
    assert attributes["action_group"]["membership"] == ["meshops.istio_egress.istio_egress"]
    assert attributes["check_mode"]["support"] and attributes["diff_mode"]["support"]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_since_when_it_exists(documentation: dict[str, dict], name: str) -> None:
    assert documentation[f"meshops.istio_egress.{name}"]["doc"]["version_added"]


@pytest.mark.parametrize("name", ROLES)
def test_the_arguments_of_a_role_are_its_defaults(name: str) -> None:
    """A default stands in two files: one is what applies, the other what a reader of ansible-doc is told."""
    options = load(f"roles/{name}/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert {option: value["default"] for option, value in options.items() if "default" in value} == load(f"roles/{name}/defaults/main.yml")
    assert [option for option in options if not option.startswith(f"{name}_")] == []


def test_playbook_role_and_module_mean_the_same_policy(documentation: dict[str, dict]) -> None:
    """A document that one of them applied would be a second policy to the others."""
    [play] = load("playbooks/policy.yml")
    module = documentation["meshops.istio_egress.istio_egress_policy"]["doc"]["options"]["name"]["default"]
    assert play["vars"]["egress_policy"] == load("roles/egress_policy/defaults/main.yml")["egress_policy_name"] == module


@pytest.mark.parametrize("name", ROLES)
def test_a_role_can_be_read_about_and_is_tried(name: str) -> None:
    assert f"meshops.istio_egress.{name}" in (tree.CHECKOUT / "roles" / name / "README.md").read_text(encoding="utf-8")
    assert load(f"roles/{name}/meta/main.yml")["galaxy_info"]["description"]
    scenario = tree.CHECKOUT / "extensions" / "molecule" / name
    assert {path.name for path in scenario.glob("*.yml")} >= {"molecule.yml", "converge.yml", "verify.yml", "cleanup.yml"}
    assert f"meshops.istio_egress.{name}" in (scenario / "converge.yml").read_text(encoding="utf-8")


def test_pages_name_every_module_playbook_and_role() -> None:
    readme, playbooks, rights = ((tree.CHECKOUT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/scenarios.md", "docs/rbac.md"))
    assert [name for name in MODULES if f"`{name}`" not in readme] == []
    assert [name for name in MODULES if f"## {name}\n" not in rights] == []
    assert [name for name in PLAYBOOKS if f"`{name}`" not in playbooks] == []
    assert [name for name in ROLES if f"roles/{name}/README.md" not in readme] == []


def requirements(path: str) -> Iterator[Requirement]:
    for line in (tree.CHECKOUT / path).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield Requirement(line)


def test_execution_environments_and_tests_agree_on_the_kubernetes_client() -> None:
    promised, tried = ({r.name: r.specifier for r in requirements(path)} for path in ("meta/ee-requirements.txt", "tests/requirements.txt"))
    for version, good in [("28.1.0", False), ("29.0.0", True), ("35.0.0", True), ("36.0.0", False), ("36.0.1", False), ("36.0.2", True), ("37.0.2", True)]:
        assert (version in promised["kubernetes"]) == (version in tried["kubernetes"]) == good, version
    assert "PyYAML" in promised


def test_execution_environment_files_exist() -> None:
    named = load("meta/execution-environment.yml")["dependencies"]
    assert all((tree.CHECKOUT / path).is_file() for path in named.values())


def test_the_artifact_holds_what_users_need_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run([BIN / "ansible-galaxy", "collection", "build", "--output-path", tmp_path, tree.CHECKOUT], check=True, capture_output=True)
    [artifact] = tmp_path.iterdir()
    with tarfile.open(artifact) as archive:
        held = {name.split("/")[0] for name in archive.getnames()}
    needed = {"FILES.json", "LICENSE", "MANIFEST.json", "README.md", "changelogs", "meta", "plugins"}
    welcome = {"CHANGELOG.rst", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "docs", "examples", "extensions", "playbooks", "roles"}
    assert needed <= held
    assert held <= needed | welcome
