"""The example for AWX as a controller runs it: ansible-runner, a private data directory, the four variables of the bearer token credential, a survey's strings.

The jobs are those of workflows in examples/awx/controller.yml; what it says about a node is what the job gets. Artifacts and events are
read where a controller reads them: in the event that ends a playbook, and in the counts per host. The job that proves is the second run of a playbook
which has the roles of all of them: it writes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ansible_runner
import pytest
import yaml

from api.modules import Account, ApiServer, documented_rights
from cluster.onemachine.layout import Run
from mesh.test_playbooks import is_write
from tooling import tree

EXAMPLE = tree.CHECKOUT / "examples" / "awx"
HTTPBIN, GOOGLE, CNN = "http://httpbin.org/headers", "https://www.google.com/", "http://edition.cnn.com/politics"


class Loader(yaml.SafeLoader):
    """Reads Ansible's ``!unsafe``, too."""


Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))
CONTROLLER = yaml.load((EXAMPLE / "controller.yml").read_text(encoding="utf-8"), Loader)
TEMPLATES = {template["name"]: template for template in CONTROLLER["controller_templates"]}
WORKFLOWS = {workflow["name"]: workflow for workflow in CONTROLLER["controller_workflows"]}
USED = ("test_source", "istio_outbound_mode", "istio_egress_host", "istio_egress_check", "istio_egress_policy", "Playbooks")
HOSTS, DOCUMENT = "Egress hosts of a namespace, with approval", "Document of a namespace, with approval"


@dataclass(frozen=True)
class Job:
    """What a controller keeps of a job."""

    status: str
    code: int
    output: str
    artifacts: dict[str, Any]
    changed: int
    diffs: list[Any]
    """One for each task that showed what it changes."""


RunNode = Callable[..., Job]


def nodes(workflow: str) -> dict[str, dict[str, Any]]:
    return {node["identifier"]: node for node in WORKFLOWS[workflow]["simplified_workflow_nodes"]}


@pytest.fixture(scope="module")
def place(namespace: Callable[..., str]) -> str:
    """The namespace of all jobs."""
    return namespace("awx")


@pytest.fixture(scope="module")
def account(api: ApiServer, place: str) -> Iterator[Account]:
    """It has the rights in the namespace that docs/rbac.md names for what the jobs use, and no others."""
    if not api.audit_log.exists():
        pytest.skip("makes an account as only the one-machine mesh lets it")
    rules = [rule for section in USED for rule in documented_rights(section, "Role in the namespace")]
    with Account(api, rules, within=place) as account:
        yield account


@pytest.fixture(scope="module")
def credential(account: Account) -> dict[str, str]:
    """What the credential type "OpenShift or Kubernetes API Bearer Token" gives a job."""
    content = yaml.safe_load(account.kubeconfig.read_text(encoding="utf-8"))
    return {
        "K8S_AUTH_HOST": content["clusters"][0]["cluster"]["server"],
        "K8S_AUTH_API_KEY": content["users"][0]["user"]["token"],
        "K8S_AUTH_VERIFY_SSL": "True",
        "K8S_AUTH_SSL_CA_CERT": content["clusters"][0]["cluster"]["certificate-authority"],
    }


