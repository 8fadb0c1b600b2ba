"""Which objects are ours, when a live object already says what is wanted, and what a ServiceEntry looks like. Tables; no cluster."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Declared, read_service_entry, same_object, service_entries, updated
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import MANAGED_BY_LABEL, POLICY_LABEL, owner_of, policy_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import HOSTS_ANNOTATION, parse_hosts
from unit.tasks import Task, after, service_entry

OURS = {"app.kubernetes.io/managed-by": "istio-egress", "istio-egress.meshops.io/policy": "default"}


def made(*hosts, export_to=(".",), live=(), policy="default"):
    """The ServiceEntries that host entries become in namespace demo."""
    return service_entries([Declared(entry, export_to) for entry in parse_hosts(hosts)], live, "demo", policy)


# -- ours and not ours --------------------------------------------------------------------------------------------------------------


def test_labels_are_those_of_the_contract():
    assert list(OURS) == [MANAGED_BY_LABEL, POLICY_LABEL]
    [obj] = made("a.example.com")
    assert obj["metadata"]["labels"] == OURS


@pytest.mark.parametrize(
    ("labels", "policy"),
    [
        (OURS, "default"),
        ({**OURS, "team": "web"}, "default"),
        ({"istio-egress.meshops.io/policy": "default"}, None),
        ({"app.kubernetes.io/managed-by": "istio-egress"}, None),
        ({**OURS, "app.kubernetes.io/managed-by": "Helm"}, None),
        ({}, None),
        (None, None),
    ],
    ids=str,
)
def test_an_object_is_ours_when_both_labels_say_so(labels, policy):
    assert policy_of({"metadata": {"labels": labels}}) == policy


@pytest.mark.parametrize(
    ("labels", "annotations", "owner"),
    [
        (OURS, {}, 'policy "default" of namespace demo'),
        ({"app.kubernetes.io/managed-by": "Helm"}, {"meta.helm.sh/release-name": "shop"}, "Helm release shop"),
        ({"app.kubernetes.io/managed-by": "argocd"}, {}, "owner: argocd"),
        ({"owner": "team-web"}, {}, "owner: team-web"),
        ({"team": "web"}, {}, "owner: web"),
        ({"team": "web"}, {"kubectl.kubernetes.io/last-applied-configuration": "{}"}, "owner: web"),
        ({}, {"kubectl.kubernetes.io/last-applied-configuration": "{}"}, "applied with kubectl"),
        ({}, {}, "unknown owner"),
        (None, None, "unknown owner"),
    ],
)
def test_the_owner_in_words(labels, annotations, owner):
    assert owner_of({"metadata": {"namespace": "demo", "labels": labels, "annotations": annotations}}) == owner


# -- what a ServiceEntry looks like -------------------------------------------------------------------------------------------------


def spec(hosts, ports, resolution, **rest):
    return {
        "hosts": hosts,
        "ports": [{"number": int(p.split("-")[1]), "name": p, "protocol": p.split("-")[0].upper()} for p in ports.split()],
        "location": "MESH_EXTERNAL", "resolution": resolution, "exportTo": ["."], **rest,
    }  # fmt: skip


SPECS = [
    # host entries, {name: spec}
    (["www.google.com"], {"egress-default-443-1": spec(["www.google.com"], "tls-443", "DNS")}),
    (["b.example.com", "a.example.com"], {"egress-default-443-1": spec(["a.example.com", "b.example.com"], "tls-443", "DNS")}),
    (["a.example.com:443,80"], {"egress-default-80-443-1": spec(["a.example.com"], "http-80 tls-443", "DNS")}),
    (
        ["*.wikipedia.org", "www.google.com"],
        {"egress-default-443-1": spec(["www.google.com"], "tls-443", "DNS"), "egress-default-443-none-1": spec(["*.wikipedia.org"], "tls-443", "NONE")},
    ),
    ([{"host": "*.example.com", "resolution": "dynamic_dns"}], {"egress-default-443-dynamic-dns-1": spec(["*.example.com"], "tls-443", "DYNAMIC_DNS")}),
    # An IP that is the far end is an endpoint; one that only tells TCP connections apart is an address. Never both for HTTP and TLS.
    (
        [{"host": "a.example.com", "addresses": ["192.0.2.1", "192.0.2.2"]}],
        {"egress-default-a.example.com": spec(["a.example.com"], "tls-443", "STATIC", endpoints=[{"address": "192.0.2.1"}, {"address": "192.0.2.2"}])},
    ),
    (
        [{"host": "db.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.1"]}],
        {"egress-default-db.example.com": spec(["db.example.com"], "tcp-5432", "NONE", addresses=["192.0.2.1"])},
    ),
    (
        [{"host": "db.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.1"], "resolution": "static"}],
        {"egress-default-db.example.com": spec(["db.example.com"], "tcp-5432", "STATIC", endpoints=[{"address": "192.0.2.1"}], addresses=["192.0.2.1"])},
    ),
    (
        [{"host": "db.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.1"], "resolution": "dns"}],
        {"egress-default-db.example.com": spec(["db.example.com"], "tcp-5432", "DNS", addresses=["192.0.2.1"])},
    ),
    (
        ["198.51.100.0/24:tcp/9000"],
        {
            "egress-default-198-51-100-0-slash-24.ip.istio-egress.meshops.io": spec(
                ["198-51-100-0-slash-24.ip.istio-egress.meshops.io"], "tcp-9000", "NONE", addresses=["198.51.100.0/24"]
            )
        },
    ),
    (
        [{"host": "a.example.com", "ports": ["tcp/5432"], "capture_port": True}],
        {"egress-default-a.example.com": spec(["a.example.com"], "tcp-5432", "DNS")},
    ),
    (
        [{"host": "*.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.1"]}],
        {"egress-default-example.com-wildcard": spec(["*.example.com"], "tcp-5432", "NONE", addresses=["192.0.2.1"])},
    ),
    # A client names an address in the Host header, and that is a name only of entries with that address.
    (
        ["192.0.2.9:http/80"],
        {
            "egress-default-192-0-2-9.ip.istio-egress.meshops.io": spec(
                ["192-0-2-9.ip.istio-egress.meshops.io"], "http-80", "STATIC", endpoints=[{"address": "192.0.2.9"}], addresses=["192.0.2.9"]
            )
        },
    ),
]


@pytest.mark.parametrize(("entries", "expected"), SPECS, ids=[str(row[0])[:60] for row in SPECS])
def test_host_entries_become(entries, expected):
    objects = made(*entries)
    assert {o["metadata"]["name"]: o["spec"] for o in objects} == expected
    assert all((o["apiVersion"], o["kind"], o["metadata"]["namespace"]) == ("networking.istio.io/v1", "ServiceEntry", "demo") for o in objects)


@pytest.mark.parametrize("entries", [row[0] for row in SPECS], ids=lambda entries: str(entries)[:60])
def test_what_was_made_reads_back_as_what_was_wanted(entries):
    wanted = [Declared(replace(entry, metadata=(("owner", "web"),)), (".", "prod")) for entry in parse_hosts(entries)]
    read = [d for obj in service_entries(wanted, [], "demo", "default") for d in read_service_entry(obj)]
    assert sorted(read, key=lambda d: d.entry.host) == wanted


def test_metadata_is_one_annotation_with_the_hosts_that_have_any():
    [obj] = made({"host": "a.example.com", "owner": "Zoë", "expires": "2027-01-31"}, "b.example.com")
    assert json.loads(obj["metadata"]["annotations"][HOSTS_ANNOTATION]) == {"a.example.com": {"expires": "2027-01-31", "owner": "Zoë"}}
    [bare] = made("a.example.com")
    assert "annotations" not in bare["metadata"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "[]", '"text"', "7", '{"a.example.com": "web"}', '{"a.example.com": ["web"]}', '{"a.example.com": {"owner": 7}}',
    ],
)  # fmt: skip
def test_an_annotation_that_somebody_broke_reads_as_empty(text):
    obj = service_entry("x", "a.example.com", labels=OURS, annotations={HOSTS_ANNOTATION: text})
    assert [dict(d.entry.metadata) for d in read_service_entry(obj)] == [{}]


# -- places -------------------------------------------------------------------------------------------------------------------------


def test_the_257th_host_opens_a_second_object():
    hosts = [f"h{n:03}.example.com" for n in range(257)]
    assert [(o["metadata"]["name"], len(o["spec"]["hosts"])) for o in made(*hosts)] == [("egress-default-443-1", 256), ("egress-default-443-2", 1)]


def test_a_name_that_somebody_else_has_is_not_taken():
    theirs = [service_entry("egress-default-443-1", "x.example.org"), service_entry("egress-default-db.example.com", "y.example.org")]
    objects = made("a.example.com", {"host": "db.example.com", "addresses": ["192.0.2.1"]}, live=theirs)
    assert [o["metadata"]["name"] for o in objects] == ["egress-default-443-2", "egress-default-db.example.com-2"]


def test_a_name_in_another_namespace_is_free():
    theirs = [service_entry("egress-default-443-1", "x.example.org", namespace="prod")]
    assert [o["metadata"]["name"] for o in made("a.example.com", live=theirs)] == ["egress-default-443-1"]


def test_policies_whose_names_run_into_host_names_do_not_meet():
    """Policy "a" with b-c.example.com and policy "a-b" with c.example.com would both like egress-a-b-c.example.com."""
    first = Task([{"host": "b-c.example.com", "addresses": ["192.0.2.1"]}], policy="a")
    second = Task([{"host": "c.example.com", "addresses": ["192.0.2.2"]}], policy="a-b")
    assert {o["metadata"]["name"]: o["spec"]["hosts"] for o in after([], first, second)} == {
        "egress-a-b-c.example.com": ["b-c.example.com"],
        "egress-a-b-c.example.com-2": ["c.example.com"],
    }


def test_a_wildcard_and_a_host_named_wildcard_both_get_an_object():
    objects = made(*({"host": f"{name}.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.1"]} for name in ("*", "wildcard")))
    assert len({o["metadata"]["name"] for o in objects}) == 2


@pytest.mark.parametrize("middle", [f"{'a' * 60}.{'b' * 60}.{'c' * 60}", ".".join("a" * 95)], ids=["long labels", "many labels"])
def test_long_hosts_get_names_that_kubernetes_takes_and_that_differ(middle):
    names = [made({"host": f"{middle}.{last}.com", "addresses": ["192.0.2.1"]}, policy="p" * 40)[0]["metadata"]["name"] for last in ("one", "two")]
    assert all(len(name) <= 253 and re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", name) and ".-" not in name for name in names)
    assert len(set(names)) == 2


# -- what counts as a difference ----------------------------------------------------------------------------------------------------

[WANTED] = made({"host": "a.example.com", "owner": "web"}, "b.example.com:443")


def changed(obj, **paths):
    """A copy with values set by path, ``spec__hosts=[...]``; None removes."""
    result = copy.deepcopy(obj)
    for path, value in paths.items():
        *parents, last = path.split("__")
        place = result
        for key in parents:
            place = place.setdefault(key, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return result


SAME = {
    "what the server adds": {"metadata__uid": "x", "metadata__resourceVersion": "1", "metadata__generation": 3, "status": {"addresses": []}},
    "order of hosts": {"spec__hosts": ["b.example.com", "a.example.com"]},
    "empty lists": {"spec__addresses": [], "spec__endpoints": [], "spec__subjectAltNames": []},
    "location is external by default": {"spec__location": None},
    "targetPort that is the port": {"spec__ports": [{"number": 443, "name": "tls-443", "protocol": "TLS", "targetPort": 443}]},
    "labels of others": {"metadata__labels": {**OURS, "team": "web"}},
    "annotations of others": {"metadata__annotations": {**WANTED["metadata"]["annotations"], "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
}
OTHER = {
    "a host more": {"spec__hosts": ["a.example.com", "b.example.com", "c.example.com"]},
    "another port name": {"spec__ports": [{"number": 443, "name": "https", "protocol": "TLS"}]},
    "another protocol": {"spec__ports": [{"number": 443, "name": "tls-443", "protocol": "HTTPS"}]},
    "another targetPort": {"spec__ports": [{"number": 443, "name": "tls-443", "protocol": "TLS", "targetPort": 8443}]},
    "a port more": {"spec__ports": [*WANTED["spec"]["ports"], {"number": 80, "name": "http-80", "protocol": "HTTP"}]},
    "resolution left out, which is NONE": {"spec__resolution": None},
    "inside the mesh": {"spec__location": "MESH_INTERNAL"},
    "exportTo left out, which is all": {"spec__exportTo": None},
    "addresses": {"spec__addresses": ["192.0.2.1"]},
    "endpoints": {"spec__endpoints": [{"address": "192.0.2.1"}]},
    "subjectAltNames": {"spec__subjectAltNames": ["x"]},
    "workloadSelector": {"spec__workloadSelector": {"labels": {"app": "x"}}},
    "metadata of a host": {"metadata__annotations": {HOSTS_ANNOTATION: '{"a.example.com": {"owner": "shop"}}'}},
    "metadata removed": {"metadata__annotations": None},
    "a label of ours too many": {"metadata__labels": {**OURS, "istio-egress.meshops.io/x": "y"}},
}


@pytest.mark.parametrize("difference", SAME)
def test_no_reason_to_write(difference):
    assert same_object(changed(WANTED, **SAME[difference]), WANTED)


@pytest.mark.parametrize("difference", OTHER)
def test_a_reason_to_write_which_is_gone_after_the_write(difference):
    live = changed(WANTED, **OTHER[difference])
    assert not same_object(live, WANTED)
    assert same_object(updated(live, WANTED), WANTED)


def test_what_is_left_out_is_exported_to_all_and_has_the_resolution_NONE():
    [wanted] = made("*.example.com", export_to=("*",))
    assert same_object(changed(wanted, spec__exportTo=None, spec__resolution=None), wanted)


def test_order_of_namespaces_and_addresses_is_no_difference():
    [wanted] = made({"host": "db.example.com", "ports": ["tcp/1"], "addresses": ["192.0.2.1", "192.0.2.2"]}, export_to=("a", "b"))
    assert same_object(changed(wanted, spec__exportTo=["b", "a"], spec__addresses=["192.0.2.2", "192.0.2.1"]), wanted)


def test_order_of_endpoints_is_no_difference():
    first, second = (made({"host": "a.example.com", "addresses": a})[0] for a in (["192.0.2.1", "192.0.2.2"], ["192.0.2.2", "192.0.2.1"]))
    assert same_object(first, second)


def test_an_update_keeps_what_others_wrote_and_removes_what_was_ours():
    labels, annotations = {**OURS, "team": "web"}, {"note": "theirs", HOSTS_ANNOTATION: "{}"}
    live = changed(WANTED, metadata__labels=labels, metadata__annotations=annotations, metadata__resourceVersion="7", status={"x": 1})
    [wanted] = made("a.example.com")
    before = copy.deepcopy(live)
    result = updated(live, wanted)
    assert result["metadata"]["labels"] == {**OURS, "team": "web"}
    assert result["metadata"]["annotations"] == {"note": "theirs"}
    assert (result["spec"], result["metadata"]["resourceVersion"], result["status"]) == (wanted["spec"], "7", {"x": 1})
    assert live == before, "what was read is not changed"


def test_an_update_leaves_no_empty_annotations_behind():
    [wanted] = made("a.example.com")
    assert "annotations" not in updated(WANTED, wanted)["metadata"]
