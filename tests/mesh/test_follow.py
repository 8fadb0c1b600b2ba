"""`wait` tells the truth: what a task says about sidecars is what the very next request meets, and who does not follow is named with the reason."""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from mesh.load import process_of

HOST, MODE = "istio_egress_host", "istio_outbound_mode"
ROUNDS = 10
UNKNOWN = "http://other.example.com/"
RIGHTS = [
    {"apiGroups": ["networking.istio.io"], "resources": ["serviceentries", "sidecars"], "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
]
"""To declare hosts, and to see which pods there are."""


@pytest.fixture(scope="module")
def refusing(workload, run_module):
    """The workload, under REGISTRY_ONLY."""
    run_module(MODE, namespace=workload.namespace, mode="REGISTRY_ONLY")
    return workload


@pytest.fixture(scope="module")
def elsewhere(api, namespace):
    """Another namespace declares the same hosts for itself; that says nothing about ours."""
    spec = {"hosts": ["httpbin.org", "www.google.com"], "ports": [{"number": n, "name": f"tls-{n}", "protocol": "TLS"} for n in (80, 443)]}
    metadata = {"name": "theirs", "namespace": namespace("elsewhere")}
    api.create({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata, "spec": {**spec, "resolution": "DNS", "exportTo": ["."]}})


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("entry", "url", "outcomes"), [
    ("httpbin.org:80", "http://httpbin.org/", ["200", "502"]),
    ("www.google.com", "https://www.google.com/", ["200", "closed"]),
])  # fmt: skip
def test_the_first_request_after_a_task_meets_what_the_task_said(refusing, run_module, entry, url, outcomes):
    host = entry.partition(":")[0]
    seen = []
    for _round in range(ROUNDS):
        for arguments in ({"hosts": [entry]}, {"hosts": [host], "state": "absent"}):
            result = run_module(HOST, namespace=refusing.namespace, **arguments)
            seen.append(refusing.curl(url).outcome)
            assert result["changed"] and result["verified"] and result["proxies"]["following"] == 1, result
    assert seen == outcomes * ROUNDS


def test_the_first_request_after_a_change_of_mode_meets_the_mode(refusing, run_module):
    seen = []
    for _round in range(3):
        for mode in ("ALLOW_ANY", "REGISTRY_ONLY"):
            run_module(MODE, namespace=refusing.namespace, mode=mode)
            seen.append([refusing.curl(url).outcome for url in (UNKNOWN, "https://other.example.com/")])
    assert seen == [["200", "200"], ["502", "closed"]] * 3


def test_a_sidecar_that_does_not_hear_of_a_mode_is_waited_for_and_named(refusing, run_module, own_mesh):
    with answers_lost(refusing, "tcp", 15012):
        result = run_module(MODE, fails=True, namespace=refusing.namespace, mode="ALLOW_ANY", wait_timeout=4)
        assert refusing.curl(UNKNOWN).outcome == "502"
    assert result["verified"] is False
    assert result["proxies"]["pending"] == [{"pod": f"{refusing.namespace}/{refusing.pod}", "reason": "has mode REGISTRY_ONLY"}]
    again = run_module(MODE, namespace=refusing.namespace, mode="ALLOW_ANY")
    assert refusing.curl(UNKNOWN).outcome == "200"
    assert not again["changed"] and again["verified"]
    run_module(MODE, namespace=refusing.namespace, mode="REGISTRY_ONLY")


@pytest.mark.parametrize("lost", [("tcp", 15012), ("udp", 53)], ids=["no word from istiod", "no answer from DNS"])
def test_a_sidecar_that_cannot_serve_the_host_yet_is_waited_for_and_named(refusing, run_module, own_mesh, lost):
    """A host that is looked up in DNS is there for requests when its first answer is."""
    run_module(HOST, namespace=refusing.namespace, state="absent", purge=True)
    late, address = f"{refusing.namespace}/{refusing.pod}", refusing.curl("http://httpbin.org/").address
    with answers_lost(refusing, *lost):
        result = run_module(HOST, fails=True, namespace=refusing.namespace, hosts=["httpbin.org:80"], wait_timeout=4)
        assert refusing.curl("http://httpbin.org/", "--connect-to", f"httpbin.org:80:{address}:80").status in (502, 503)
    assert result["verified"] is False
    [pending] = result["proxies"]["pending"]
    assert pending["pod"] == late and "httpbin.org:80" in pending["reason"]
    assert late in result.msg and "within 4 s" in result.msg and len(result.msg.splitlines()) == 2
    again = run_module(HOST, namespace=refusing.namespace, hosts=["httpbin.org:80"])
    assert refusing.curl("http://httpbin.org/").outcome == "200"
    assert not again["changed"] and again["verified"]


