"""A gateway that cannot serve gets nobody: the task fails before it sends anybody there, and clients keep the way they had."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from api.modules import wait_until
from mesh.test_follow import answers_lost

DEPLOY, GATEWAY, HOST, MODE = "istio_egress_gateway_deploy", "istio_egress_gateway", "istio_egress_host", "istio_outbound_mode"
NAME = "down-egressgateway"
ENTRY = {"host": "httpbin.org", "ports": [80]}
URL = "http://httpbin.org/"


@pytest.fixture(scope="module")
def gateway(namespace, run_module):
    """A gateway of one pod."""
    return run_module(DEPLOY, namespace=namespace("down", injection=False), name=NAME, replicas=1, drain_timeout=5)["gateway"]


@pytest.fixture(scope="module")
def client(workload, run_module):
    """A workload that may reach the host directly and nothing else, and its address."""
    run_module(HOST, namespace=workload.namespace, hosts=[ENTRY])
    run_module(MODE, namespace=workload.namespace, mode="REGISTRY_ONLY")
    return SimpleNamespace(workload=workload, namespace=workload.namespace, address=seen_as(workload))


def seen_as(workload):
    return workload.curl(URL).body["client"]


def routed(api, client):
    """The objects that send the clients to a gateway."""
    return [o["metadata"]["name"] for o in api.list("VirtualService", client.namespace)]


def test_nobody_is_sent_to_a_gateway_that_is_down(gateway, client, run_module, api, cluster):
    place = gateway.partition("/")[0]
    for what, says in [(take_service, "no Service of that name"), (scale_to_zero, "has no proxy that is ready")]:
        with what(api, cluster, place):
            result = run_module(GATEWAY, fails=True, namespace=client.namespace, gateway=gateway, hosts=[ENTRY])
            assert says in result.msg and "Nobody was sent there" in result.msg and gateway in result.msg, result.msg
            assert len(result.msg.splitlines()) == 2
            assert routed(api, client) == [] and seen_as(client.workload) == client.address
        run_module(DEPLOY, namespace=place, name=NAME, replicas=1)  # also mends what somebody took away


def test_a_gateway_that_dies_during_the_task_gets_nobody(gateway, client, run_module, api, cluster, own_mesh):
    """It hears nothing of the hosts from istiod, so that the task waits for it; then it is killed."""
    place = gateway.partition("/")[0]
    [pod] = [p for p in cluster.list("Pod", place) if not p["metadata"].get("deletionTimestamp")]
    with answers_lost(SimpleNamespace(uid=pod["metadata"]["uid"]), "tcp", 15012), ThreadPoolExecutor(1) as pool:
        task = pool.submit(run_module, GATEWAY, fails=True, namespace=client.namespace, gateway=gateway, hosts=[ENTRY], wait_timeout=20)
        wait_until(lambda: api.list("Gateway", place), "the task to write the gateway's side")
        kill(api, cluster, place)
        result = task.result()
    assert "gateway" in result.msg and len(result.msg.splitlines()) == 2, result.msg
    assert routed(api, client) == [] and seen_as(client.workload) == client.address
    run_module(DEPLOY, namespace=place, name=NAME, replicas=1)
    again = run_module(GATEWAY, namespace=client.namespace, gateway=gateway, hosts=[ENTRY])
    assert again["changed"] and again["verified"] and seen_as(client.workload) != client.address
    run_module(GATEWAY, namespace=client.namespace, gateway=gateway, state="absent", purge=True)
    assert seen_as(client.workload) == client.address


@contextlib.contextmanager
def take_service(api, cluster, place):
    api.delete("Service", place, NAME)
    yield


@contextlib.contextmanager
def scale_to_zero(api, cluster, place):
    kill(api, cluster, place)
    yield


def kill(api, cluster, place):
    """No pod of the gateway is left, and none comes again."""
    api.patch("Deployment", place, NAME, {"spec": {"replicas": 0}})
    for pod in cluster.list("Pod", place):
        api.call("DELETE", f"/api/v1/namespaces/{place}/pods/{pod['metadata']['name']}", {"gracePeriodSeconds": 0})
    wait_until(lambda: cluster.list("Pod", place) == [], "the gateway's pods to be gone", 60)
