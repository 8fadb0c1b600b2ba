"""Under REGISTRY_ONLY and load, hosts move to an egress gateway, to another one, between its hops and back, and no request is lost.

200 requests a second flow to the hosts that move, over HTTP and TLS, on new and on kept connections, and some more to a host beside them whose kept
TLS connections must stay. Those of a host that moves end by Envoy's drain, 45 seconds later: the one request that is on its way on such a connection
when it ends is sent again by any HTTP client, and is not counted as lost.

`make bench` sends 50,000 requests, and as many beside what Istio's documentation has one apply and delete for the same hosts, in its order.
"""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace

import pytest

from mesh.load import Load, Stream, process_of

HOST, MODE, GATEWAY, DEPLOY = "istio_egress_host", "istio_outbound_mode", "istio_egress_gateway", "istio_egress_gateway_deploy"
HTTP, TLS, BESIDE = "httpbin.org", "www.google.com", "edition.cnn.com"
MOVING = [{"host": HTTP, "ports": [80]}, {"host": TLS, "ports": [443]}]
LEAST = int(os.environ.get("EGRESS_LOAD_REQUESTS", "1"))
"""Requests; the round that is under way then is finished, so that there is one at least, of about 10,000 requests."""
LONGEST = 1800
"""Seconds after which the load ends by itself, so that no test can leave one behind."""
ANOTHER = "the other gateway"
RESTART = "rolling restart of the gateway"

ROUND = [
    ("direct to gateway", {"hosts": MOVING}),
    ("another host to the gateway", {"hosts": ["other.example.com:80,443"]}),
    ("to the other gateway", {"hosts": MOVING, "gateway": ANOTHER}),
    (RESTART, None),
    ("hop plain", {"hosts": MOVING, "gateway": ANOTHER, "hop": "plain"}),
    ("hop mutual", {"hosts": MOVING, "gateway": ANOTHER, "hop": "mutual_tls"}),
    ("one host alone back to plain", {"hosts": MOVING[1:], "gateway": ANOTHER, "hop": "plain"}),
    ("one host alone to direct", {"state": "absent", "hosts": [HTTP]}),
    ("gateway to direct", {"state": "absent", "purge": True}),
]
BY_GATEWAY = {"direct to gateway", "another host to the gateway", "to the other gateway", RESTART, "hop plain", "hop mutual", "one host alone back to plain"}


@pytest.fixture(scope="module")
def place(workload, run_module, namespace):
    """The workload under REGISTRY_ONLY with its hosts declared, their addresses, its own address, and a second gateway."""
    run_module(HOST, namespace=workload.namespace, hosts=[*MOVING, BESIDE])
    run_module(MODE, namespace=workload.namespace, mode="REGISTRY_ONLY")
    other = run_module(DEPLOY, namespace=namespace("another", injection=False), name="another-egress", replicas=1, drain_timeout=10)["gateway"]
    at = {host: workload.curl(f"{scheme}://{host}/").address for scheme, host in (("http", HTTP), ("https", TLS), ("https", BESIDE))}
    return SimpleNamespace(workload=workload, at=at, own=workload.curl(f"http://{HTTP}/").body["client"], other=other)


def load(place, own_mesh):
    streams = [
        Stream(f"{'TLS' if host == TLS else 'HTTP'} {'kept' if kept else 'new'}", host, place.at[host], tls=host == TLS, kept=kept)
        for host in (HTTP, TLS)
        for kept in (False, True)
    ]
    streams.append(Stream("TLS kept beside", BESIDE, place.at[BESIDE], tls=True, kept=True, rate=10))
    return Load(process_of(place.workload.uid), streams, own_mesh.cache.far_ca, LONGEST)


def restart(api, cluster, gateway):
    """What `kubectl rollout restart` does, until the pod of the old template is gone."""
    namespace, name = gateway.split("/")
    old = {p["metadata"]["name"] for p in cluster.list("Pod", namespace)}
    mark = {"spec": {"template": {"metadata": {"annotations": {"restarted-at": str(time.time())}}}}}
    api.patch("Deployment", namespace, name, mark)
    deadline = time.monotonic() + 180
    while old & {p["metadata"]["name"] for p in cluster.list("Pod", namespace)}:
        assert time.monotonic() < deadline, f"{gateway} still has pods of before its restart"
        time.sleep(0.5)