@pytest.fixture(scope="module")
def run_node(credential: dict[str, str], place: str, tmp_path_factory: pytest.TempPathFactory) -> RunNode:
    """`run_node(NODE, workflow, change={}, **answers)`: the job of a workflow's node, with the answers of its survey.

    `change` replaces variables of the credential.
    """
    hosts = {host["name"]: host["variables"] for host in CONTROLLER["controller_hosts"]}

    def run(identifier: str, workflow: str = HOSTS, change: dict[str, str] | None = None, **answers: str) -> Job:
        node = nodes(workflow)[identifier]
        template = TEMPLATES[node["unified_job_template"]]
        defaults = {question["variable"]: question.get("default", "") for question in WORKFLOWS[workflow]["survey_spec"]["spec"]}
        assert {"egress_namespace", *answers} <= defaults.keys(), "a controller refuses what the survey does not ask for"
        data = tmp_path_factory.mktemp(identifier)
        shutil.copytree(EXAMPLE / "project", data / "project")
        for path, content in {
            "inventory/hosts.json": {"all": {"hosts": hosts}},
            "env/extravars": {**template["extra_vars"], **defaults, "egress_namespace": place, **answers},
            # a job starts with what the credential gives and nothing of the machine it runs on
            "env/envvars": {"ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"], **credential, **(change or {})},
            "env/settings": {"suppress_env_files": True},
        }.items():
            (data / path).parent.mkdir(exist_ok=True)
            (data / path).write_text(json.dumps(content), encoding="utf-8")
        arguments = [option for option, wanted in (("--check", node["job_type"] == "check"), ("--diff", node.get("diff_mode"))) if wanted]
        done = ansible_runner.run(private_data_dir=str(data), playbook=template["playbook"], cmdline=" ".join(arguments) or None, quiet=True)
        events = list(done.events)
        stats = [event["event_data"] for event in events if event["event"] == "playbook_on_stats"]
        diffs = [event["event_data"]["res"]["diff"] for event in events if event["event"] == "runner_on_ok" and event["event_data"]["res"].get("diff")]
        artifacts = stats[-1].get("artifact_data", {}) if stats else {}
        return Job(done.status, done.rc, done.stdout.read(), artifacts, (done.stats or {}).get("changed", {}).get("localhost", 0), diffs)

    return run


@pytest.fixture(autouse=True)
def no_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    """ansible-runner hands its own environment on; a job of a controller has no kubeconfig."""
    for name in [name for name in os.environ if name == "KUBECONFIG" or name.startswith("K8S_AUTH_")]:
        monkeypatch.delenv(name)


def test_the_workflow_checks_asks_applies_and_proves(run_node: RunNode, account: Account) -> None:
    order, node = [], next(iter(nodes(HOSTS)))
    while node:
        order.append(node)
        [node] = nodes(HOSTS)[node].get("success_nodes") or [None]
    assert order == ["check", "approve", "apply", "prove"]

    check = run_node("check")
    assert (check.status, check.code, check.artifacts) == ("successful", 0, {}), check.output
    shown = json.dumps(check.diffs)
    assert all(word in shown for word in ("httpbin.org", "www.google.com", "REGISTRY_ONLY")), "what is to be approved has to be seen"

    apply = run_node("apply")
    assert (apply.status, apply.code) == ("successful", 0), apply.output
    assert apply.changed > 0 and apply.diffs
    assert apply.artifacts == {"egress_results": {HTTPBIN: "200", GOOGLE: "200", CNN: "502"}}

    start = account.mark()
    prove = run_node("prove")
    assert [str(r) for r in account.requests_since(start) if is_write(r)] == []
    assert (prove.status, prove.code, prove.changed, prove.diffs) == ("successful", 0, 0, []), prove.output
    assert prove.artifacts == apply.artifacts


def test_a_job_that_disproves_fails_with_the_table_in_its_output(run_node: RunNode) -> None:
    job = run_node("apply", egress_hosts="httpbin.org:80", egress_declared_urls=f"{HTTPBIN}\n{GOOGLE}\n")
    assert (job.status, job.code) == ("failed", 2)
    assert "1 of 3 requests was not as expected" in job.output, job.output


def test_a_credential_with_the_ca_of_somebody_else_is_refused(run_node: RunNode, own_mesh: Run) -> None:
    job = run_node("prove", change={"K8S_AUTH_SSL_CA_CERT": str(own_mesh.cache.far_ca)})
    assert (job.status, job.code) == ("failed", 2)
    assert "certificate" in job.output, job.output


def test_undo_is_an_answer(run_node: RunNode) -> None:
    job = run_node("apply", egress_undo="true")
    assert (job.status, job.code) == ("successful", 0), job.output
    assert job.changed > 0


def test_a_document_is_an_answer(run_node: RunNode) -> None:
    job = run_node("apply", DOCUMENT, egress_document="mode: REGISTRY_ONLY\nhosts:\n  - httpbin.org:80\n")
    assert (job.status, job.code) == ("successful", 0), job.output
    verdicts = job.artifacts["egress_verify_results"]
    assert verdicts.pop("http://httpbin.org/") == "allowed"
    assert set(verdicts.values()) == {"blocked"}
