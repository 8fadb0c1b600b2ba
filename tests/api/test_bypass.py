"""istio_egress_bypass on a real API server: whose objects it changes and says so, what it meets there, and rights that it can do without.

The control plane of these tests is a namespace with the injector's ConfigMap; nothing runs in it.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from api.modules import Account, Object, Relay, Result, wait_until
from api.test_outbound_mode import made

MODULE = "istio_egress_bypass"
EXCLUDE = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
VALUES = json.dumps({"global": {"tag": "1.31.1", "proxy": {"excludeIPRanges": "", "includeIPRanges": "*"}}}, indent=2)


@pytest.fixture
def place(account: Account) -> str:
    """A namespace that is both the workload's and the control plane's."""
    namespace = account.namespace("bypass")
    account.server.create(injector(namespace))
    return namespace


def injector(namespace: str, **metadata: Any) -> Object:
    metadata = {"name": "istio-sidecar-injector", "namespace": namespace, **metadata}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"values": VALUES, "config": "policy: enabled"}}


def workload(kind: str, namespace: str, **metadata: Any) -> Object:
    spec = {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [CONTAINER]}}}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web", "namespace": namespace, **metadata}, "spec": spec}


CONTAINER = {"name": "web", "image": "web"}


def run(account: Account, place: str, **arguments: Any) -> Result:
    return account.run(MODULE, istio_namespace=place, wait=False, **arguments)


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet"])
def test_every_kind_that_has_a_pod_template(account: Account, place: str, kind: str) -> None:
    before = account.server.create(workload(kind, place))
    result = run(account, place, namespace=place, workload=f"{kind}/web", exclude=["192.0.2.0/24"], exclude_ports=["25"])
    after = account.server.read(kind, place, "web")
    assert after["spec"]["template"]["metadata"]["annotations"] == {EXCLUDE: "192.0.2.0/24", EXCLUDE.replace("IPRanges", "Ports"): "25"}
    assert result["ranges"] == {"include": ["*"], "exclude": ["192.0.2.0/24"], "exclude_ports": ["25"]}
    assert result["verified"] is False
    assert run(account, place, namespace=place, workload=f"{kind}/web", state="absent")["changed"]
    assert account.server.read(kind, place, "web")["spec"] == before["spec"]


def test_the_mesh_s_default_stands_where_a_workload_says_nothing(account: Account, place: str) -> None:
    account.server.create(workload("Deployment", place))
    assert run(account, place, exclude=["198.51.100.0/24"])["ranges"]["exclude"] == ["198.51.100.0/24"]
    result = run(account, place, namespace=place, workload="web", include=["10.0.0.0/8"])
    assert result["ranges"] == {"include": ["10.0.0.0/8"], "exclude": ["198.51.100.0/24"], "exclude_ports": []}


def test_who_writes_the_workload_is_named(account: Account, place: str) -> None:
    account.server.create(workload("Deployment", place, annotations={"meta.helm.sh/release-name": "shop"}))
    result = run(account, place, namespace=place, workload="web", exclude=["192.0.2.0/24"])
    assert (result["changed"], result["owner"]) == (True, "Helm release shop")
    [warning] = [w for w in result.warnings if "Helm release shop" in w]
    assert f"{EXCLUDE}: '192.0.2.0/24'" in warning and "in the chart's values" in warning
    assert not [w for w in run(account, place, namespace=place, workload="web", exclude=["192.0.2.0/24"]).warnings if "Helm" in w]


def test_who_writes_the_injector_is_named(account: Account) -> None:
    place = account.namespace("helm")
    account.server.create(injector(place, annotations={"meta.helm.sh/release-name": "istiod"}))
    result = run(account, place, exclude=["192.0.2.0/24"])
    assert result["owner"] == "Helm" and 'excludeIPRanges: "192.0.2.0/24"' in result["owner_values"]
    assert [w for w in result.warnings if "by the next helm upgrade of release istiod" in w], result.warnings
    assert account.server.read("ConfigMap", place, "istio-sidecar-injector")["data"]["config"] == "policy: enabled"


def test_somebody_else_s_write_in_between_is_kept(account: Account, place: str) -> None:
    account.server.create(workload("Deployment", place))
    once = iter([{"spec": {"replicas": 3}}])

    def before(method: str, path: str) -> None:
        if method == "PATCH" and path.startswith("/apis/apps/v1") and (change := next(once, None)):
            account.server.patch("Deployment", place, "web", change)

    with Relay(account.server, before) as relay:
        result = run(account, place, namespace=place, workload="web", exclude=["192.0.2.0/24"], host=relay.url, api_key=account.token)
    assert result["changed"], result
    spec = account.server.read("Deployment", place, "web")["spec"]
    assert (spec["replicas"], spec["template"]["metadata"]["annotations"]) == (3, {EXCLUDE: "192.0.2.0/24"})


def test_a_pod_that_was_evicted_is_not_waited_for(account: Account, place: str) -> None:
    account.server.create(workload("Deployment", place))
    status = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1) | {"observedGeneration": 9}
    account.server.set_status("Deployment", place, "web", status)
    for name, phase, excluded in (("old", "Failed", ""), ("new", "Running", "192.0.2.0/24")):
        redirect = {"name": "istio-init", "image": "x", "args": ["istio-iptables", "-i", "*", "-x", excluded]}
        spec = {"containers": [{"name": "istio-proxy", "image": "x"}], "initContainers": [redirect], "automountServiceAccountToken": False}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": place, "labels": {"app": "web"}}, "spec": spec}
        wait_until(partial(made, account, pod), "the service account that every pod needs")
        account.server.set_status("Pod", place, name, {"phase": phase})
    result = account.run(MODULE, istio_namespace=place, namespace=place, workload="web", exclude=["192.0.2.0/24"], wait_timeout=2)
    assert (result.get("failed"), result["verified"], result["proxies"]["total"]) == (None, True, 1), result


def test_a_workload_needs_no_more_than_its_own_rights(account: Account, place: str) -> None:
    account.server.create(workload("Deployment", place))
    rules = [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"]}]
    with Account(account.server, rules, within=place) as limited:
        result = run(limited, place, namespace=place, workload="web", exclude=["192.0.2.0/24"])
    assert result["changed"] and result["ranges"] == {"include": None, "exclude": ["192.0.2.0/24"], "exclude_ports": None}
    assert [w for w in result.warnings if "may not list services and pods" in w], result.warnings


FAULTS = [
    # arguments, words of the message
    ({"include": []}, "include is empty"),
    ({"exclude": ["203.0.113.10"]}, "Write 203.0.113.10/32"),
    ({"namespace": "x", "workload": "pod/web"}, "does not name a workload with a pod template"),
    ({"namespace": "x", "workload": ""}, "does not name a workload with a pod template"),
    ({"namespace": "x", "workload": "none"}, "There is no Deployment none in namespace x"),
    ({"namespace": "", "workload": "web"}, "namespace is empty"),
    ({"revision": "canary"}, 'There is no ConfigMap "istio-sidecar-injector-canary"'),
]


@pytest.mark.parametrize(("arguments", "words"), FAULTS, ids=str)
def test_what_cannot_be_is_said_in_two_lines(account: Account, place: str, arguments: dict[str, Any], words: str) -> None:
    result = run(account, place, **{"exclude": ["192.0.2.0/24"], **arguments})
    assert result.get("failed") and words in result.msg and result.msg.count("\n") <= 1, result
    assert result.writes == []
