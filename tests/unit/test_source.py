"""The pod of a workload that makes requests, chosen among the pods of its namespace."""

from __future__ import annotations

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._source import SourceError, choose_source


def pod(name: str, kind: str = "", owner: str = "", ready: bool = True, day: int = 1, containers: tuple = ("sleep", "istio-proxy"), **more: str) -> dict:
    labels = {"pod-template-hash": "5d97"} if kind == "ReplicaSet" else {}
    owners = [{"kind": kind, "name": owner}] if owner else None
    return {
        "metadata": {"name": name, "creationTimestamp": f"2026-01-0{day}T00:00:00Z", "labels": labels, "ownerReferences": owners, **more},
        "spec": {"containers": [{"name": c} for c in containers]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


PODS = [
    pod("sleep-5d97-old", "ReplicaSet", "sleep-5d97"),
    pod("sleep-5d97-new", "ReplicaSet", "sleep-5d97", day=2),
    pod("sleep-5d97-ends", "ReplicaSet", "sleep-5d97", day=3, deletionTimestamp="2026-01-03T00:00:01Z"),
    pod("sleep-5d97-starts", "ReplicaSet", "sleep-5d97", day=4, ready=False),
    pod("sleep-er-5d97-a", "ReplicaSet", "sleep-er-5d97", day=5),
    pod("db-0", "StatefulSet", "db", containers=("istio-proxy", "db", "tool")),
    pod("alone", containers=("main",)),
    pod("slow-0", "StatefulSet", "slow", ready=False),
]


@pytest.mark.parametrize(
    ("workload", "container", "chosen"),
    [
        ("sleep", None, ("sleep-5d97-new", "sleep", True)),
        ("deployment/sleep", None, ("sleep-5d97-new", "sleep", True)),
        ("deploy/sleep-er", None, ("sleep-er-5d97-a", "sleep", True)),
        ("pod/sleep-5d97-old", None, ("sleep-5d97-old", "sleep", True)),
        ("statefulset/db", None, ("db-0", "db", True)),
        ("sts/db", "tool", ("db-0", "tool", True)),
        ("pod/alone", None, ("alone", "main", False)),
    ],
)
def test_the_newest_ready_pod_of_a_workload_is_chosen(workload: str, container: str | None, chosen: tuple[str, str, bool]) -> None:
    source = choose_source(PODS, "demo", workload, container)
    assert (source.pod, source.container, source.sidecar) == chosen


def test_a_native_sidecar_is_a_sidecar() -> None:
    native = pod("p", containers=("main",))
    native["spec"]["initContainers"] = [{"name": "istio-proxy"}]
    assert choose_source([native], "demo", "pod/p").sidecar


@pytest.mark.parametrize(
    ("workload", "container", "said"),
    [
        ("deployment/nothing", None, "deployment/nothing has no pod in namespace demo.\nPods there belong to deployment/sleep"),
        ("statefulset/slow", None, "None of the 1 pods of statefulset/slow in namespace demo is ready: slow-0"),
        ("sleep", "curl", 'no container "curl".\nIt has sleep, istio-proxy'),
        ("deployment/", None, "Write kind/name"),
    ],
)
def test_a_workload_that_cannot_ask_is_an_error_with_a_way_out(workload: str, container: str | None, said: str) -> None:
    with pytest.raises(SourceError) as error:
        choose_source(PODS, "demo", workload, container)
    assert said in str(error.value)
