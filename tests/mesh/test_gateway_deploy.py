"""An egress gateway is deployed, serves, grows, restarts under load without a lost request, and goes when nobody goes through it any more."""

from __future__ import annotations

import base64
import sys

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_workload import KINDS
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import ask
from api.modules import wait_until
from mesh.load import Load, Stream, process_of
from mesh.test_gateway import certificate

DEPLOY, GATEWAY = "istio_egress_gateway_deploy", "istio_egress_gateway"
HTTP, TLS = "httpbin.org", "www.google.com"
LONGEST = 300
"""Seconds after which the load ends by itself, so that no test can leave one behind."""


@pytest.fixture(scope="module")
def place(namespace):
    """Where the gateway is deployed: a namespace whose pods get no sidecar."""
    return namespace("egress", injection=False)


@pytest.fixture(scope="module")
def deployed(place, run_module):
    """The gateway as the module returned it."""
    result = run_module(DEPLOY, namespace=place, replicas=1)
    assert result["changed"] and result["verified"] and result["made_here"]
    return result["gateway"]


@pytest.fixture(scope="module")
def through(deployed, workload, run_module):
    """The workload, whose requests to two hosts go through the gateway."""
    hosts = [{"host": HTTP, "ports": [80]}, {"host": TLS, "ports": [443]}]
    run_module(GATEWAY, namespace=workload.namespace, gateway=deployed, hosts=hosts)
    return workload


def addresses(cluster, place):
    """Of the gateway's pods, those too that are ending."""
    return {p["status"].get("podIP") for p in cluster.list("Pod", place)}


def test_the_one_that_is_there_is_used_and_left_as_it_is(run_module, cluster):
    before = cluster.get("Deployment", "istio-system", "istio-egressgateway")
    if before is None:
        pytest.skip("this mesh has no istio-system/istio-egressgateway")
    result = run_module(DEPLOY, namespace="istio-system", replicas=3)
    assert not result["changed"] and not result["made_here"] and result["verified"]
    assert result["gateway"] == "istio-system/istio-egressgateway"
    assert "replicas 3 (it has" in " ".join(result.warnings)
    refused = run_module(DEPLOY, fails=True, namespace="istio-system", name="istio-egressgateway", replicas=3)
    assert "is not changed here" in refused.msg and len(refused.msg.splitlines()) == 2
    kept = run_module(DEPLOY, fails=True, namespace="istio-system", name="istio-egressgateway", state="absent")
    assert "is not removed here" in kept.msg
    assert cluster.get("Deployment", "istio-system", "istio-egressgateway")["metadata"]["generation"] == before["metadata"]["generation"]


def test_the_far_end_sees_the_gateway(through, cluster, place):
    assert {through.curl(url).body["client"] for url in (f"http://{HTTP}/", f"https://{TLS}/")} <= addresses(cluster, place)


