"""What `ansible-doc` says about the options of a module is what the module takes: names, types, choices, defaults, aliases, what is required."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule

from tooling import tree

MODULES = sorted(path.stem for path in (tree.CHECKOUT / "plugins" / "modules").glob("*.py"))
NAMED = [f"meshops.istio_egress.{name}" for name in MODULES]
AUTH = {"host", "api_key", "kubeconfig", "context", "validate_certs", "ca_cert", "client_cert", "client_key", "impersonate_user", "impersonate_groups"}


class Started(Exception):
    """The module has said what it takes; no further."""


@pytest.fixture(scope="module")
def shown() -> dict[str, dict]:
    """What `ansible-doc` knows of each module, fragments included."""
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(tree.link())}
    answer = subprocess.run(
        [Path(sys.executable).parent / "ansible-doc", "--type", "module", "--json", *NAMED], env=environment, check=False, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return {name.rsplit(".", 1)[1]: value for name, value in json.loads(answer.stdout).items()}


@pytest.fixture
def taken(request, monkeypatch) -> dict:
    """The argument spec that a module's main() hands to Ansible."""

    def start(_self, **keywords):
        raise Started(keywords)

    monkeypatch.setattr(AnsibleModule, "__init__", start)
    module = importlib.import_module(f"ansible_collections.meshops.istio_egress.plugins.modules.{request.getfixturevalue('name')}")
    with pytest.raises(Started) as started:
        module.main()
    return started.value.args[0]


def facts(option: dict) -> dict:
    """What both sides must agree on, with Ansible's own defaults filled in."""
    kind = option.get("type", "str")
    return {
        "type": kind,
        "elements": option.get("elements", "str") if kind == "list" else None,
        "required": bool(option.get("required")),
        "default": option.get("default"),
        "choices": sorted(map(str, option.get("choices") or [])),
        "aliases": sorted(option.get("aliases") or []),
    }


def flat(options: dict, inner: str, prefix: str = "") -> dict[str, dict]:
    """Options by path, ``proxy_headers.user_agent``; `inner` is where suboptions are kept. Those of raw values are documentation only."""
    result = {}
    for name, option in options.items():
        result[prefix + name] = facts(option)
        if option.get("elements") != "raw":
            result.update(flat(option.get(inner) or {}, inner, f"{prefix}{name}."))
    return result


@pytest.mark.parametrize("name", MODULES)
def test_documentation_and_argument_spec_agree(shown, taken, name):
    documented, real = flat(shown[name]["doc"]["options"], "suboptions"), flat(taken["argument_spec"], "options")
    assert documented == real


@pytest.mark.parametrize("name", MODULES)
def test_every_module_takes_the_options_of_the_contract(taken, name):
    assert taken["argument_spec"].keys() >= AUTH
    assert taken["supports_check_mode"] is True


@pytest.mark.parametrize("name", MODULES)
def test_secrets_are_not_logged(taken, name):
    for option in ("api_key", "password", "client_key"):
        assert taken["argument_spec"][option]["no_log"] is True


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_tasks_that_use_documented_options(shown, name):
    tasks = yaml.safe_load(shown[name]["examples"])
    options = {alias for option, value in shown[name]["doc"]["options"].items() for alias in [option, *value.get("aliases", [])]}
    used = [task[module] or {} for task in tasks if (module := f"meshops.istio_egress.{name}") in task]
    assert used and all(task["name"] for task in tasks)
    assert [arguments for arguments in used if not arguments.keys() <= options] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_option_and_return_value_says_what_it_is(shown, name):
    described = {**shown[name]["doc"]["options"], **shown[name]["return"]}
    assert [key for key, value in described.items() if not value.get("description")] == []
