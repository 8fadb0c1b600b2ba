"""The playbooks as a user runs them, by name, on real proxies: the proof they print is of requests that were made, a check writes nothing, undo undoes.

`make release RELEASE=--every` runs every playbook, and twice; here are those that have tasks or roles of their own, or an answer that somebody else than
the playbook can be asked for, and the second run is a job in test_awx.py. All run in one namespace, in the order of this file: the first that writes
makes it, the undo at the end removes it. An account of their own tells their requests to the API server from those of others; where there is no audit log
(a cluster that is not of this machine) that part is left out. The mode of the mesh is not touched.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster
from api.modules import WRITES, Account, ApiServer, Request
from mesh.conftest import RunModule, scope_of
from tooling import tree

COLLECTION = "meshops.istio_egress"
ROLE = f"{COLLECTION}.test_source"
HTTPBIN, GOOGLE, CNN = "http://httpbin.org/headers", "https://www.google.com/", "http://edition.cnn.com/politics"
ENFORCE = "pod-security.kubernetes.io/enforce"
LONGEST_RUN = 600
"""Seconds for a playbook, on a machine that is busy with other tests."""


@dataclass(frozen=True)
class Run:
    """What came of a run. `results` is what it hands on to a workflow; `writes` are the requests that were meant to change something."""

    code: int
    text: str
    changed: int
    results: dict[str, Any]
    writes: list[str]


class Runner:
    """Runs playbooks and roles for one namespace, with an account of its own where the audit log can tell what that account did."""

    def __init__(self, namespace: str, kubeconfig: Path, account: Account | None) -> None:
        self.namespace, self._account = namespace, account
        path = str(account.kubeconfig if account else kubeconfig)
        self._environment = {**os.environ, "KUBECONFIG": path, "K8S_AUTH_KUBECONFIG": path, "ANSIBLE_SHOW_CUSTOM_STATS": "1", "ANSIBLE_NOCOLOR": "1"}

    @property
    def sees_writes(self) -> bool:
        return self._account is not None

    def play(self, playbook: str, *options: str, cwd: Path = Path("/"), **variables: Any) -> Run:
        return self._run(["ansible-playbook", f"{COLLECTION}.{playbook}", *options], {"egress_namespace": self.namespace, **variables}, cwd)

    def role(self, name: str, **variables: Any) -> Run:
        return self._run(["ansible", "localhost", "-m", "ansible.builtin.include_role", "-a", f"name={name}"], variables)

    def tasks(self, name: str, place: Path, *options: str, **variables: Any) -> Run:
        """A file of tasks that playbooks share, in a play of its own, which is written to `place`."""
        tasks = [{"ansible.builtin.include_tasks": str(tree.CHECKOUT / "playbooks" / "tasks" / f"{name}.yml")}]
        play = place / "play.yml"
        play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
        return self._run(["ansible-playbook", str(play), *options], {"egress_namespace": self.namespace, **variables})

    def _run(self, command: list[str], variables: Mapping[str, Any], cwd: Path = Path("/")) -> Run:
        start = self._account.mark() if self._account else 0
        done = subprocess.run(
            [*command, "-e", json.dumps(variables)], env=self._environment, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=LONGEST_RUN, cwd=cwd,
        )  # fmt: skip
        requests = self._account.requests_since(start) if self._account else []
        changed = re.search(r"^localhost +: .*changed=(\d+)", done.stdout, re.MULTILINE)
        stats = re.search(r"^\tRUN: (\{.*\})$", done.stdout, re.MULTILINE)
        results = json.loads(stats[1]).get("egress_results", {}) if stats else {}
        return Run(done.returncode, done.stdout, int(changed[1]) if changed else -1, results, [str(r) for r in requests if is_write(r)])


def is_write(request: Request) -> bool:
    """Running a command in a pod is a `create` for some clients, and changes nothing."""
    return request.verb in WRITES and request.resource != "pods"


@contextmanager
def runner_for(purpose: str, kubeconfig: Path, api: ApiServer) -> Iterator[Runner]:
    """A Runner for a new namespace, which goes afterwards whatever came of it."""
    namespace = f"{purpose}-{secrets.token_hex(3)}"
    try:
        if api.audit_log.exists():
            with Account(api) as account:
                yield Runner(namespace, kubeconfig, account)
        else:
            yield Runner(namespace, kubeconfig, None)
    finally:
        for obj in (o for kind in ("VirtualService", "ServiceEntry", "AuthorizationPolicy") for o in api.list(kind)):
            if scope_of(obj) == namespace:  # beside a gateway, where it does not go with its namespace
                api.delete(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
        api.delete("Namespace", None, namespace)


@pytest.fixture(scope="module")
def runner(kubeconfig: Path, api: ApiServer) -> Iterator[Runner]:
    with runner_for("playbooks", kubeconfig, api) as runner:
        yield runner


def log_since(cluster: Cluster, namespace: str, start: float) -> list[str]:
    """Lines of the access log that the namespace's only sidecar wrote since `start`, by its own clock."""
    [pod] = [p["metadata"]["name"] for p in cluster.list("Pod", namespace) if "deletionTimestamp" not in p["metadata"]]
    since = time.strftime("[%Y-%m-%dT%H:%M:%S", time.gmtime(start))
    log = cluster.log(namespace, pod, "istio-proxy", since_seconds=int(time.time() - start) + 5)
    return [line for line in log.splitlines() if line.startswith("[") and line >= since]


