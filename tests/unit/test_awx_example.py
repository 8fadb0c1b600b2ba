"""The example for AWX: its data fits together, its playbook finds those of the collection, and an execution environment can be made of what is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tooling import tree

EXAMPLE = tree.CHECKOUT / "examples" / "awx"
BIN = Path(sys.executable).parent
PLAYBOOKS = sorted(path.stem for path in (tree.CHECKOUT / "playbooks").glob("*.yml"))


class Loader(yaml.SafeLoader):
    """Reads Ansible's ``!unsafe``, too."""


Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))


@pytest.fixture(scope="module")
def data() -> dict:
    return yaml.load((EXAMPLE / "controller.yml").read_text(encoding="utf-8"), Loader)


def names(data: dict, variable: str) -> set[str]:
    return {item["name"] for item in data[variable]}


def test_templates_name_what_the_data_makes(data: dict) -> None:
    for template in data["controller_templates"]:
        assert template["project"] in names(data, "controller_projects")
        assert template["inventory"] in names(data, "controller_inventories")
        assert set(template["credentials"]) <= names(data, "controller_credentials")
        assert template["execution_environment"] in names(data, "controller_execution_environments")
        assert (EXAMPLE / "project" / template["playbook"]).is_file()
        assert template["extra_vars"]["egress_playbook"] in PLAYBOOKS


def test_nodes_of_a_workflow_name_templates_and_each_other_and_prompt_for_what_templates_ask(data: dict) -> None:
    templates = {template["name"]: template for template in data["controller_templates"]}
    for workflow in data["controller_workflows"]:
        nodes = workflow["simplified_workflow_nodes"]
        known = {node["identifier"] for node in nodes}
        for node in nodes:
            assert set(node.get("success_nodes", [])) <= known
            if "approval_node" in node:
                continue
            template = templates[node["unified_job_template"]]
            assert [prompt for prompt in ("job_type", "diff_mode") if prompt in node and not template[f"ask_{prompt}_on_launch"]] == []


def test_who_may_launch_sets_what_the_survey_asks_and_nothing_else(data: dict) -> None:
    """Other variables, egress_playbook among them, are taken where ask_variables_on_launch says so alone (AWX, _accept_or_ignore_variables)."""
    surveys = {template["name"]: template["survey_spec"] for template in data["controller_templates"]}
    for launched in data["controller_templates"] + data["controller_workflows"]:
        assert launched["survey_enabled"] and launched["ask_variables_on_launch"] is False, launched["name"]
        assert not {"egress_playbook", "egress_scope"} & {question["variable"] for question in launched["survey_spec"]["spec"]}
    for workflow in data["controller_workflows"]:
        for node in workflow["simplified_workflow_nodes"]:
            assert "approval_node" in node or surveys[node["unified_job_template"]] == workflow["survey_spec"]


def test_a_survey_asks_for_variables_that_its_playbook_has(data: dict) -> None:
    for template in data["controller_templates"]:
        [play] = yaml.safe_load((tree.CHECKOUT / "playbooks" / f"{template['extra_vars']['egress_playbook']}.yml").read_text(encoding="utf-8"))
        asked = [question["variable"] for question in template["survey_spec"]["spec"]]
        assert asked and set(asked) <= play["vars"].keys()


@pytest.mark.parametrize("playbook", ["demo", "service_entries"])
def test_the_project_runs_the_playbook_that_is_named(playbook: str) -> None:
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(tree.link())}
    command = [BIN / "ansible-playbook", "--list-tasks", EXAMPLE / "project" / "egress.yml", "-e", f"egress_playbook={playbook}"]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "play #1" in done.stdout


@pytest.mark.skipif(not (BIN / "ansible-builder").exists(), reason="ansible-builder is not in this environment")
def test_ansible_builder_finds_what_the_collection_needs(tmp_path: Path) -> None:
    def build(*arguments: str | Path) -> str:
        done = subprocess.run([BIN / "ansible-builder", *arguments], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    found = yaml.safe_load(build("introspect", tree.link()))
    ours = [line for line in [*found["python"], *found["system"]] if line.endswith("# from collection meshops.istio_egress")]
    assert [re.split(r"[^\w.-]", line)[0] for line in ours] == ["kubernetes"]  # PyYAML comes with ansible-core, and nothing of the system is needed

    build("create", "--file", EXAMPLE / "execution-environment.yml", "--context", tmp_path, "--output-filename", "Containerfile")
    assert (tmp_path / "Containerfile").is_file()
    assert yaml.safe_load((tmp_path / "_build" / "requirements.yml").read_text(encoding="utf-8")) == {"collections": ["meshops.istio_egress"]}