def test_istiod_hands_it_the_key_of_a_client_certificate(deployed, place, cluster, api, tmp_path):
    """As TLS origination with a client certificate needs; for that its account has to have the right to read Secrets."""
    data = {name: base64.b64encode(content).decode() for name, content in certificate(tmp_path, "client").items()}
    api.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "client", "namespace": place}, "data": data})
    metadata, istio = {"name": "mutual", "namespace": place}, {"apiVersion": "networking.istio.io/v1"}
    entry = {"hosts": ["www.cnn.com"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "resolution": "DNS", "exportTo": ["."]}
    rule = {"host": "www.cnn.com", "exportTo": ["."], "trafficPolicy": {"tls": {"mode": "MUTUAL", "credentialName": "client"}}}
    for kind, spec in (("ServiceEntry", entry), ("DestinationRule", rule)):
        api.create({**istio, "kind": kind, "metadata": metadata, "spec": spec})
    [pod] = [p["metadata"]["name"] for p in cluster.list("Pod", place)]

    def has_key():
        return '"name": "kubernetes://client"' in ask(cluster, place, pod, "config_dump?resource=dynamic_active_secrets")[0]

    wait_until(has_key, "the gateway to have the key", 60)


def test_a_second_run_finds_it_and_changes_nothing(deployed, place, run_module):
    for arguments in ({}, {"replicas": 1}, {"name": "istio-egressgateway"}):
        result = run_module(DEPLOY, namespace=place, **arguments)
        assert not result["changed"] and result["gateway"] == deployed and result["ready"] == 1, result


def test_plain_tcp_gets_a_port_of_its_own(through, deployed, place, run_module, cluster):
    address = through.curl(f"https://{TLS}/").address
    entry = {"host": "store.example.com", "ports": ["tcp/5432"], "addresses": [address]}
    by_hop = {"namespace": through.namespace, "policy": "tcp", "hosts": [entry], "hop": "plain"}
    refused = run_module(GATEWAY, fails=True, **by_hop)
    assert "has no port 5432" in refused.msg and "{name: tcp-5432, port: 5432, targetPort: 5432}" in refused.msg
    result = run_module(GATEWAY, gateway=deployed, **by_hop)
    assert result["verified"] and {"kind": "Service", "namespace": place, "name": "istio-egressgateway", "action": "update"} in result["objects"]
    assert through.greeting(address, 5432)["client"] in addresses(cluster, place)
    assert not run_module(GATEWAY, gateway=deployed, **by_hop)["changed"]
    run_module(GATEWAY, namespace=through.namespace, policy="tcp", state="absent", purge=True)


def test_it_grows_and_restarts_under_load_without_a_lost_request(through, deployed, place, run_module, cluster, api, own_mesh, capsys):
    at = {host: through.curl(f"{scheme}://{host}/").address for scheme, host in (("http", HTTP), ("https", TLS))}
    streams = [  # not kept TLS connections: they end with the old pods, and hold them up until then
        Stream("HTTP new", HTTP, at[HTTP], tls=False, kept=False, rate=20),
        Stream("HTTP kept", HTTP, at[HTTP], tls=False, kept=True, rate=20),
        Stream("TLS new", TLS, at[TLS], tls=True, kept=False, rate=20),
    ]
    with Load(process_of(through.uid), streams, own_mesh.cache.far_ca, LONGEST) as load:
        load.mark("grow to 2")
        assert run_module(DEPLOY, namespace=place, replicas=2)["ready"] == 2
        before = {p["metadata"]["name"] for p in cluster.list("Pod", place)}
        load.mark("restart")
        annotations = {"kubectl.kubernetes.io/restartedAt": "now"}
        api.patch("Deployment", place, "istio-egressgateway", {"spec": {"template": {"metadata": {"annotations": annotations}}}})
        result = run_module(DEPLOY, namespace=place, replicas=2)
        assert not result["changed"], "what others write on the template stays"
        assert result["ready"] == 2
        load.mark("old pods end")
        wait_until(lambda: before.isdisjoint(p["metadata"]["name"] for p in cluster.list("Pod", place)), "the old pods to be gone", 90)
        load.finish()
    with capsys.disabled():
        print(f"\n{load.report()}", file=sys.stderr)
    assert sum(count.failed for count in load.counts.values()) == 0, load.report()


def test_it_stays_while_hosts_go_through_it_and_goes_then(through, deployed, place, run_module, cluster):
    refused = run_module(DEPLOY, fails=True, namespace=place, state="absent")
    assert HTTP in refused.msg and "nothing was removed" in refused.msg
    run_module(GATEWAY, namespace=through.namespace, gateway=deployed, state="absent", purge=True)
    result = run_module(DEPLOY, namespace=place, state="absent")
    assert result["changed"]
    left = [f"{kind}/{o['metadata']['name']}" for kind in KINDS for o in cluster.list(kind, place) if o["metadata"]["name"] != "default"]
    assert left == []
    assert not run_module(DEPLOY, namespace=place, state="absent")["changed"]
    assert through.curl(f"http://{HTTP}/").outcome == "200"
