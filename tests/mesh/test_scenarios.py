"""Playbooks beyond modes and entries, by name, on real proxies: each proves itself, and cleanup takes all of it back.

All run in one namespace, in the order of this file. What a playbook reports must be what the sidecar, or the far end, wrote about the same requests.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.modules import Account, ApiServer, documented_rights
from cluster.onemachine import farend
from mesh.test_playbooks import Runner, log_since, runner_for

EN, GOOGLE, CNN, HTTPBIN = "https://en.wikipedia.org/", "https://www.google.com/", "https://edition.cnn.com/", "http://httpbin.org/headers"
PROXY = {GOOGLE: "200", CNN: "200", EN: "exit 35", HTTPBIN: "502"}


@pytest.fixture(scope="module")
def runner(kubeconfig: Path, api: ApiServer) -> Iterator[Runner]:
    with runner_for("scenarios", kubeconfig, api) as runner:
        yield runner


def play(runner: Runner, playbook: str, results: dict[str, str], **variables: str) -> float:
    """Runs a playbook that has something to change. When it began."""
    start = time.time()
    run = runner.play(playbook, **variables)
    assert (run.code, run.results) == (0, results), run.text
    assert run.changed > 0
    return start


def test_corporate_proxy(runner: Runner, cluster, own_mesh) -> None:
    start = play(runner, "corporate_proxy", PROXY, egress_proxy_addresses="\n".join([farend.DEFAULT_HOSTS[farend.PROXY_HOST]] * 2))
    log = log_since(cluster, runner.namespace, start)
    proxied = [line for line in log if f":{farend.PROXY_PORT}" in line]
    assert [re.search(r" (outbound\S+|\S+Cluster) ", line)[1] for line in proxied] == [f"outbound|{farend.PROXY_PORT}||{farend.PROXY_HOST}"] * 2
    seen = [r for r in map(json.loads, farend.requests(own_mesh, time.time() - start)) if r["host"] in ("www.google.com", "edition.cnn.com")]
    own = {p["status"]["podIP"] for p in cluster.list("Pod", runner.namespace)}
    assert len([r for r in seen if r["client"] == farend.DEFAULT_HOSTS[farend.PROXY_HOST]]) >= 2 and own.isdisjoint(r["client"] for r in seen)


def test_ip_bypass(runner: Runner, cluster) -> None:
    start = play(runner, "ip_bypass", {HTTPBIN: "200", GOOGLE: "200"})
    assert log_since(cluster, runner.namespace, start) == []


@pytest.fixture
def cleaner(runner: Runner, kubeconfig: Path, api: ApiServer) -> Iterator[Runner]:
    """Has the rights of docs/rbac.md for the playbook cleanup, where an account can be made."""
    if not runner.sees_writes:
        yield runner
        return
    sections = {"istio_egress_cleanup": "ClusterRole", "Playbooks": "ClusterRole", "test_source": "Role in the namespace"}
    with Account(api, [rule for section, where in sections.items() for rule in documented_rights(section, where)]) as account:
        yield Runner(runner.namespace, kubeconfig, account)


def test_cleanup_leaves_nothing(cleaner: Runner, api: ApiServer) -> None:
    listed = cleaner.play("cleanup", "--check")
    assert listed.code == 0 and [w for w in listed.writes if "(dry run)" not in w] == [], listed.text
    assert api.read("Namespace", None, cleaner.namespace)
    gone = cleaner.play("cleanup")
    assert gone.code == 0 and gone.changed > 0, gone.text
    assert api.read("Namespace", None, cleaner.namespace) is None
    lines = [line for line in listed.text.splitlines() if re.match(r'\s+"[-~] ', line)]
    assert {re.split(r"\W+", line)[1] for line in lines} >= {"sidecar", "serviceentry"}
    assert all(line in gone.text for line in lines)
