"""What roles make of variables and results, run by Ansible without a cluster."""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule

from tooling import tree

BIN = Path(sys.executable).parent
YAML = [path for part in ("roles", "playbooks") for path in sorted((tree.CHECKOUT / part).rglob("*.yml"))]


ROLES = ("egress_host", "egress_gateway", "egress_gateway_deploy", "outbound_mode", "egress_policy")
STUB = """
import json
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(argument_spec=json.loads({spec!r}))
module.exit_json(took=module.params, **json.loads({result!r}))
"""
"""A module that has the options of one of ours, and returns what it was asked for."""
RESULT: dict[str, Any] = {
    "hosts": [], "through_gateways": [], "policy": {}, "proxies": {}, "mode": "ALLOW_ANY", "previous_mode": "ALLOW_ANY", "source": "",
    "gateway": "", "installed_by": "", "found_by": "", "found": [], "ports": [], "ready": 0,
}  # fmt: skip
"""What roles look at when they say what came of it."""


class Started(Exception):
    """The module has said what it takes; no further."""


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with the roles of the collection, and stubs in place of its modules."""
    collection = tmp_path / "ansible_collections" / "meshops" / "istio_egress"
    (collection / "plugins" / "modules").mkdir(parents=True)
    (collection / "roles").symlink_to(tree.CHECKOUT / "roles")

    def start(_self: AnsibleModule, argument_spec: dict[str, Any], **_keywords: Any) -> None:
        raise Started(json.loads(json.dumps(argument_spec, default=str), object_hook=lambda part: {k: v for k, v in part.items() if k != "fallback"}))

    monkeypatch.setattr(AnsibleModule, "__init__", start)
    for path in (tree.CHECKOUT / "plugins" / "modules").glob("*.py"):
        with pytest.raises(Started) as started:
            importlib.import_module(f"ansible_collections.meshops.istio_egress.plugins.modules.{path.stem}").main()
        stub = STUB.format(spec=json.dumps(started.value.args[0]), result=json.dumps(RESULT))
        (collection / "plugins" / "modules" / path.name).write_text(stub, encoding="utf-8")
    return tmp_path


def play(tmp_path: Path, *tasks: dict[str, Any], collections: Path | None = None) -> str:
    """The output of a play of the tasks."""
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": list(tasks)}]), encoding="utf-8")
    wanted = {"ANSIBLE_COLLECTIONS_PATH": str(collections or tree.link()), "ANSIBLE_SHOW_CUSTOM_STATS": "1", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run([BIN / "ansible-playbook", playbook], env={**os.environ, **wanted}, check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_roles_take_the_text_of_a_survey(stubs: Path, tmp_path: Path) -> None:
    answers = {
        "egress_host_namespace": "demo", "egress_host_hosts": "a.example\nb.example:80\n", "egress_host_export_to": ".\nother\n",
        "egress_host_purge": "true",
        "egress_gateway_namespace": "demo", "egress_gateway_hosts": "a.example:80\n", "egress_gateway_export_to": ".\nother\n",
        "egress_gateway_allow_from": "demo\nother/web",
        "egress_gateway_deploy_ports": "80\n15443\n", "egress_gateway_deploy_replicas": "", "egress_gateway_deploy_drain_timeout": 0,
        "outbound_mode_namespace": "demo", "outbound_mode_mode": "", "outbound_mode_selector": "app=web\ntier=front\n",
        "egress_policy_namespace": "demo", "egress_policy_max_delete": 0, "egress_policy_purge": "false",
    }  # fmt: skip
    took = tmp_path / "took"
    runs = [{"ansible.builtin.include_role": {"name": f"meshops.istio_egress.{role}"}, "vars": answers} for role in ROLES]
    every = "{{ {" + ", ".join(f"'{role}': {role}_result.took" for role in ROLES) + "} | to_json }}"
    shown = play(tmp_path, *runs, {"ansible.builtin.copy": {"content": every, "dest": str(took)}}, collections=stubs)
    seen = json.loads(took.read_text(encoding="utf-8"))

    assert "namespace demo, pods with app=web, tier=front" in shown
    expected: dict[str, dict[str, Any]] = {
        "egress_host": {"export_to": [".", "other"], "purge": True},
        "egress_gateway": {"export_to": [".", "other"], "allow_from": ["demo", "other/web"]},
        "egress_gateway_deploy": {"ports": [80, 15443], "replicas": None, "drain_timeout": 0},
        "outbound_mode": {"mode": None, "selector": {"app": "web", "tier": "front"}},
        "egress_policy": {"max_delete": 0, "purge": False},
    }
    assert {role: {option: seen[role][option] for option in options} for role, options in expected.items()} == expected


def test_namespaces_that_may_be_reached_are_a_list_or_text(tmp_path: Path) -> None:
    role = tree.CHECKOUT / "roles" / "egress_enforce"
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text(encoding="utf-8"))
    of_the_role = {"ansible.builtin.include_vars": str(role / "vars" / "main.yml")}
    show = {"ansible.builtin.debug": {"msg": "to {{ __egress_enforce_to_pods | map(attribute='to') | flatten | to_json(separators=(',', ':')) }}"}}
    answers = ["", "one\ntwo\n", ["one", "two"]]
    shown = play(tmp_path, of_the_role, *({**show, "vars": {**defaults, "egress_enforce_namespace": "demo", "egress_enforce_namespaces": a}} for a in answers))
    one, two, three = re.findall(r'"to (.*)"', shown)
    assert json.loads(one.replace("\\", "")) == [{"namespaceSelector": {}}]
    [names] = [part["namespaceSelector"]["matchExpressions"][0]["values"] for part in json.loads(two.replace("\\", ""))]
    assert names == ["demo", "istio-system", "kube-system", "one", "two"] and two == three


def test_a_cluster_may_give_the_test_source_its_user(tmp_path: Path) -> None:
    role = tree.CHECKOUT / "roles" / "test_source"
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text(encoding="utf-8"))
    of_the_role = {"ansible.builtin.include_vars": str(role / "vars" / "main.yml")}
    container = "__test_source_wanted[1].spec.template.spec.containers[0]"
    show = {"ansible.builtin.debug": {"msg": f"> {{{{ {container}.securityContext | to_json | b64encode }}}}"}}
    given = {**defaults, "test_source_namespace": "demo"}
    shown = play(tmp_path, of_the_role, {**show, "vars": given}, {**show, "vars": {**given, "test_source_user": ""}})
    named, free = (json.loads(base64.b64decode(said)) for said in re.findall(r'"> (.*)"', shown))
    assert named == {**free, "runAsUser": 65532} and free["runAsNonRoot"] is True


def test_silence_with_the_policy_is_that_of_the_policy_only_where_the_url_answers_without(tmp_path: Path) -> None:
    """Statuses before the policy, beside the gateway, and with the policy; what came of a request that was not made is empty."""
    cases = {
        ("200", "", "000"): "enforced: https://a.example/ around the sidecar of pod p: before the policy 200, with the policy no answer",
        ("", "200", "000"): "enforced: https://a.example/ around the sidecar of pod p: from the gateway 200, with the policy no answer",
        ("", "000", "200"): "WARNING: NOT enforced, the network plugin of this cluster lets the pods out: https://a.example/",
        ("000", "", "000"): "WARNING: not known whether it is enforced: https://a.example/ could not be reached without the policy, either",
        ("", "000", "000"): "WARNING: not known whether it is enforced: https://a.example/ could not be reached without the policy, either",
        ("", "", "000"): "WARNING: not known whether it is enforced: https://a.example/ has no answer with the policy, and beside the gateway x/y it could not",
        ("200", "", ""): "WARNING: not known whether it is enforced: the container istio-proxy of pod p has no curl",
    }
    pod = {"resources": [{"metadata": {"name": "p"}}]}
    fixed = {"egress_enforce_probe": "https://a.example/", "egress_enforce_gateway": "x/y", "__egress_enforce_sidecars": pod}
    of_the_role = {"ansible.builtin.include_vars": str(tree.CHECKOUT / "roles" / "egress_enforce" / "vars" / "main.yml")}
    show = {"ansible.builtin.debug": {"msg": "> {{ __egress_enforce_verdict }}: {{ __egress_enforce_evidence }}"}}
    asked = ("__egress_enforce_without", "__egress_enforce_beside", "__egress_enforce_with")
    tasks = [{**show, "vars": {**fixed, **{name: {"stdout": status} for name, status in zip(asked, case, strict=True)}}} for case in cases]
    told = re.findall(r'"> (.*)"', play(tmp_path, of_the_role, *tasks))
    assert [(said.startswith(expected) or said) for said, expected in zip(told, cases.values(), strict=True)] == [True] * len(cases)


def row(url: str, verdict: str) -> dict[str, str]:
    return {"url": url, "verdict": verdict}


def test_what_is_handed_on_is_of_the_last_run_and_of_the_workload_itself(tmp_path: Path) -> None:
    tasks = yaml.safe_load((tree.CHECKOUT / "roles" / "egress_verify" / "tasks" / "main.yml").read_text(encoding="utf-8"))
    [hand_on] = [task for task in tasks if "ansible.builtin.set_stats" in task]
    first = {"passed": True, "checks": [row("http://a.example/", "allowed")]}
    stranger = [row("http://a.example/", "allowed"), row("http://a.example/A", "allowed"), row("http://a.example/", "blocked")]
    runs = [{**hand_on, "vars": {"egress_verify_result": result}} for result in (first, {"passed": False, "checks": stranger})]
    told = re.search(r"^\tRUN: (\{.*\})$", play(tmp_path, *runs), re.MULTILINE)
    assert told and json.loads(told[1]) == {
        "egress_verify_passed": False,
        "egress_verify_results": {"http://a.example/": "allowed", "http://a.example/A": "allowed"},
    }


def test_nothing_that_is_handed_on_is_added_up() -> None:
    """set_stats adds numbers and texts of several runs together, unless it is told not to."""
    texts = [path.read_text(encoding="utf-8") for path in YAML]
    assert sum(text.count("ansible.builtin.set_stats:") for text in texts) == sum(text.count("aggregate: false") for text in texts) > 0