def statuses(log: list[str], host: str, path: str) -> list[str]:
    """The statuses of the requests to a host and path, in the order of the log."""
    return [m[1] for line in log if f'"{host}"' in line and (m := re.search(rf'"GET {path} HTTP/1.1" (\d+) ', line))]


def tls_clusters(log: list[str]) -> list[str]:
    """The clusters that connections which are not HTTP went to, in the order of the log."""
    return [re.findall(r'"[^"]*"|\S+', line)[16] for line in log if '] "- - -" ' in line]


def test_check_mode_writes_nothing_and_says_where_it_ends(runner: Runner, api: ApiServer) -> None:
    run = runner.play("service_entries", "--check")
    assert run.code == 0, run.text
    assert "Check mode ends here" in run.text
    assert api.read("Namespace", None, runner.namespace) is None


def test_service_entries(runner: Runner, cluster: Cluster) -> None:
    results = {HTTPBIN: "200", GOOGLE: "200", CNN: "502"}
    start = time.time()
    run = runner.play("service_entries")
    assert (run.code, run.results, run.changed > 0) == (0, results, True), run.text
    assert bool(run.writes) == runner.sees_writes
    log = log_since(cluster, runner.namespace, start)
    assert statuses(log, "httpbin.org", "/headers") == [results[HTTPBIN]]
    assert statuses(log, "edition.cnn.com", "/politics") == [results[CNN]]
    assert tls_clusters(log) == ["outbound|443||www.google.com"]


def test_outbound_mode_refuses_a_mode_that_does_not_exist(runner: Runner) -> None:
    run = runner.play("outbound_mode", egress_mode="REGISTER_ONLY")
    assert run.code != 0
    assert "egress_mode is REGISTER_ONLY, which is not a mode of Istio; nothing was written." in run.text, run.text
    assert run.writes == []


def egress_objects(api: ApiServer, namespace: str) -> list[tuple[str, dict[str, Any]]]:
    return [(o["metadata"]["name"], o["spec"]) for kind in ("Sidecar", "ServiceEntry") for o in api.list(kind, namespace)]