def test_a_name_that_dns_does_not_know_is_told(refusing, run_module):
    task = {"namespace": refusing.namespace, "purge": True}
    result = run_module(HOST, **task, hosts=["httpbin.org:80", "no-such-host.invalid:80"])
    assert (result["verified"], result["unresolved"]) == (True, ["no-such-host.invalid"])
    [warning] = result.warnings
    assert warning.startswith(f"no-such-host.invalid has no address in 1 of 1 proxies ({refusing.namespace}/{refusing.pod})")
    address = refusing.curl("http://httpbin.org/").address
    assert refusing.curl("http://no-such-host.invalid/", "--connect-to", f"no-such-host.invalid:80:{address}:80").status == 503
    corrected = run_module(HOST, **task, hosts=["httpbin.org:80"])
    assert "unresolved" not in corrected and not corrected.warnings


def test_a_task_without_wait_claims_nothing(refusing, run_module):
    result = run_module(HOST, namespace=refusing.namespace, hosts=["www.cnn.com"], wait=False)
    assert result["verified"] is False and "proxies" not in result


def test_sidecars_that_will_not_follow_are_counted_and_named(refusing, run_module, api, start):
    """One has a Sidecar resource of another owner, one never gets ready since its istiod does not exist."""
    other = start(refusing.namespace, "other")
    lost = start(refusing.namespace, "lost", annotations={"proxy.istio.io/config": '{"discoveryAddress": "istiod.nowhere.invalid:15012"}'}, ready=False)
    spec = {"workloadSelector": {"labels": {"app": "other"}}, "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}, "egress": [{"hosts": ["istio-system/*"]}]}
    api.create({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "theirs", "namespace": refusing.namespace}, "spec": spec})

    result = run_module(MODE, namespace=refusing.namespace, mode="REGISTRY_ONLY")
    outcomes = [refusing.curl(UNKNOWN).outcome, other.curl(UNKNOWN).outcome]
    assert outcomes == ["502", "200"]
    assert {k: result["proxies"][k] for k in ("total", "following", "looked_at")} == {"total": 3, "following": 1, "looked_at": 1}
    assert {p["pod"]: p["reason"] for p in result["proxies"]["pending"]} == {
        f"{other.namespace}/{other.pod}": f"Sidecar {other.namespace}/theirs sets ALLOW_ANY",
        f"{lost.namespace}/{lost.pod}": "the pod is not ready",
    }

    api.patch("Sidecar", refusing.namespace, "theirs", {"spec": {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}})
    result = run_module(HOST, namespace=refusing.namespace, hosts=["en.wikipedia.org:80"], purge=True)
    outcomes = [each.curl("http://en.wikipedia.org/").outcome for each in (refusing, other)]
    assert outcomes == ["200", "502"]
    assert [w.partition(" into")[0] for w in result.warnings] == [f"Sidecar {other.namespace}/theirs does not import en.wikipedia.org"]


def test_a_namespace_without_sidecars_is_not_said_to_be_verified(run_module, namespace, start):
    bare = start(namespace("bare", injection=False))
    mode = run_module(MODE, namespace=bare.namespace, mode="REGISTRY_ONLY")
    host = run_module(HOST, namespace=bare.namespace, hosts=["httpbin.org:80"])
    assert bare.curl(UNKNOWN).outcome == "200"
    for result in (mode, host):
        assert result["verified"] is False and result["proxies"]["total"] == 0, result


@pytest.mark.parametrize("right", ["pods/portforward", "pods/exec", None])
def test_what_is_claimed_rests_on_the_right_to_look_into_sidecars(refusing, run_module, api, right):
    user = f"{refusing.namespace}-{str(right).replace('/', '-')}"
    grant(api, refusing.namespace, user, RIGHTS + ([{"apiGroups": [""], "resources": [right], "verbs": ["get", "create"]}] if right else []))
    result = run_module(HOST, namespace=refusing.namespace, hosts=["de.wikipedia.org"], impersonate_user=user)
    assert result["changed"] and result["verified"] is bool(right) and bool(result["proxies"]["following"]) is bool(right), result
    assert any("may not create pods/portforward" in warning for warning in result.warnings) is not bool(right), result.warnings
    assert run_module(HOST, namespace=refusing.namespace, hosts=["de.wikipedia.org"], state="absent")["verified"] is True


@contextlib.contextmanager
def answers_lost(workload, protocol: str, port: int):
    """What the workload and its sidecar are sent from this port gets lost meanwhile."""
    enter = ["nsenter", f"--net=/proc/{process_of(workload.uid)}/ns/net", "--", "iptables"]
    rule = ["INPUT", "-p", protocol, "--sport", str(port), "-j", "DROP"]
    subprocess.run([*enter, "-I", *rule], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run([*enter, "-D", *rule], check=True, capture_output=True)


def grant(api, namespace: str, user: str, rules: list) -> None:
    """Gives `user` these rights in the namespace."""
    group, version = "rbac.authorization.k8s.io", "rbac.authorization.k8s.io/v1"
    path = f"/apis/{version}/namespaces/{namespace}"
    api.call("POST", f"{path}/roles", {"apiVersion": version, "kind": "Role", "metadata": {"name": user}, "rules": rules})
    api.call("POST", f"{path}/rolebindings", {
        "apiVersion": version, "kind": "RoleBinding", "metadata": {"name": user},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": user}, "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    })  # fmt: skip
