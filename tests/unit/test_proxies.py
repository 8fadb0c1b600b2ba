"""Which pods have a sidecar, whose it is, and whether it is ready; and which of very many are looked at. Tables of pods; no cluster, no proxy."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import Proxy, routers, sidecars, workloads
from ansible_collections.meshops.istio_egress.plugins.module_utils._watcher import SAMPLE, _sample

PROXY = {"name": "istio-proxy", "args": ["proxy", "sidecar", "--domain", "demo.svc.cluster.local"]}
GATEWAY = {"name": "istio-proxy", "args": ["proxy", "router", "--domain", "demo.svc.cluster.local"]}
WAYPOINT = {"name": "istio-proxy", "args": ["proxy", "waypoint", "--domain", "demo.svc.cluster.local"]}
ZTUNNEL = {"name": "istio-proxy", "args": ["proxy", "ztunnel"]}
APP = {"name": "sleep"}
READY = {"phase": "Running", "containerStatuses": [{"name": "sleep", "ready": True}, {"name": "istio-proxy", "ready": True}]}


def pod(*containers, init=(), status="ready", **metadata):
    return {
        "metadata": {"namespace": "demo", "name": "sleep-1", **metadata},
        "spec": {"containers": list(containers), **({"initContainers": list(init)} if init else {})},
        "status": READY if status == "ready" else status,
    }


PODS = {
    "container": (pod(APP, PROXY), True),
    "first container": (pod(PROXY, APP), True),
    "native sidecar": (pod(APP, init=[{"name": "istio-init"}, PROXY]), True),
    "no arguments": (pod(APP, {"name": "istio-proxy"}), True),
    "none": (pod(APP), False),
    "only an init container of Istio's": (pod(APP, init=[{"name": "istio-validation"}]), False),
    "gateway": (pod(GATEWAY), False),
    "waypoint": (pod(WAYPOINT), False),
    "ztunnel": (pod(ZTUNNEL), False),
    "ending": (pod(APP, PROXY, deletionTimestamp="2026-01-01T00:00:00Z"), False),
    "done": (pod(APP, PROXY, status={"phase": "Succeeded"}), False),
    "failed": (pod(APP, PROXY, status={"phase": "Failed"}), False),
    "starting": (pod(APP, PROXY, status={"phase": "Pending"}), True),
    "no status": (pod(APP, PROXY, status={}), True),
}


@pytest.mark.parametrize("case", PODS)
def test_a_pod_with_a_sidecar(case):
    given, found = PODS[case]
    assert [str(proxy) for proxy in sidecars([given])] == (["demo/sleep-1"] if found else [])


def test_a_workload_is_what_is_no_part_of_the_mesh():
    pods = [pod(APP), pod(APP, PROXY), pod(GATEWAY), pod(WAYPOINT), pod(ZTUNNEL), pod(APP, PROXY, status={"phase": "Failed"})]
    assert (workloads(pods), len(routers(pods))) == (pods[:2], 1)


def statuses(kind, ready):
    return {"phase": "Running", kind: [{"name": "other", "ready": True}, {"name": "istio-proxy", "ready": ready}]}


@pytest.mark.parametrize(
    ("status", "ready"),
    [
        (statuses("containerStatuses", True), True),
        (statuses("containerStatuses", False), False),
        (statuses("initContainerStatuses", True), True),
        (statuses("initContainerStatuses", False), False),
        ({"phase": "Running", "containerStatuses": [{"name": "sleep", "ready": True}]}, False),
        ({"phase": "Pending"}, False),
        (None, False),
    ],
    ids=str,
)
def test_a_sidecar_is_ready_when_its_container_is(status, ready):
    assert [proxy.ready for proxy in sidecars([pod(APP, PROXY, status=status)])] == [ready]


@pytest.mark.parametrize(
    ("annotations", "revision"),
    [
        ({"sidecar.istio.io/status": json.dumps({"initContainers": ["istio-init"], "revision": "1-31"})}, "1-31"),
        ({"sidecar.istio.io/status": json.dumps({"revision": None})}, ""),
        ({"sidecar.istio.io/status": "{"}, ""),
        ({"sidecar.istio.io/status": ""}, ""),
        ({}, ""),
        (None, ""),
    ],
    ids=str,
)
def test_the_revision_is_what_the_injector_noted(annotations, revision):
    assert [proxy.revision for proxy in sidecars([pod(APP, PROXY, annotations=annotations)])] == [revision]


def test_labels_come_along_and_do_not_tell_proxies_apart():
    [labelled] = sidecars([pod(APP, PROXY, labels={"app": "sleep"})])
    [bare] = sidecars([pod(APP, PROXY, labels=None)])
    assert (labelled.labels, bare.labels) == ({"app": "sleep"}, {})
    assert labelled == bare and len({labelled, bare}) == 1


@pytest.mark.parametrize("number", [0, 1, SAMPLE, SAMPLE + 1, 2 * SAMPLE, 2 * SAMPLE + 1, 5000])
def test_a_sample_is_all_of_few_and_evenly_spread_over_many(number):
    proxies = [Proxy("demo", f"p{n}", {}) for n in range(number)]
    taken = [int(proxy.pod[1:]) for proxy in _sample(proxies)]
    assert len(taken) == min(number, SAMPLE) == len(set(taken))
    gaps = [b - a for a, b in pairwise(taken)] or [1]
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    assert number - (taken[-1] if taken else 0) <= max(gaps) + 1