def test_hosts_move_to_gateways_and_back_without_a_lost_request(place, run_module, own_mesh, api, cluster, capsys):
    with load(place, own_mesh) as flow:
        rounds = 0
        while flow.sent < LEAST:
            for what, arguments in ROUND:
                flow.mark(what)
                if arguments is None:
                    restart(api, cluster, place.other)
                else:
                    arguments = {**arguments, **({"gateway": place.other} if arguments.get("gateway") else {})}
                    result = run_module(GATEWAY, namespace=place.workload.namespace, **arguments)
                    assert result["changed"] and result["verified"], (what, result)
                through = place.workload.curl(f"http://{HTTP}/").body["client"] != place.own
                assert through == (what in BY_GATEWAY), (what, through)
            rounds += 1
            flow.count()
        flow.mark("nothing more")
        flow.finish()
    with capsys.disabled():
        print(f"\nDuring {rounds} rounds of {len(ROUND)} steps:\n{flow.report()}", file=sys.stderr)
    drained = flow.counts.pop("TLS kept")
    assert all(what.startswith(("connection closed before", "connection broken before")) for _at, what in drained.failures), drained
    assert drained.failed <= len(drained.reconnects), drained
    assert sum(count.failed for count in flow.counts.values()) == 0, flow.report()
    assert flow.counts["TLS kept beside"].reconnects == [], flow.report()


# -- the same by hand ---------------------------------------------------------------------------------------------------------------


def docs_objects(namespace):
    """What Istio's task "Egress Gateways" has one apply for an HTTP and a TLS host: Gateway, DestinationRule, and one VirtualService for both legs."""
    objects = []
    for host, number, protocol in ((HTTP, 80, "HTTP"), (TLS, 443, "TLS")):
        name, kind = host.replace(".", "-"), protocol.lower()
        gateway = "istio-egressgateway.istio-system.svc.cluster.local"
        server = {"port": {"number": number, "name": kind, "protocol": protocol}, "hosts": [host]}
        if kind == "tls":
            server["tls"] = {"mode": "PASSTHROUGH"}
        match = {"sniHosts": [host]} if kind == "tls" else {}
        to_gateway = {"destination": {"host": gateway, "subset": name, "port": {"number": number}}}
        out = {"destination": {"host": host, "port": {"number": number}}}
        rules = [
            {"match": [{"gateways": ["mesh"], "port": number, **match}], "route": [to_gateway]},
            {"match": [{"gateways": [name], "port": number, **match}], "route": [out]},
        ]
        specs = {
            "Gateway": {"selector": {"istio": "egressgateway"}, "servers": [server]},
            "DestinationRule": {"host": gateway, "subsets": [{"name": name}]},
            "VirtualService": {"hosts": [host], "gateways": [name, "mesh"], kind: rules},
        }
        metadata = {"name": name, "namespace": namespace}
        objects += [{"apiVersion": "networking.istio.io/v1", "kind": k, "metadata": metadata, "spec": spec} for k, spec in specs.items()]
    return objects


@pytest.mark.skipif("EGRESS_LOAD_REQUESTS" not in os.environ, reason="the comparison with the documentation's order belongs to make bench")
def test_what_the_docs_have_one_do_beside_it(place, run_module, own_mesh, api, capsys):
    """Prints how many requests fail; nothing is asserted but that it was really done."""
    objects = docs_objects(place.workload.namespace)
    run_module(HOST, namespace=place.workload.namespace, hosts=[*MOVING, BESIDE], export_to=["*"])  # as the documentation's ServiceEntries are
    with load(place, own_mesh) as flow:
        rounds = 0
        while flow.sent < LEAST // 3:
            flow.mark("apply, in the order of the task")
            for obj in objects:
                api.create(obj)
                time.sleep(1)
            time.sleep(5)
            assert place.workload.curl(f"http://{HTTP}/").body["client"] != place.own
            flow.mark("delete, in the order of its clean-up")
            for obj in objects:
                api.delete(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
                time.sleep(1)
            time.sleep(5)
            rounds += 1
            flow.count()
        flow.finish()
    with capsys.disabled():
        print(f"\nThe documentation's objects applied and deleted, {rounds} rounds:\n{flow.report()}", file=sys.stderr)
