"""Hosts that somebody else declares too: what is an error that names the object, what is a warning, and what is nobody's business. Tables; no cluster."""

from __future__ import annotations

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._lint import check_clashes
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Declared
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import PolicyError, parse_hosts
from unit.tasks import Task, after, service_entry

CNN = "edition.cnn.com"


def ports(*given):
    """Ports with the protocol in lower case, which Istio takes as well."""
    return [{"number": int(p.split("/")[1]), "name": p.replace("/", "-"), "protocol": p.split("/")[0]} for p in given]


def clashes(hosts, live, policy="default"):
    return check_clashes([Declared(entry, (".",)) for entry in parse_hosts(hosts)], live, "demo", policy)


@pytest.mark.parametrize(
    ("listed", "theirs", "what", "way_out"),
    [
        (f"{CNN}:80,443", ["tls/443"], f"already declares {CNN}, without port 80", "add port 80 (HTTP)"),
        (f"{CNN}:tls/80", ["http/80"], f'already declares {CNN} on port 80 as HTTP; policy "default" says TLS', "agree on one protocol"),
        (CNN, ["http/443"], f'already declares {CNN} on port 443 as HTTP; policy "default" says TLS', f"Remove port 443 of {CNN}"),
        (f"{CNN}:http/80", ["grpc/80"], 'as GRPC; policy "default" says HTTP', "agree on one protocol"),
    ],
    ids=str,
)
def test_another_ports_or_protocol_of_the_same_host_is_an_error(listed, theirs, what, way_out):
    cnn = service_entry("cnn", CNN, ports=ports(*theirs), labels={"app.kubernetes.io/managed-by": "argocd"})
    with pytest.raises(PolicyError) as raised:
        clashes([listed], [cnn])
    said, advice = str(raised.value).split("\n")
    assert said.startswith("ServiceEntry demo/cnn (owner: argocd)") and what in said and way_out in advice


@pytest.mark.parametrize(
    ("listed", "theirs"), [(CNN, ["tls/443"]), (CNN, ["https/443"]), (f"{CNN}:https/443", ["tls/443"]), (CNN, ["http/80", "tls/443"])], ids=str
)
def test_the_same_host_in_the_same_way_is_a_warning(listed, theirs):
    """HTTPS and TLS are the same to a sidecar."""
    [warning] = clashes([listed, "other.example.com"], [service_entry("cnn", CNN, "x.example.com", ports=ports(*theirs))])
    assert warning.startswith(f"{CNN} is also declared by ServiceEntry demo/cnn (unknown owner)")


@pytest.mark.parametrize(
    ("obj", "whose"),
    [
        (service_entry("cnn", CNN, namespace="prod"), "prod/cnn (unknown owner)"),
        (service_entry("cnn", CNN, namespace="prod", exportTo=["*"]), "prod/cnn (unknown owner)"),
        (service_entry("cnn", CNN, namespace="prod", exportTo=["stage", "demo"]), "prod/cnn (unknown owner)"),
        (service_entry("cnn", CNN, exportTo=["."]), "demo/cnn (unknown owner)"),
        (after([], Task([CNN], policy="web"))[0], 'demo/egress-web-443-1 (policy "web" of namespace demo)'),
        (after([], Task([CNN], namespace="prod", export_to=["*"]))[0], 'prod/egress-default-443-1 (policy "default" of namespace prod)'),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else value["metadata"]["name"],
)
def test_whoever_declares_a_host_that_the_namespace_sees_is_named(obj, whose):
    [warning] = clashes([CNN], [obj])
    assert f"ServiceEntry {whose};" in warning


@pytest.mark.parametrize(
    "obj",
    [
        service_entry("cnn", "other.example.com", ports=[]),
        service_entry("cnn", "*.cnn.com", ports=ports("http/443")),
        service_entry("cnn", CNN, namespace="prod", exportTo=["."], ports=ports("http/443")),
        service_entry("cnn", CNN, namespace="prod", exportTo=["stage"], ports=ports("http/443")),
        after([], Task([f"{CNN}:80"]))[0],
    ],
    ids=["another host", "a wildcard above it", "not exported", "exported to others", "of the policy itself"],
)
def test_what_does_not_concern_the_host(obj):
    assert clashes([CNN], [obj]) == []


def test_each_owner_is_named():
    assert len(clashes([CNN], [service_entry("one", CNN), service_entry("two", CNN)])) == 2


def test_a_port_without_a_protocol_is_TCP():
    unnamed = service_entry("db", "db.example.com", ports=[{"number": 5432, "name": "db"}])
    db = {"host": "db.example.com", "addresses": ["192.0.2.1"]}
    assert len(clashes([{**db, "ports": ["tcp/5432"]}], [unnamed])) == 1
    with pytest.raises(PolicyError, match="on port 5432 as TCP"):
        clashes([{**db, "ports": ["tls/5432"]}], [unnamed])


def test_a_clash_in_a_namespace_that_the_host_is_exported_to_is_an_error():
    theirs = service_entry("cnn", CNN, namespace="prod", exportTo=["."], ports=ports("http/443"))
    with pytest.raises(PolicyError, match="prod/cnn"):
        Task([CNN], export_to=[".", "prod"]).plan([theirs])


CAPTURING = {"host": "db.example.com", "ports": ["tcp/5432"], "capture_port": True}


@pytest.mark.parametrize(
    ("theirs", "clash"),
    [
        (service_entry("pg", "pg.example.com", ports=ports("tcp/5432")), True),
        (service_entry("pg", "pg.example.com", ports=[{"number": 5432, "name": "pg"}]), True),
        (service_entry("pg", "pg.example.com", ports=ports("tcp/5433")), False),
        (service_entry("pg", "pg.example.com", ports=ports("tls/5432")), False),
        (service_entry("pg", "pg.example.com", ports=ports("tcp/5432"), addresses=["192.0.2.1"]), False),
        (service_entry("pg", "pg.example.com", namespace="prod", exportTo=["."], ports=ports("tcp/5432")), False),
        (after([], Task([CAPTURING]))[0], False),
    ],
    ids=["the same port", "no protocol", "another port", "TLS", "with an address", "not seen here", "of the policy itself"],
)
def test_two_hosts_that_capture_one_port_are_an_error(theirs, clash):
    if not clash:
        assert clashes([CAPTURING], [theirs]) == []
        return
    with pytest.raises(PolicyError) as raised:
        clashes([CAPTURING], [theirs])
    said, advice = str(raised.value).split("\n")
    assert said.startswith("ServiceEntry demo/pg") and "every connection to port 5432" in said and "addresses of db.example.com" in advice


def test_a_host_with_an_address_may_use_a_port_that_another_one_captures():
    captured = service_entry("pg", "pg.example.com", ports=ports("tcp/5432"))
    assert clashes([{**CAPTURING, "addresses": ["192.0.2.1"]}], [captured]) == []


def test_one_host_may_capture_a_port_in_two_objects():
    [warning] = clashes([CAPTURING], [service_entry("pg", "db.example.com", ports=ports("tcp/5432"))])
    assert warning.startswith("db.example.com is also declared by ServiceEntry demo/pg")
