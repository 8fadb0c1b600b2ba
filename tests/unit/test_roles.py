"""What roles make of variables and results, run by Ansible without a cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tooling import tree

BIN = Path(sys.executable).parent
YAML = [path for part in ("roles", "playbooks") for path in sorted((tree.CHECKOUT / part).rglob("*.yml"))]


def play(tmp_path: Path, *tasks: dict[str, Any]) -> str:
    """The output of a play of the tasks."""
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": list(tasks)}]), encoding="utf-8")
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(tree.link()), "ANSIBLE_SHOW_CUSTOM_STATS": "1", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run([BIN / "ansible-playbook", playbook], env=environment, check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
