"""What hosts by way of an egress gateway cost proxies, beside the recipe of Istio's documentation, in the same run. Part of `make bench`.

Each row has a client and a gateway of its own that hold nothing else, and says by how much both grow: configuration as ``config_dump`` writes it, and
memory that Envoy has allocated. The aims are those that the design sets; what misses one fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import ask, ask_for
from cluster.onemachine import farend

COUNT = int(os.environ.get("EGRESS_SIZES_HOSTS", "0"))
MANY = 2000
ZONE = "sizes.example.com"
SETTLED = 15
"""Seconds in which memory that a change took for a moment is given back."""
GATEWAY, DEPLOY, MODE = "istio_egress_gateway", "istio_egress_gateway_deploy", "istio_outbound_mode"
COLUMNS = ("", "objects", "client's config", "client's memory", "gateway's config", "gateway's memory", "names the client looks up")
KINDS = ("ServiceEntry", "Gateway", "DestinationRule", "VirtualService")

pytestmark = pytest.mark.skipif(not COUNT, reason="measures for minutes: make bench")


@dataclass(frozen=True)
class Size:
    """Bytes of configuration and of memory of a proxy."""

    config: int
    memory: int

    def above(self, other: Size) -> Size:
        return Size(self.config - other.config, self.memory - other.memory)


@dataclass(frozen=True)
class Row:
    objects: int
    client: Size
    gateway: Size
    looked_up: int


def names(count):
    return [f"h{i}.{ZONE}" for i in range(count)]


def size_of(cluster, namespace, pod):
    configuration, memory = ask(cluster, namespace, pod, "config_dump", "memory")
    return Size(len(configuration), int(json.loads(memory)["allocated"]))


def looked_up(cluster, namespace, pod):
    """The hosts of the zone that a proxy asks DNS for, again and again. Its questions themselves reach the far end in the name of the cluster's DNS."""
    [told] = ask_for(cluster, namespace, pod, "config_dump?resource=dynamic_active_clusters")
    by_dns = [c["cluster"] for c in told["configs"] if c["cluster"].get("type", "").endswith("_DNS")]
    return {c["name"].rpartition("|")[2] for c in by_dns if c["name"].endswith(ZONE)}


def routers_of(cluster, namespace):
    return [p["metadata"]["name"] for p in cluster.list("Pod", namespace) if not p["metadata"].get("deletionTimestamp")]