def test_a_demo_that_fails_puts_the_mode_back(runner: Runner, api: ApiServer, run_module: RunModule) -> None:
    run_module("istio_egress_host", namespace=runner.namespace, policy="test", state="absent", purge=True)
    before = egress_objects(api, runner.namespace)
    run = runner.play("demo", egress_undeclared_urls="http://no-such-host.invalid/")
    assert run.code != 0
    assert "1 of 3 requests was not as expected" in run.text, run.text
    assert before == egress_objects(api, runner.namespace), run.text
    if runner.sees_writes:
        assert any(w.startswith("update sidecars") for w in run.writes), "the demo did not come as far as a changed mode"


def test_demo(runner: Runner, cluster: Cluster, api: ApiServer) -> None:
    before = egress_objects(api, runner.namespace)
    assert [spec["outboundTrafficPolicy"]["mode"] for _name, spec in before] == ["REGISTRY_ONLY"]
    start = time.time()
    run = runner.play("demo")
    assert run.code == 0, run.text
    columns = ("ALLOW_ANY", "REGISTRY_ONLY", "after_the_entries")
    cells = {url: [run.results[column][url] for column in columns] for url in run.results["ALLOW_ANY"]}
    assert cells == {"http://httpbin.org/": ["200", "502", "200"], GOOGLE: ["200", "exit 35", "200"], CNN: ["301", "502", "502"]}
    for url, row in cells.items():
        assert re.search(rf'"{re.escape(url)} +{" +".join(row)}"', run.text), f"the printed table has no row {url} {row}:\n{run.text}"

    log = log_since(cluster, runner.namespace, start)
    assert statuses(log, "httpbin.org", "/") == cells["http://httpbin.org/"]
    assert statuses(log, "edition.cnn.com", "/politics") == cells[CNN]
    assert tls_clusters(log) == ["PassthroughCluster", "BlackHoleCluster", "outbound|443||www.google.com"]
    assert egress_objects(api, runner.namespace) == before


def test_undo_leaves_nothing(runner: Runner, api: ApiServer, run_module: RunModule) -> None:
    run_module("istio_egress_host", namespace=runner.namespace, policy="test", hosts=["httpbin.org:80"])
    assert len(egress_objects(api, runner.namespace)) == 2
    undo = runner.play("service_entries", egress_undo="yes")
    assert (undo.code, undo.changed > 0) == (0, True), undo.text
    assert api.read("Namespace", None, runner.namespace) is None
    again = runner.play("service_entries", egress_undo="yes")
    assert (again.code, again.changed, again.writes) == (0, 0, []), again.text


def test_source_in_a_namespace_of_somebody_else(runner: Runner, api: ApiServer, cluster: Cluster) -> None:
    place = f"theirs-{secrets.token_hex(3)}"
    theirs = api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": place}})["metadata"]["labels"]
    try:
        refused = runner.role(ROLE, test_source_namespace=place)
        assert refused.code != 0
        assert f"Namespace {place} is not of this role and has no label istio-injection=enabled" in refused.text
        assert refused.writes == []

        api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": place}})
        for injection, account, sidecars in (("label", "web", 1), ("none", "default", 0)):
            if not sidecars:  # the init container of a sidecar needs more
                theirs = api.patch("Namespace", None, place, {"metadata": {"labels": {ENFORCE: "restricted"}}})["metadata"]["labels"]
            run = runner.role(ROLE, test_source_namespace=place, test_source_injection=injection, test_source_service_account=account)
            assert run.code == 0, run.text
            [pod] = [p["spec"] for p in cluster.list("Pod", place) if "deletionTimestamp" not in p["metadata"]]
            assert pod["serviceAccountName"] == account
            assert [c["name"] for c in pod["containers"] + pod.get("initContainers", [])].count("istio-proxy") == sidecars

        gone = runner.role(ROLE, test_source_namespace=place, test_source_state="absent")
        assert gone.code == 0, gone.text
        assert api.list("Deployment", place) == []
        assert api.read("ServiceAccount", place, "web")
        assert api.read("Namespace", None, place)["metadata"]["labels"] == theirs
    finally:
        api.delete("Namespace", None, place)
