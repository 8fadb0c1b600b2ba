"""istio_egress_policy on a real API server: what is recorded and brought back, and what is left when a document cannot be applied."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import yaml

from api.modules import Account, Object, Relay, Result
from api.test_bypass import EXCLUDE, workload
from api.test_cleanup import said
from api.test_egress_host import lift, refuse

ONE = {"mode": "REGISTRY_ONLY", "hosts": ["a.policy.test", {"host": "b.policy.test", "ports": [80], "ticket": "NET-1"}]}
TWO = {"hosts": ["a.policy.test", "c.policy.test", "d.policy.test"]}

RIGHTS = [
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "create", "update", "delete"]},
    {"apiGroups": ["networking.istio.io"], "resources": ["serviceentries", "sidecars"], "verbs": ["list", "create", "update", "patch", "delete"]},
]
"""What docs/rbac.md has for a document without bypass and gateways, but for the look at pods."""


@pytest.fixture
def namespace(account: Account) -> str:
    """Of the workloads, and of a control plane that is a ConfigMap."""
    name = account.namespace("policy")
    account.server.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": name}, "data": {"mesh": "{}"}})
    return name


@pytest.fixture
def task(account: Account, namespace: str) -> Callable[..., Result]:
    return partial(account.run, "istio_egress_policy", namespace=namespace, istio_namespace=namespace, name="web")


def recorded(account: Account, namespace: str) -> dict[str, Any] | None:
    found = account.server.read("ConfigMap", namespace, "istio-egress-policy-web")
    return found and {key: yaml.safe_load(text) for key, text in found["data"].items()}


def objects(account: Account, namespace: str) -> dict[str, Object]:
    """All but the record, and what every write changes."""
    return {key: {k: o.get(k) for k in ("spec", "data")} for key, o in account.server.everything(namespace).items() if "istio-egress-policy" not in key}


def test_a_document_is_recorded_and_the_one_before_it_brought_back(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    empty = objects(account, namespace)
    first = task(policy=ONE)
    assert (first["policy"], first["before"]) == (ONE, {})
    assert recorded(account, namespace) == {"policy.yaml": ONE, "before.yaml": {}}
    with_one = objects(account, namespace)
    assert sorted(with_one) == ["ConfigMap/istio", "ServiceEntry/egress-web-443-1", "ServiceEntry/egress-web-80-1", "Sidecar/egress-mode"]

    second = task(policy=TWO)
    assert [h["host"] for h in second["hosts"]] == ["a.policy.test", "c.policy.test", "d.policy.test"]
    assert recorded(account, namespace) == {"policy.yaml": TWO, "before.yaml": ONE}

    back = task(state="restored")
    assert (back["changed"], back["policy"], "before" in back) == (True, ONE, False)
    assert objects(account, namespace) == with_one
    again = task(state="restored")
    assert (again["changed"], again.attempts) == (False, [])
    assert any("nothing was brought back" in w for w in again.warnings)

    task(policy=TWO)
    assert task(state="absent")["policy"] == {}
    assert objects(account, namespace) == empty
    assert recorded(account, namespace) is None


def test_what_others_change_is_repaired(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(policy=ONE)
    before = objects(account, namespace)
    account.server.delete("Sidecar", namespace, "egress-mode")
    account.server.patch("ServiceEntry", namespace, "egress-web-443-1", {"spec": {"hosts": ["other.policy.test"]}})
    repaired = task(policy=ONE)
    assert repaired["changed"]
    assert objects(account, namespace) == before
    assert recorded(account, namespace) == {"policy.yaml": ONE, "before.yaml": {}}, "the same document is no step back"


def test_a_document_that_the_server_refuses_half_way_leaves_what_was(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(policy=ONE)
    before, record = objects(account, namespace), recorded(account, namespace)
    admission = refuse(account, namespace, "CREATE", "e.policy.test")
    refused = task(policy={"hosts": ["c.policy.test", "e.policy.test:80,443"]})
    assert refused["failed"] and "e.policy.test is not for this team" in refused.msg and "were undone" in refused.msg
    assert refused.writes, "something was written before the refusal"
    assert (objects(account, namespace), recorded(account, namespace)) == (before, record)
    lift(account, admission)


RANGES = {"mode": "REGISTRY_ONLY", "hosts": ["a.policy.test"], "bypass": [{"workload": "web", "exclude": ["192.0.2.0/24"]}]}


def test_a_workload_that_was_rolled_out_meanwhile_is_taken_back_in_our_annotations_alone(account: Account, namespace: str) -> None:
    """A Deployment's controller and an autoscaler write it while the task waits for the new pods; the mode that comes next may not be set."""
    before = account.server.create(workload("Deployment", namespace))["spec"]
    rules = [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"]}, *RIGHTS[:1]]
    rules += [{"apiGroups": RIGHTS[1]["apiGroups"], "resources": ["serviceentries"], "verbs": ["list", "create", "delete"]}]
    rules += [{"apiGroups": RIGHTS[1]["apiGroups"], "resources": ["sidecars"], "verbs": ["list"]}]

    template: Object = {}

    def roll_out(method: str, path: str) -> None:
        if method == "POST" and "/sidecars" in path:
            written = {"metadata": {"annotations": {"deployment.kubernetes.io/revision": "2"}}, "spec": {"replicas": 3, "template": template}}
            account.server.patch("Deployment", namespace, "web", written)

    with Account(account.server, rules, namespace) as small, Relay(account.server, roll_out) as relay:
        way = {"host": relay.url, "api_key": small.token, "wait": False, "istio_namespace": namespace}
        run = partial(small.run, "istio_egress_policy", namespace=namespace, name="web", policy=RANGES, **way)
        result = run()
        assert result["failed"] and "Not allowed to create sidecars" in result.msg and "were undone" in result.msg, result.msg
        live = account.server.read("Deployment", namespace, "web")
        assert (live["spec"], live["metadata"]["annotations"]) == ({**before, "replicas": 3}, {"deployment.kubernetes.io/revision": "2"})
        assert sorted(objects(account, namespace)) == ["ConfigMap/istio", "Deployment/web"] and recorded(account, namespace) is None

        template |= {"metadata": {"annotations": {EXCLUDE: "198.51.100.0/24"}}}
        result = run()
    assert f"stopped at Deployment {namespace}/web (" in result.msg, result.msg
    assert f"stays, too: ConfigMap {namespace}/istio-egress-policy-web, ServiceEntry {namespace}/egress-web-443-1; run the task again" in result.msg, result.msg
    assert account.server.read("Deployment", namespace, "web")["spec"]["template"]["metadata"]["annotations"] == {EXCLUDE: "198.51.100.0/24"}


def test_a_workload_with_a_new_status_undoes_nothing(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    account.server.create(workload("Deployment", namespace))
    times: list[str] = []

    def get_ready(method: str, path: str) -> None:
        if method == "PATCH" and len(times) < 2:
            times.append(path)
            account.server.set_status("Deployment", namespace, "web", {"replicas": len(times)})

    with Relay(account.server, get_ready) as relay:
        result = task(host=relay.url, api_key=account.token, policy=RANGES, wait=False)
    assert [r.code for r in result.sent if r.verb == "patch"] == [409, 409, 200]
    assert result["changed"] and [r.verb for r in result.sent if r.resource == "serviceentries"] == ["list", "create"]


def test_a_task_whose_connection_broke_is_finished_when_it_runs_again(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    """The mode was the first document's, and nothing but the record tells the second run that it has to be taken back."""
    task(policy=ONE)
    written: list[str] = []

    def hang_up(method: str, path: str) -> None:
        if method != "GET":
            written.append(path)
        if len(written) > 1:
            raise ConnectionError

    with Relay(account.server, hang_up) as relay:
        broken = task(host=relay.url, api_key=account.token, policy=TWO)
    assert broken["failed"] and "run the task again" in broken.msg
    assert recorded(account, namespace) == {"policy.yaml": TWO, "before.yaml": ONE, "left.yaml": [ONE]}
    assert "Sidecar/egress-mode" in objects(account, namespace)
    task(policy=TWO)
    assert recorded(account, namespace) == {"policy.yaml": TWO, "before.yaml": ONE}
    assert sorted(objects(account, namespace)) == ["ConfigMap/istio", "ServiceEntry/egress-web-443-1"]
    assert task(policy=TWO).attempts == []


def test_too_many_hosts_do_not_go(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(policy=TWO)
    for arguments in ({"policy": ONE}, {"state": "absent"}, {"state": "restored"}):
        result = task(max_delete=1, **arguments)
        assert result["failed"] and "more than max_delete (1)" in result.msg and result.attempts == []
    assert task(policy=ONE, max_delete=2)["changed"]


def test_hosts_that_another_module_declared_under_the_name_are_taken_over(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    host = partial(account.run, "istio_egress_host", namespace=namespace, istio_namespace=namespace)
    host(policy="web", hosts=["a.policy.test", "z.policy.test"])
    host(policy="other", hosts=["y.policy.test"])
    assert [h["host"] for h in task(policy={"hosts": ["c.policy.test"]}, purge=False)["hosts"]] == ["a.policy.test", "c.policy.test", "z.policy.test"]
    assert [h["host"] for h in task(policy={"hosts": ["c.policy.test"]})["hosts"]] == ["c.policy.test"]
    task(state="absent")
    assert sorted(objects(account, namespace)) == ["ConfigMap/istio", "ServiceEntry/egress-other-443-1"]


def test_bad_input_is_told_before_the_cluster_is_asked(task: Callable[..., Result]) -> None:
    for policy, told in (({"hosts": ["*"]}, "allow every host"), ({"mode": "SHUT"}, "ALLOW_ANY"), ({"host": []}, "host"), ({"bypass": [{}]}, "workload")):
        result = task(policy=policy)
        assert result["failed"] and told in result.msg and result.sent == []
    rendered = task(policy=ONE, state="rendered")
    assert rendered.sent == [] and [o["kind"] for o in rendered["manifests"]] == ["ServiceEntry", "ServiceEntry", "Sidecar"]


def test_a_record_of_somebody_else_stays(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio-egress-policy-web", "namespace": namespace}, "data": {"x": "y"}}
    account.server.create(theirs)
    before = said(account.server.everything(namespace))
    for arguments in ({"policy": ONE}, {"state": "absent"}):
        result = task(**arguments)
        assert result["failed"] and "unknown owner" in result.msg and result.attempts == []
    assert said(account.server.everything(namespace)) == before


def test_cleanup_takes_the_record_along(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    before = said(account.server.everything(namespace))
    task(policy=ONE)
    account.run("istio_egress_cleanup", namespace=namespace, istio_namespace=account.namespace("mesh"), wait=False)
    assert said(account.server.everything(namespace)) == before


def test_ranges_warn_as_those_of_a_task_do(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    account.server.create(workload("Deployment", namespace, annotations={"meta.helm.sh/release-name": "shop"}))
    ranges = {"bypass": [{"workload": "web", "include": ["203.0.113.0/24"]}]}
    first = task(policy=ranges, wait=False).warnings
    assert [w for w in first if f"The ranges of Deployment {namespace}/web lead parts of the cluster itself" in w and "the API server" in w], first
    assert [w for w in first if f"Deployment {namespace}/web is managed by Helm release shop" in w], first
    again = task(policy=ranges, wait=False).warnings
    assert [w for w in again if "the API server" in w] and not [w for w in again if "Helm" in w], again


def test_an_account_of_the_namespace_is_enough(account: Account, namespace: str) -> None:
    with Account(account.server, RIGHTS, namespace) as small:
        task = partial(small.run, "istio_egress_policy", namespace=namespace, istio_namespace="istio-system", name="web", wait=False)
        assert task(policy=ONE)["changed"]
        assert task(policy=TWO)["changed"]
        assert task(state="restored")["policy"] == ONE
        assert task(state="absent")["changed"]
