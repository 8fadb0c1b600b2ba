"""Ranges around the sidecar, on real proxies: the far end answers, the sidecar counts and logs nothing, and a pod has what the module says it has.

The default of the mesh is changed by a range that nobody uses (192.0.2.0/24, documentation) and put back, byte for byte.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils import _bypass
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import ask
from api.modules import Refused

BYPASS, MODE = "istio_egress_bypass", "istio_outbound_mode"
HTTPBIN, CNN = "http://httpbin.org/headers", "http://edition.cnn.com/"

RANGES = [
    # option, value: what the injector says to it must be what we say
    ("include", "*"), ("include", "10.0.0.0/8,fd00::/8"), ("include", "10.0.0.1/8"), ("exclude", ""), ("exclude", "203.0.113.9/32"), ("exclude", "0.0.0.0/0"),
    ("exclude_ports", "5432,9092"), ("include", "*,10.0.0.0/8"), ("include", "10.0.0.0"), ("include", "10.0.0.0/08"), ("include", "10.0.0.0/255.0.0.0"),
    ("include", "10.00.0.0/8"), ("exclude", "*"), ("exclude", "www.google.com"), ("exclude", "10.0.0.0/33"), ("exclude", "fe80::1%eth0/64"),
    ("exclude", "fd00::/129"), ("exclude_ports", "65536"), ("exclude_ports", "1-2"), ("exclude_ports", "*"),
]  # fmt: skip


def injected(api, option: str, value: str) -> bool:
    """Whether the injector makes a sidecar for a pod with this annotation (dry run)."""
    metadata = {"name": "trial", "namespace": "istio-system", "labels": {"sidecar.istio.io/inject": "true"}}
    metadata["annotations"] = {_bypass.SETTINGS[option].annotation: value}
    trial = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [{"name": "trial", "image": "trial"}]}}
    try:
        return bool(_bypass.of_pod(api.call("POST", "/api/v1/namespaces/istio-system/pods?dryRun=All", trial)))
    except Refused:
        return False


@pytest.mark.parametrize(("option", "value"), RANGES, ids=str)
def test_what_the_injector_refuses_is_refused_before(api, option, value):
    try:
        _bypass.parse({option: [value]})
        accepted = True
    except _bypass.BypassError:
        accepted = False
    assert accepted == injected(api, option, value)


def newest(workload):
    """The workload's pod as it is now."""
    [pod] = [p for p in workload.cluster.list("Pod", workload.namespace, labels="app=sleep") if "deletionTimestamp" not in p["metadata"]]
    return replace(workload, pod=pod["metadata"]["name"], uid=pod["metadata"]["uid"])


def traffic(workload) -> tuple[list[str], list[str]]:
    """What the sidecar counted for each upstream address, but for those of its own mesh, and its access log."""
    [told] = ask(workload.cluster, workload.namespace, workload.pod, "clusters")
    counted = [line for line in told.splitlines() if re.match(r"(outbound\||PassthroughCluster|BlackHole).*::(cx|rq)_total::[1-9]", line)]
    time.sleep(1.1)  # proxies write their log out every second
    log = workload.cluster.log(workload.namespace, workload.pod, "istio-proxy")
    return counted, [line for line in log.splitlines() if line.startswith("[")]