def recipe(host, namespace, gateway, selector):
    """What Istio's documentation applies for one host with HTTP and TLS: four objects of its own."""
    service = f"{gateway.partition('/')[2]}.{gateway.partition('/')[0]}.svc.cluster.local"
    name = host.replace(".", "-")
    ports = [{"number": 80, "name": "http", "protocol": "HTTP"}, {"number": 443, "name": "tls", "protocol": "TLS"}]
    servers = [{"port": ports[0], "hosts": [host]}, {"port": ports[1], "hosts": [host], "tls": {"mode": "PASSTHROUGH"}}]
    rules = {}
    for kind, port in (("http", 80), ("tls", 443)):
        match = {"port": port, **({"sniHosts": [host]} if kind == "tls" else {})}
        there = {"destination": {"host": service, "subset": name, "port": {"number": port}}}
        out = {"destination": {"host": host, "port": {"number": port}}}
        rules[kind] = [{"match": [{**match, "gateways": ["mesh"]}], "route": [there]}, {"match": [{**match, "gateways": [name]}], "route": [out]}]
    specs = {
        "ServiceEntry": {"hosts": [host], "ports": ports, "resolution": "DNS"},
        "Gateway": {"selector": selector, "servers": servers},
        "DestinationRule": {"host": service, "subsets": [{"name": name}]},
        "VirtualService": {"hosts": [host], "gateways": [name, "mesh"], **rules},
    }
    metadata = {"name": name, "namespace": namespace}
    return [{"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec} for kind, spec in specs.items()]


@pytest.fixture(scope="module")
def far(own_mesh):
    """The far end has every host below the zone, so that DNS answers."""
    known = farend.hosts(own_mesh)
    if f"*.{ZONE}" not in known:
        subprocess.run(["tests/cluster/mesh", "farend", "--name", own_mesh.name, "hosts", "add", f"*.{ZONE}"], check=True)
    return own_mesh


@pytest.fixture(scope="module")
def measure(cluster, api, namespace, start, run_module, far) -> Callable[..., Row]:
    """`measure(BRING)`: a Row for what `BRING(client namespace, gateway)` brings about. All of it goes before the next."""

    def one(bring) -> Row:
        place = namespace("gw", injection=False)  # names are part of the configuration: both as long as those of real namespaces
        gateway = run_module(DEPLOY, namespace=place, name="sizes-egress", replicas=1)["gateway"]
        client = start(namespace("in"))
        run_module(MODE, namespace=client.namespace, mode="REGISTRY_ONLY")
        router = routers_of(cluster, place)[0]
        before = size_of(cluster, client.namespace, client.pod), size_of(cluster, place, router)
        bring(client.namespace, gateway)
        time.sleep(SETTLED)
        asked = looked_up(cluster, client.namespace, client.pod)
        after = size_of(cluster, client.namespace, client.pod), size_of(cluster, place, router)
        objects = sum(len(api.list(kind, n)) for kind in KINDS for n in (client.namespace, place))
        for n in (client.namespace, place):
            api.delete("Namespace", None, n)
        deadline = time.monotonic() + 120
        while any(api.list(kind, n) for kind in KINDS for n in (client.namespace, place)) and time.monotonic() < deadline:
            time.sleep(1)
        return Row(objects, after[0].above(before[0]), after[1].above(before[1]), len(asked))

    return one


def by_module(run_module, hop="auto", first=(), count=COUNT):
    def bring(namespace, gateway):
        hosts = [*first, *({"host": h, "ports": [80, 443]} for h in names(count))]
        result = run_module(GATEWAY, namespace=namespace, gateway=gateway, hosts=hosts, hop=hop, wait_timeout=300)
        assert result["verified"], result

    return bring


def test_sizes(measure, run_module, api, capsys):
    def by_hand(namespace, gateway):
        selector = api.read("Service", *gateway.split("/"))["spec"]["selector"]
        for host in names(COUNT):
            for obj in recipe(host, namespace, gateway, selector):
                api.create(obj)
        time.sleep(SETTLED)

    rows = {
        "the documentation's recipe": measure(by_hand),
        "hop auto (HTTP mutual, TLS plain)": measure(by_module(run_module)),
        "hop plain": measure(by_module(run_module, hop="plain")),
        "hop mutual_tls (identity for TLS)": measure(by_module(run_module, hop="mutual_tls")),
        "default route, 2 hosts": measure(by_module(run_module, first=["everything"], count=2)),
        f"default route, {MANY} hosts": measure(by_module(run_module, first=["everything"], count=MANY)),
    }
    with capsys.disabled():
        print(f"\n\n{COUNT} hosts, ports 80 and 443\n\n| {' | '.join(COLUMNS)} |")
        print("|---|---|---|---|---|---|---|")
        for name, row in rows.items():
            sizes = [f"{value / 1e3:,.0f} kB" for value in (row.client.config, row.client.memory, row.gateway.config, row.gateway.memory)]
            print(f"| {name} | {row.objects} | {' | '.join(sizes)} | {row.looked_up} |")
    docs, auto, few, many = (rows[name] for name in list(rows)[:2] + list(rows)[-2:])
    assert auto.client.config * 7 <= docs.client.config * 2
    assert auto.client.memory * 4 <= docs.client.memory
    assert auto.gateway.memory <= docs.gateway.memory
    assert auto.gateway.config <= docs.gateway.config
    assert auto.objects * 3 <= docs.objects
    assert (auto.looked_up, docs.looked_up) == (0, COUNT)
    assert many.client.config <= few.client.config * 1.02
