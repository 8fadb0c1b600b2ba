"""What host entries become, a real API server and istiod's own checks accept; what is refused here they would refuse, or take and not do.

The API server checks the schema and CEL rules of the CRD with a dry-run create. `istioctl validate` runs what istiod's webhook runs, without an istiod.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import PROTOCOLS, RESOLUTIONS, PolicyError
from tooling import tree
from unit.tasks import Task, service_entry

BY_NAME = [[443], [80], [80, 443], ["http/8080"], ["https/8443"], ["grpc/50051", "http2/8080", "tls/443"]]
BY_ADDRESS = [["192.0.2.1"], ["192.0.2.1", "192.0.2.2"], ["192.0.2.0/24"], ["2001:db8::1"], ["2001:db8::/32", "192.0.2.1"]]
LABEL = "a" * 60

ENTRIES: list[Any] = [
    *({"host": "a.example.com", "ports": ports} for ports in BY_NAME),
    *({"host": "*.example.com", "ports": ports} for ports in BY_NAME),
    *({"host": "a.example.com", "addresses": addresses} for addresses in BY_ADDRESS),
    *({"host": "db.example.com", "addresses": addresses, "ports": ["tcp/5432"]} for addresses in BY_ADDRESS),
    {"host": "db.example.com", "addresses": ["192.0.2.1"], "ports": ["mongo/27017"], "resolution": "static"},
    {"host": "db.example.com", "addresses": ["192.0.2.1"], "ports": ["tcp/5432"], "resolution": "dns"},
    {"host": "db.example.com", "ports": ["tcp/5432"], "capture_port": True},
    {"host": "*.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.1"]},
    {"host": "*.example.com", "addresses": ["192.0.2.1"]},
    {"host": "*.example.com", "ports": [80, 443], "resolution": "dynamic_dns"},
    {"host": "a.example.com", "resolution": "dns_round_robin"},
    {"host": "a.example.com", "resolution": "none"},
    "198.51.100.0/24:tcp/9000",
    "192.0.2.9",
    "2001:db8::9",
    {"host": "2001:db8:1:2:3:4:5:0/112"},
    {"host": f"{LABEL}.{LABEL}.{LABEL}.{LABEL}.example", "addresses": ["192.0.2.1"]},
    {"host": "a.example.com", "owner": "Zoë", "ticket": "NET-1", "reason": "pay: 'x' \"y\"", "expires": "2027-01-31"},
    {"host": "a.example.com", "addresses": [f"10.0.{n // 256}.{n % 256}" for n in range(256)]},
]


def objects_for(*entries: Any, namespace: str, **options: Any) -> list[dict[str, Any]]:
    return [change.after for change in Task(entries, namespace=namespace, **options).plan([]).changes]


@pytest.fixture(scope="session")
def istioctl() -> Callable[..., str]:
    """Runs `istioctl validate` on objects: what it says against them, empty when it accepts them."""
    program = shutil.which("istioctl", path=f"{tree.CACHE / 'bin'}:{os.environ['PATH']}")
    if not program:
        pytest.skip("There is no istioctl in PATH. `tests/cluster/mesh build` makes one.")

    def validate(*objects: dict[str, Any]) -> str:
        text = "\n---\n".join(json.dumps(obj, ensure_ascii=False) for obj in objects)  # YAML knows no surrogate pairs
        answer = subprocess.run([program, "validate", "-f", "-"], input=text, capture_output=True, text=True, check=False, timeout=60)
        return "" if answer.returncode == 0 else answer.stderr + answer.stdout

    return validate


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry)[:70])
def test_the_server_takes_what_an_entry_becomes(cluster: Cluster, namespace: str, istioctl: Callable[..., str], entry: Any) -> None:
    [obj] = objects_for(entry, namespace=namespace)
    kept = cluster.create(obj, dry_run=True)
    assert kept["spec"] == obj["spec"], "the server fills in or drops something"
    assert istioctl(obj) == ""


@pytest.mark.parametrize("export_to", [["."], ["*"], [".", "istio-system"], ["prod"]], ids=str)
def test_the_server_takes_any_export(cluster: Cluster, namespace: str, istioctl: Callable[..., str], export_to: list[str]) -> None:
    [obj] = objects_for("a.example.com", namespace=namespace, export_to=export_to)
    assert cluster.create(obj, dry_run=True)["spec"]["exportTo"] == export_to
    assert istioctl(obj) == ""


def test_the_server_takes_full_objects_with_notes_on_every_host(cluster: Cluster, namespace: str, istioctl: Callable[..., str]) -> None:
    entries = [{"host": f"h{n}.example.com", "owner": "team-web", "ticket": f"NET-{n}", "reason": "r" * 200, "expires": "2027-01-31"} for n in range(257)]
    objects = objects_for(*entries, namespace=namespace)
    assert [len(cluster.create(obj, dry_run=True)["spec"]["hosts"]) for obj in objects] == [256, 1]
    assert istioctl(*objects) == ""


def random_entry(chance: random.Random) -> dict[str, Any]:
    """An entry as nobody would write it: most are refused, and what is not has to be one that Istio takes."""
    label = "".join(chance.choices("abz019--_", k=chance.choice([1, 2, 8, 62, 63, 64])))
    version, length = chance.choice([(ipaddress.IPv4Address, 32), (ipaddress.IPv6Address, 128)])
    addresses = [f"{version(chance.getrandbits(length))}{chance.choice(['', f'/{length}', '/24', '/1'])}" for _each in range(3)]
    names = [f"{chance.choice(['', '*.', '*'])}{label}.{chance.choice(['com', '0', 'co-m', 'xn--p1ai'])}", "A.B.Com.", "*.com", "1.2.3", addresses[0]]
    port = chance.choice([80, 443, chance.randint(1, 65535)])
    entry = {
        "ports": [port, *(f"{chance.choice(PROTOCOLS)}/{port + n}" for n in range(1, 3))][: chance.randint(1, 3)],
        "addresses": addresses[chance.randint(1, 3) :],
        "resolution": chance.choice(["auto", *RESOLUTIONS]),
        "capture_port": chance.choice([True, False]),
        "reason": "".join(chance.choices("a\"'\n\té😀", k=5)),
    }
    return {"host": chance.choice(names), **{key: entry[key] for key in chance.sample(sorted(entry), 3)}}


def test_the_server_takes_whatever_is_not_refused(cluster: Cluster, namespace: str, istioctl: Callable[..., str]) -> None:
    chance, objects = random.Random(1), list[dict[str, Any]]()
    while len(objects) < 150:
        with contextlib.suppress(PolicyError):
            objects += objects_for(random_entry(chance), namespace=namespace)
    for obj in objects:
        cluster.create(obj, dry_run=True)
    assert istioctl(*objects) == ""


# -- what is refused ----------------------------------------------------------------------------------------------------------------


def raw(*hosts: str, ports: str = "tls/443", **spec: Any) -> dict[str, Any]:
    """The spec that a host entry would have become, had it not been refused."""
    numbered = [{"number": int(p.split("/")[1]), "name": f"p{i}", "protocol": p.split("/")[0].upper()} for i, p in enumerate(ports.split())]
    return {"hosts": list(hosts), "ports": numbered, "location": "MESH_EXTERNAL", "resolution": "DNS", "exportTo": ["."], **spec}


NONE, STATIC, DYNAMIC = {"resolution": "NONE"}, {"resolution": "STATIC"}, {"resolution": "DYNAMIC_DNS"}
A, W = "a.example.com", "*.example.com"
NET = ["192.0.2.0/24"]
MANY = [f"10.0.{n // 256}.{n % 256}" for n in range(257)]

REFUSED = [
    # options of the task, what the object would have said, who refuses that, and in which words
    ({"hosts": ["*"]}, raw("*", **NONE), "server", "hostname cannot be wildcard"),
    ({"hosts": [{"host": A, "ports": [443, "tcp/443"]}]}, raw(A, ports="tls/443 tcp/443"), "server", "port number cannot be duplicated"),
    ({"hosts": [f"{A}:tls/0"]}, raw(A, ports="tls/0"), "server", "port must be between 1-65535"),
    ({"hosts": [f"{A}:tls/65536"]}, raw(A, ports="tls/65536"), "server", "port must be between 1-65535"),
    ({"hosts": [{"host": A, "addresses": NET, "resolution": "dns"}]}, raw(A, addresses=NET), "server", "CIDR addresses are allowed only for NONE/STATIC"),
    ({"hosts": [{"host": A, "addresses": MANY}]}, raw(A, addresses=MANY, **NONE), "server", "must have at most 256 items"),
    ({"hosts": [{"host": A, "resolution": "fast"}]}, raw(A, resolution="FAST"), "server", "Unsupported value"),
    ({"hosts": ["https://a.example.com/x"]}, raw("https://a.example.com/x"), "istiod", "invalid"),
    ({"hosts": ["under_score.example.com"]}, raw("under_score.example.com"), "istiod", 'label "under_score" invalid'),
    ({"hosts": ["192.0.2.300"]}, raw("192.0.2.300"), "istiod", "cannot be all-numeric"),
    ({"hosts": [f"{'a' * 64}.example.com"]}, raw(f"{'a' * 64}.example.com"), "istiod", "invalid"),
    ({"hosts": ["www.*.com"]}, raw("www.*.com", **NONE), "istiod", "invalid"),
    ({"hosts": [f"{A}:foo/443"]}, raw(A, ports="foo/443"), "istiod", "unsupported protocol"),
    ({"hosts": [{"host": W, "resolution": "dns"}]}, raw(W), "istiod", "must be FQDN"),
    ({"hosts": [{"host": W, "resolution": "dns_round_robin"}]}, raw(W, resolution="DNS_ROUND_ROBIN"), "istiod", "must be FQDN"),
    ({"hosts": [{"host": A, "addresses": ["192.0.2"]}]}, raw(A, addresses=["192.0.2"], **NONE), "istiod", "not a valid"),
    ({"hosts": [{"host": A, "addresses": ["b.org"], "resolution": "static"}]}, raw(A, endpoints=[{"address": "b.org"}], **STATIC), "istiod", "not a valid IP"),
    ({"hosts": [{"host": A, "addresses": NET, "resolution": "static"}]}, raw(A, endpoints=[{"address": NET[0]}], **STATIC), "istiod", "not a valid IP"),
    ({"hosts": [{"host": A, "resolution": "dynamic_dns"}]}, raw(A, **DYNAMIC), "istiod", "DYNAMIC_DNS"),
    ({"hosts": [{"host": W, "resolution": "dynamic_dns", "addresses": ["192.0.2.1"]}]}, raw(W, addresses=["192.0.2.1"], **DYNAMIC), "istiod", "DYNAMIC_DNS"),
    ({"hosts": [{"host": W, "resolution": "dynamic_dns", "ports": ["https/443"]}]}, raw(W, ports="https/443", **DYNAMIC), "istiod", "DYNAMIC_DNS"),
    ({"hosts": [A], "export_to": ["*", "prod"]}, raw(A, exportTo=["*", "prod"]), "istiod", "exportTo"),
    # Taken by both, and not what anybody wants.
    ({"hosts": ["db.example.com:tcp/5432"]}, raw("db.example.com", ports="tcp/5432"), "nobody", "would capture every connection"),
    ({"hosts": ["ns.example.com:udp/53"]}, raw("ns.example.com", ports="udp/53"), "nobody", "cannot be controlled"),
    ({"hosts": ["google"]}, raw("google"), "nobody", "has no domain"),
    ({"hosts": ["reviews.demo.svc.cluster.local"]}, raw("reviews.demo.svc.cluster.local"), "nobody", "is a Service of the cluster"),
    ({"hosts": ["0.0.0.0/0:tcp/1"]}, raw(A, addresses=["0.0.0.0/0"], ports="tcp/1", **NONE), "nobody", "every address"),
    ({"hosts": [{"host": A, "resolution": "static"}]}, raw(A, **STATIC), "nobody", "needs single IP addresses"),
    ({"hosts": [A], "export_to": ["Prod"]}, raw(A, exportTo=["Prod"]), "nobody", "not the name of a namespace"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "spec", "refuser", "words"), REFUSED, ids=[f"{row[2]}: {row[0]}"[:90] for row in REFUSED])
def test_what_is_refused_would_not_have_worked(
    cluster: Cluster, namespace: str, istioctl: Callable[..., str], options: dict[str, Any], spec: dict[str, Any], refuser: str, words: str
) -> None:
    with pytest.raises(PolicyError) as ours:
        Task(namespace=namespace, **options).plan([])
    obj = service_entry("refused", namespace=namespace, **spec)
    try:
        cluster.create(obj, dry_run=True)
        server = ""
    except ClusterError as error:
        assert error.status == 422
        server = error.message
    istiod = istioctl(obj)
    assert bool(server) == (refuser == "server")
    assert refuser == "server" or bool(istiod) == (refuser == "istiod")
    assert words in {"server": server, "istiod": istiod, "nobody": str(ours.value)}[refuser]
