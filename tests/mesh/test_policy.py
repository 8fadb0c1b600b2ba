"""A policy's document on real proxies: hosts change their way with it and no request is lost, and a document that cannot be proven is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from api.modules import ApiServer
from mesh.conftest import Workload
from mesh.load import Load, Stream, process_of
from mesh.test_playbooks import Runner

POLICY = "istio_egress_policy"
HTTP, TLS, OTHER = "httpbin.org", "www.google.com", "edition.cnn.com"
DIRECT = {"mode": "REGISTRY_ONLY", "hosts": [f"{HTTP}:80", TLS]}
THROUGH = {"mode": "REGISTRY_ONLY", "hosts": [OTHER], "gateways": [{"hosts": [f"{HTTP}:80", TLS]}]}
LONGEST = 600
"""Seconds after which the load ends by itself."""


@pytest.fixture
def load(workload: Workload, run_module, own_mesh) -> Iterator[Load]:
    """Requests to hosts that a document declares already: what sidecars look up in DNS for the first time is not what is tried here."""
    run_module(POLICY, namespace=workload.namespace, name="moving", policy={"hosts": DIRECT["hosts"]})
    addresses = {HTTP: workload.curl(f"http://{HTTP}/").address, TLS: workload.curl(f"https://{TLS}/").address}
    streams = [Stream(f"{host} {'kept' if kept else 'new'}", host, addresses[host], host == TLS, kept, 20) for host in addresses for kept in (False, True)]
    with Load(process_of(workload.uid), streams, own_mesh.cache.far_ca, LONGEST) as load:
        yield load


def outcomes(workload: Workload) -> list[str]:
    return [workload.curl(f"{scheme}://{host}/").outcome for scheme, host in (("http", HTTP), ("https", TLS), ("https", OTHER))]


def client(workload: Workload) -> str:
    """The address that the far end sees."""
    return workload.curl(f"http://{HTTP}/").body["client"]


def test_hosts_change_their_way_with_the_document_and_no_request_is_lost(workload: Workload, run_module, load: Load) -> None:
    place = {"namespace": workload.namespace, "name": "moving"}
    own = client(workload)
    for what, arguments, expected, through in (
        ("the mode, which closes", {"policy": DIRECT}, ["200", "200", "closed"], False),
        ("to the gateway", {"policy": THROUGH}, ["200", "200", "200"], True),
        ("restored", {"state": "restored"}, ["200", "200", "closed"], False),
        ("the mode again, which opens", {"policy": {"hosts": DIRECT["hosts"]}}, ["200", "200", "200"], False),
    ):
        load.mark(what)
        result = run_module(POLICY, **place, **arguments)
        assert result["changed"] and result["verified"], (what, result)
        assert outcomes(workload) == expected, what
        assert (client(workload) != own) == through, what
    load.mark("nothing more")
    load.finish()
    kept = load.counts.pop(f"{TLS} kept")  # they end by Envoy's drain, with the one request that is on its way then
    assert kept.failed <= len(kept.reconnects), load.report()
    assert sum(count.failed for count in load.counts.values()) == 0, load.report()
    assert run_module(POLICY, **place, state="absent")["verified"]  # without load: docs/limits.md
    assert outcomes(workload) == ["200", "200", "200"]


def test_a_document_that_cannot_be_proven_is_taken_back(workload: Workload, run_module, api: ApiServer, kubeconfig: Path, tmp_path: Path) -> None:
    """By the playbook, whose file is looked for where one stands; also when an earlier run broke off before its proof."""
    run_module(POLICY, namespace=workload.namespace, name="proven", policy=DIRECT)
    new = {"mode": "REGISTRY_ONLY", "hosts": [TLS, "no-such-host.invalid"]}
    (tmp_path / "new.yml").write_text(yaml.safe_dump(new), encoding="utf-8")
    assert run_module(POLICY, namespace=workload.namespace, name="proven", policy=new, trial=True)["trial"]
    runner = Runner(workload.namespace, kubeconfig, None)
    run = runner.play("policy", cwd=tmp_path, egress_policy="proven", egress_workload="deployment/sleep", egress_file="new.yml", egress_svg="ways.svg")
    assert run.code != 0
    assert "no-such-host.invalid" in run.text and f"applied to namespace {workload.namespace} again" in run.text, run.text
    assert (tmp_path / "ways.svg").read_text(encoding="utf-8").startswith("<svg")
    assert outcomes(workload) == ["200", "200", "closed"]
    record = api.read("ConfigMap", workload.namespace, "istio-egress-policy-proven")
    assert {key: yaml.safe_load(text) for key, text in record["data"].items()} == {"policy.yaml": DIRECT}
    run_module(POLICY, namespace=workload.namespace, name="proven", state="absent")


def test_ranges_of_a_document_reach_the_pods(workload: Workload, run_module) -> None:
    place = {"namespace": workload.namespace, "name": "ranges"}
    around = run_module(POLICY, **place, policy={"bypass": [{"workload": "deployment/sleep", "exclude": ["203.0.113.0/24"]}]})
    assert around["verified"] and around["rollouts"]["following"] == 1, around
    back = run_module(POLICY, **place, state="restored")
    assert back["verified"] and back["policy"] == {}, back