def test_a_workload(run_module, workload, api):
    task = {"namespace": workload.namespace, "workload": "deployment/sleep"}
    before = api.read("Deployment", workload.namespace, "sleep")
    run_module(MODE, namespace=workload.namespace, mode="REGISTRY_ONLY")
    blocked = workload.curl(HTTPBIN)
    assert blocked.outcome == "502"
    around = f"{blocked.address}/32"

    checked = run_module(BYPASS, check=True, **task, exclude=[around])
    assert checked["changed"] and api.read("Deployment", workload.namespace, "sleep") == before

    result = run_module(BYPASS, **task, exclude=[around])
    assert (result["changed"], result["verified"]) == (True, True)
    assert result["ranges"] == {"include": ["*"], "exclude": [around], "exclude_ports": []}
    assert result["previous"] == {"include": ["*"], "exclude": [], "exclude_ports": []}
    assert {p["pod"] for p in result["proxies"]["pending"]} <= {f"{workload.namespace}/{workload.pod}"}

    new = newest(workload)
    answer = new.curl(HTTPBIN)
    assert answer.outcome == "200"
    assert [name for name in answer.body["headers"] if name.lower().startswith("x-")] == []
    assert traffic(new) == ([], [])
    assert new.curl(CNN).outcome == "502"
    _counted, log = traffic(new)
    assert len(log) == 1 and "edition.cnn.com" in log[0], "what shows that a sidecar saw nothing must see what it saw"

    again = run_module(BYPASS, **task, exclude=[around])
    assert (again["changed"], again["verified"], newest(workload).uid) == (False, True, new.uid)

    back = run_module(BYPASS, **task, state="absent")
    assert (back["changed"], back["verified"]) == (True, True)
    after = api.read("Deployment", workload.namespace, "sleep")
    assert after["spec"] == before["spec"]
    assert not [key for key in after["metadata"]["annotations"] if key.startswith("istio-egress.")]
    assert newest(workload).curl(HTTPBIN).outcome == "502"
    assert run_module(BYPASS, **task, state="absent")["changed"] is False


def test_ranges_that_swallow_the_cluster_are_named(run_module, workload):
    result = run_module(BYPASS, check=True, namespace=workload.namespace, workload="sleep", include=["203.0.113.0/24"])
    [warning] = result.warnings
    assert "the API server" in warning and "Keep the ranges of the cluster's Services and pods in include" in warning


def test_a_rollout_that_does_not_come_says_why(run_module, workload, api):
    api.patch("Deployment", workload.namespace, "sleep", {"spec": {"template": {"spec": {"nodeSelector": {"none": "such"}}}}})
    result = run_module(BYPASS, fails=True, namespace=workload.namespace, workload="sleep", exclude=["192.0.2.0/24"], wait_timeout=2)
    assert "was not rolled out within 2 s" in result.msg and "didn't match Pod's node affinity/selector" in result.msg
    api.patch("Deployment", workload.namespace, "sleep", {"spec": {"paused": True, "template": {"spec": {"nodeSelector": None}}}})
    paused = run_module(BYPASS, namespace=workload.namespace, workload="sleep", exclude=["198.51.100.0/24"])
    assert [w for w in paused.warnings if "is paused, so that no new pods come" in w], paused.warnings
    assert paused["changed"] and not paused["verified"]
    api.patch("Deployment", workload.namespace, "sleep", {"spec": {"paused": False}})
    assert run_module(BYPASS, namespace=workload.namespace, workload="sleep", state="absent")["verified"]


def test_the_default_of_the_mesh(run_module, workload, start, api):
    def values():
        return api.read("ConfigMap", "istio-system", "istio-sidecar-injector")["data"]["values"]

    before = values()
    try:
        result = run_module(BYPASS, exclude=["192.0.2.0/24"])
        assert (result["changed"], result["verified"], result["owner"]) == (True, True, "istioctl")
        assert [w for w in result.warnings if 'excludeIPRanges: "192.0.2.0/24"' in w and "istioctl" in w], result.warnings
        captured = {p["pod"]: p["reason"] for p in result["proxies"]["pending"]}
        assert captured[f"{workload.namespace}/{newest(workload).pod}"] == "was started with exclude nothing"
        assert run_module(BYPASS, exclude=["192.0.2.0/24"])["changed"] is False
        assert values() == before.replace('"excludeIPRanges": ""', '"excludeIPRanges": "192.0.2.0/24"')

        late = start(workload.namespace, "late", ready=False)
        assert f"{late.namespace}/{late.pod}" not in {p["pod"] for p in run_module(BYPASS)["proxies"]["pending"]}
    finally:
        back = run_module(BYPASS, state="absent")
    assert (back["changed"], back["verified"], values()) == (True, True, before)
