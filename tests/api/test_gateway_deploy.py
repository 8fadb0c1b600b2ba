"""istio_egress_gateway_deploy on a real API server: what it writes, what it finds, what it leaves alone, and what it refuses.

Nothing runs here, so a gateway of somebody else is a Service and a Deployment, or a pod without a node.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import yaml

from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_workload import KINDS, names_of
from api.modules import Account, Object, Result, documented_rights

MODULE, GATEWAY = "istio_egress_gateway_deploy", "istio_egress_gateway"
NAME = "out"
MADE = ["ServiceAccount", "Role", "RoleBinding", "Deployment", "Service", "PodDisruptionBudget"]
AUTOSCALE = {"min": 2, "max": 4}
RESOURCES = {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"cpu": 2}}


@pytest.fixture
def place(account: Account) -> str:
    """A namespace that is both the gateway's and the control plane's."""
    return account.namespace("deploy")


@pytest.fixture
def task(account: Account, place: str) -> Callable[..., Result]:
    """Runs the module in the namespace of the test; nothing runs there, so nothing can be waited for."""
    return partial(account.run, MODULE, namespace=place, istio_namespace=place, wait=False)


def kinds(result: Result) -> list[str]:
    return [o["kind"] for o in result["objects"]]


def specs(account: Account, place: str) -> dict[str, Object]:
    """What the objects of a gateway say, without what controllers and any write change."""
    found = {kind: account.server.read(kind, place, name) for kind, name in names_of(NAME).items()}
    return {kind: plain(o) for kind, o in found.items() if o}


def plain(obj: Object) -> Object:
    noise = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "annotations")
    metadata = {k: v for k, v in obj["metadata"].items() if k not in noise}
    return {**{k: v for k, v in obj.items() if k not in ("status", "apiVersion", "kind")}, "metadata": metadata}


def theirs(account: Account, place: str, name: str, labels: dict[str, str] | None = None, **spec: Any) -> None:
    """A gateway of somebody else: a Service, and the Deployment that would run it."""
    metadata, selector = {"name": name, "namespace": place, "labels": labels or {}}, {"app": name}
    ports = [{"name": "http2", "port": 80, "targetPort": 8080}, {"name": "https", "port": 443, "targetPort": 8443}]
    account.server.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": selector, "ports": ports, **spec}})
    container = {"name": "istio-proxy", "image": "auto"}
    template = {"metadata": {"labels": selector, "annotations": {"inject.istio.io/templates": "gateway"}}, "spec": {"containers": [container]}}
    deployment = {"replicas": 0, "selector": {"matchLabels": selector}, "template": template}
    account.server.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": deployment})


# -- what is written ----------------------------------------------------------------------------------------------------------------


def test_a_gateway_comes_changes_and_goes(account: Account, place: str, task: Callable[..., Result]) -> None:
    made = task(name=NAME)
    assert (made["changed"], made["gateway"], made["made_here"], kinds(made)) == (True, f"{place}/{NAME}", True, MADE)
    assert made["replicas"] == 2 and [p["port"] for p in made["ports"]] == [80, 443]

    grown = task(name=NAME, replicas=3, ports=[80, 443, 5432], resources=RESOURCES)
    assert kinds(grown) == ["Deployment", "Service"] and grown["replicas"] == 3
    container = account.server.read("Deployment", place, NAME)["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"] == {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}

    assert kinds(task(name=NAME, autoscale=AUTOSCALE)) == ["HorizontalPodAutoscaler"]
    assert kinds(task(name=NAME, replicas=2)) == ["HorizontalPodAutoscaler", "Deployment"]
    assert kinds(task(name=NAME, read_secrets=False)) == ["RoleBinding", "Role"]

    gone = task(name=NAME, state="absent")
    assert gone["changed"] and specs(account, place) == {}
    again = task(name=NAME, state="absent")
    assert (again["changed"], again.attempts) == (False, [])


@pytest.mark.parametrize("options", [
    {}, {"replicas": 1}, {"autoscale": AUTOSCALE}, {"resources": RESOURCES}, {"ports": [443, 9000]}, {"revision": "canary", "drain_timeout": 90},
    {"read_secrets": False},
], ids=str)  # fmt: skip
def test_check_mode_then_the_change_then_nothing_left_to_do(account: Account, place: str, task: Callable[..., Result], options: dict) -> None:
    tried = task(name=NAME, check=True, diff=True, **options)
    assert tried["changed"] and tried.writes == [] and specs(account, place) == {}
    assert len(tried.attempts) == len(tried["objects"]), "each write is tried once, so that what the server refuses fails here too"

    done = task(name=NAME, diff=True, **options)
    assert (tried["objects"], tried["steps"], tried["diff"]) == (done["objects"], done["steps"], done["diff"])
    assert [d["before"] for d in done["diff"]] == [""] * len(done["diff"])
    assert sorted(yaml.safe_load(d["after"])["kind"] for d in done["diff"]) == sorted(kinds(done))

    before = specs(account, place)
    for arguments in (options, {}):
        again = task(name=NAME, **arguments)
        assert (again["changed"], again.attempts, again["objects"]) == (False, [], []), again
    assert task(name=NAME, check=True, **options).attempts == []
    assert specs(account, place) == before

    end = task(name=NAME, state="absent", check=True, diff=True)
    assert end["changed"] and end.writes == [] and specs(account, place) == before
    assert [d["after"] for d in end["diff"]] == [""] * len(before)


def test_what_somebody_changed_is_mended_and_what_they_added_stays(account: Account, place: str, task: Callable[..., Result]) -> None:
    task(name=NAME)
    server, restarted = account.server, {"kubectl.kubernetes.io/restartedAt": "now"}
    recreate = {"type": "Recreate", "rollingUpdate": None}
    server.patch("Deployment", place, NAME, {"spec": {"template": {"metadata": {"annotations": restarted}}, "strategy": recreate}})
    server.patch("Service", place, NAME, {"spec": {"type": "NodePort"}, "metadata": {"labels": {"theirs": "1"}}})
    server.delete("PodDisruptionBudget", place, NAME)
    assert kinds(task(name=NAME)) == ["Deployment", "Service", "PodDisruptionBudget"]
    deployment, service = server.read("Deployment", place, NAME), server.read("Service", place, NAME)
    assert deployment["spec"]["strategy"]["type"] == "RollingUpdate" and restarted.items() <= deployment["spec"]["template"]["metadata"]["annotations"].items()
    assert service["spec"]["type"] == "ClusterIP" and service["metadata"]["labels"]["theirs"] == "1"
    assert task(name=NAME).attempts == []


# -- what is found ------------------------------------------------------------------------------------------------------------------


def test_one_of_somebody_else_is_used_and_not_changed(account: Account, place: str, task: Callable[..., Result]) -> None:
    theirs(account, place, "front", {"istio": "ingressgateway"})
    theirs(account, place, "their-egress", {"install.operator.istio.io/owning-resource": "unknown"}, type="LoadBalancer")
    result = task(replicas=2)
    assert (result["changed"], result.attempts, result["gateway"], result["made_here"]) == (False, [], f"{place}/their-egress", False)
    assert (result["installed_by"], result["found_by"]) == ("istioctl", "label app: their-egress")
    assert [(f["gateway"], f["purpose"]) for f in result["found"]] == [(f"{place}/front", "ingress"), (f"{place}/their-egress", "egress")]
    assert "replicas 2 (it has 0)" in " ".join(result.warnings)

    for arguments, says in [({"replicas": 2}, "is not changed here"), ({"state": "absent"}, "is not removed here")]:
        refused = task(name="their-egress", **arguments)
        assert refused["failed"] and says in refused.msg and "istioctl" in refused.msg and len(refused.msg.splitlines()) == 2, refused
        assert refused.attempts == []


def test_a_gateway_without_a_sign_is_only_used_by_name(account: Account, place: str, task: Callable[..., Result]) -> None:
    theirs(account, place, "gw")
    assert task(name="gw")["gateway"] == f"{place}/gw"
    result = task(check=True)
    assert result["gateway"] == f"{place}/istio-egressgateway" and result["made_here"]
    assert f"Gateway {place}/gw may be for egress" in " ".join(result.warnings)


def test_the_one_that_was_made_is_found_without_its_name(account: Account, place: str, task: Callable[..., Result]) -> None:
    task(name=NAME)
    assert task()["gateway"] == f"{place}/{NAME}"
    assert kinds(task(replicas=5)) == ["Deployment"]
    task(name="second")
    both = task(state="absent")
    assert both["failed"] and f"{place}/{NAME}, {place}/second" in both.msg and both.attempts == []
    task(name="second", state="absent")
    assert task(state="absent")["gateway"] == f"{place}/{NAME}"
    assert specs(account, place) == {}


# -- what is refused ----------------------------------------------------------------------------------------------------------------


def test_an_object_of_somebody_else_is_not_taken_over(account: Account, place: str, task: Callable[..., Result]) -> None:
    account.server.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": place, "labels": {"team": "net"}}})
    result = task(name=NAME)
    assert result["failed"] and "ServiceAccount" in result.msg and "owner: net" in result.msg and result.attempts == []
    assert task(name=NAME, state="absent").attempts == []


def test_a_gateway_in_use_stays(account: Account, place: str, task: Callable[..., Result]) -> None:
    task(name=NAME)
    host = f"{NAME}.{place}.svc.cluster.local"
    spec = {"hosts": ["edition.cnn.com"], "gateways": ["mesh"], "tls": [{"match": [{"port": 443, "sniHosts": ["edition.cnn.com"]}], "route": []}]}
    spec["tls"][0]["route"] = [{"destination": {"host": host, "port": {"number": 443}}}]
    metadata = {"name": "theirs", "namespace": place}
    account.server.create({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": metadata, "spec": spec})
    for check in (False, True):
        result = task(name=NAME, state="absent", check=check)
        assert result["failed"] and f"edition.cnn.com (VirtualService {place}/theirs)" in result.msg and result.attempts == []
    account.server.delete("VirtualService", place, "theirs")
    assert task(name=NAME, state="absent")["changed"]


@pytest.mark.parametrize("arguments", [{"replicas": 0}, {"ports": [80, 8080]}, {"resources": {"requests": {"cpu": "lots"}}}, {"name": "Out"}], ids=str)
def test_bad_input_is_refused_before_anything_is_asked(task: Callable[..., Result], arguments: dict) -> None:
    result = task(**{"name": NAME, **arguments})
    assert result["failed"] and len(result.msg.splitlines()) == 2 and result.sent == []


def test_what_the_server_refuses_leaves_nothing_behind(account: Account, place: str, task: Callable[..., Result]) -> None:
    result = task(name=NAME, resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})
    assert result["failed"] and "must be less than or equal to cpu limit" in result.msg and "undone" in result.msg
    assert specs(account, place) == {}


def test_a_namespace_that_does_not_exist_is_named(task: Callable[..., Result]) -> None:
    result = task(namespace="no-such-place")
    assert result["failed"] and 'there is no namespace "no-such-place"' in result.msg


def test_it_can_be_run_with_the_rights_of_the_documentation(account: Account) -> None:
    everywhere, here = documented_rights(MODULE, "ClusterRole"), documented_rights(MODULE, "Role in the namespace")
    place = account.namespace("deploy")
    with Account(account.server, everywhere) as limited:
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "deploys", "namespace": place}, "rules": here}
        account.server.create(role)
        account.server.create({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "deploys", "namespace": place},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "deploys"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": limited.user}],
        })  # fmt: skip
        arguments = {"namespace": place, "istio_namespace": place, "name": NAME, "wait": False}
        for check in (True, False):
            assert kinds(limited.run(MODULE, **arguments, check=check)) == MADE
        assert kinds(limited.run(MODULE, **arguments, state="absent")) == MADE[::-1]
    assert KINDS[: len(MADE)] == tuple(MADE)
