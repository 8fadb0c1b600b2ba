"""istio_outbound_mode on a real API server: the mesh config and Sidecar resources that it changes, what it leaves alone, and how it takes things back.

The control plane of these tests is a namespace with its ConfigMap, and where a version matters a Deployment named istiod; nothing runs in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import yaml

from api.modules import Account, Object, Refused, Relay, Result, wait_until

MODULE = "istio_outbound_mode"
SIDECAR = {"apiVersion": "networking.istio.io/v1", "kind": "Sidecar"}


@pytest.fixture
def istio(account: Account) -> str:
    """The namespace of a control plane whose mesh config says nothing about the mode."""
    namespace = account.namespace("mesh")
    account.server.create(config_map(namespace, "rootNamespace: x"))
    return namespace


@pytest.fixture
def namespace(account: Account) -> str:
    return account.namespace("mode")


@pytest.fixture
def mesh(account: Account, istio: str) -> Callable[..., Result]:
    """Runs the module for the mesh of the test."""
    return partial(account.run, MODULE, istio_namespace=istio)


@pytest.fixture
def scope(account: Account, istio: str, namespace: str) -> Callable[..., Result]:
    """Runs the module for the namespace of the test."""
    return partial(account.run, MODULE, istio_namespace=istio, namespace=namespace)


def config_map(namespace: str, text: str, name: str = "istio", **metadata: Any) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace, **metadata}, "data": {"mesh": text}}


def text_of(account: Account, namespace: str, name: str = "istio") -> str:
    return account.server.read("ConfigMap", namespace, name)["data"]["mesh"]


def said(obj: Object) -> Object:
    """An object without what every write changes."""
    result = copy.deepcopy(obj)
    for noise in ("resourceVersion", "generation", "managedFields"):
        result["metadata"].pop(noise, None)
    return result


# -- the mesh config ----------------------------------------------------------------------------------------------------------------

TEXTS = {  # what istiod reads: the mode before
    "istioctl": ("accessLogFile: /dev/stdout\ndefaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\ntrustDomain: cluster.local", "ALLOW_ANY"),
    "empty": ("", "ALLOW_ANY"),
    "empty-flow": ("{}\n", "ALLOW_ANY"),
    "json": ('{"accessLogFile":"/dev/stdout","outboundTrafficPolicy":{"mode":"REGISTRY_ONLY"},"enableTracing":true}', "REGISTRY_ONLY"),
    "crlf": ("# by hand\r\noutboundTrafficPolicy:   # closed\r\n    mode:  'REGISTRY_ONLY'  # since NET-1\r\n\r\ntrustDomain: a\r\n", "REGISTRY_ONLY"),
    "no-mode": ("outboundTrafficPolicy: {}\nenableTracing: true\n", "REGISTRY_ONLY"),
    "null": ("outboundTrafficPolicy: ~\nenableTracing: true\n", "ALLOW_ANY"),
    "number": ("outboundTrafficPolicy: {mode: 1}\n", "ALLOW_ANY"),
    "anchors": ("a: &x {b: 1}\nc: *x\nd: |\n  # not a comment\n  e: f\n\n", "ALLOW_ANY"),
    "unicode": ("\ufeff# für München — ☃\ntrustDomain: \"ü\"\n", "ALLOW_ANY"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_only_the_mode_changes_and_every_byte_comes_back(account: Account, mesh: Callable[..., Result], istio: str, name: str) -> None:
    text, before = TEXTS[name]
    after = "REGISTRY_ONLY" if before == "ALLOW_ANY" else "ALLOW_ANY"
    marks = {"labels": {"release": "istio"}, "annotations": {"note": "by hand"}}
    original = config_map(istio, text, f"istio-{name}", **marks)
    original["data"]["meshNetworks"] = "networks: {}"
    original = account.server.create(original)
    task = partial(mesh, revision=name)

    first = task(mode=after)
    assert (first["changed"], first["mode"], first["previous_mode"]) == (True, after, before), first
    live = account.server.read("ConfigMap", istio, f"istio-{name}")
    assert without_policy(live["data"]["mesh"]) == without_policy(text)
    assert yaml.safe_load(live["data"]["mesh"])["outboundTrafficPolicy"] == {"mode": after}
    assert {k: v for k, v in live["data"].items() if k != "mesh"} == {"meshNetworks": "networks: {}"}
    assert (live["metadata"]["labels"], live["metadata"]["annotations"]["note"]) == (marks["labels"], "by hand")

    assert task(state="absent")["changed"]
    assert said(account.server.read("ConfigMap", istio, f"istio-{name}")) == said(original)

    again = task(mode=after)
    assert again["previous_mode"] == before
    back = task(mode=again["previous_mode"])
    assert (back["mode"], back["previous_mode"]) == (before, after)
    assert said(account.server.read("ConfigMap", istio, f"istio-{name}")) == said(original)


def without_policy(text: str) -> Any:
    return {key: value for key, value in (yaml.safe_load(text) or {}).items() if key != "outboundTrafficPolicy"}


@pytest.mark.parametrize("mode", ["ALLOW_ANY", "REGISTRY_ONLY"])
@pytest.mark.parametrize(("text", "words"), [
    ("a: [\n", ["YAML", "line"]),
    ("- a\n", ["not a mapping"]),
    ("outboundTrafficPolicy: REGISTRY_ONLY\n", ["Line 1", "not a mapping", "mode:"]),
    ("a: b\noutboundTrafficPolicy:\n  mode: REGISTRYONLY\n", ["Line 3", "REGISTRYONLY", "discards"]),
], ids=["no-yaml", "list", "no-mapping", "typo"])  # fmt: skip
def test_what_istiod_would_refuse_is_left_alone(account: Account, istio: str, mesh: Callable[..., Result], text: str, words: list[str], mode: str) -> None:
    account.server.patch("ConfigMap", istio, "istio", {"data": {"mesh": text}})
    result = mesh(mode=mode)
    assert result["failed"], result
    assert result.msg.count("\n") == 1 and all(word in result.msg for word in words), result.msg
    assert (result.attempts, text_of(account, istio)) == ([], text)


@pytest.mark.parametrize("text", [
    "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n",
    "x: &p {mode: REGISTRY_ONLY}\noutboundTrafficPolicy: *p\n",
    "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n---\na: b\n",
], ids=["twice", "alias", "documents"])  # fmt: skip
def test_what_cannot_be_changed_alone_can_still_be_read(account: Account, istio: str, mesh: Callable[..., Result], text: str) -> None:
    account.server.patch("ConfigMap", istio, "istio", {"data": {"mesh": text}})
    assert mesh()["mode"] == "REGISTRY_ONLY"
    assert mesh(mode="REGISTRY_ONLY")["changed"] is False
    result = mesh(mode="ALLOW_ANY")
    assert result["failed"], result
    assert result.msg.count("\n") == 1
    assert (result.attempts, text_of(account, istio)) == ([], text)


def test_a_config_map_without_a_mesh_config(account: Account, mesh: Callable[..., Result]) -> None:
    namespace = account.namespace("mesh")
    account.server.create({**config_map(namespace, ""), "data": {"other": "x"}})
    result = mesh(mode="REGISTRY_ONLY", istio_namespace=namespace)
    assert result["failed"], result
    assert f"ConfigMap {namespace}/istio" in result.msg and '"mesh"' in result.msg


def test_a_change_of_somebody_else_is_kept_when_the_mode_is_taken_back(account: Account, istio: str, mesh: Callable[..., Result]) -> None:
    mesh(mode="REGISTRY_ONLY")
    account.server.patch("ConfigMap", istio, "istio", {"data": {"mesh": "enableTracing: true\n" + text_of(account, istio)}})
    result = mesh(state="absent")
    assert (result["changed"], result["mode"]) == (True, "ALLOW_ANY")
    assert text_of(account, istio) == "enableTracing: true\nrootNamespace: x"
    assert mesh(state="absent").attempts == []


def test_a_mode_that_somebody_else_has_set_since_stays(account: Account, istio: str, mesh: Callable[..., Result]) -> None:
    mesh(mode="REGISTRY_ONLY")
    theirs = "outboundTrafficPolicy: {mode: ALLOW_ANY}\nrootNamespace: y\n"
    account.server.patch("ConfigMap", istio, "istio", {"data": {"mesh": theirs}})
    assert mesh(state="absent")["mode"] == "ALLOW_ANY"
    assert text_of(account, istio) == theirs


def test_a_conflict_is_read_again_and_both_changes_are_kept(account: Account, istio: str, mesh: Callable[..., Result]) -> None:
    writes: list[str] = []

    def interfere(method: str, path: str) -> None:
        if method == "PATCH" and len(writes) < 2:
            writes.append(path)
            account.server.patch("ConfigMap", istio, "istio", {"data": {"mesh": f"# {len(writes)}\n{text_of(account, istio)}"}})

    with Relay(account.server, interfere) as relay:
        result = mesh(host=relay.url, api_key=account.token, mode="REGISTRY_ONLY")
    assert [r.code for r in result.sent if r.verb == "patch"] == [409, 409, 200]
    live = text_of(account, istio)
    assert live.startswith("# 2\n# 1\nrootNamespace: x\n") and yaml.safe_load(live)["outboundTrafficPolicy"] == {"mode": "REGISTRY_ONLY"}


# -- who owns it --------------------------------------------------------------------------------------------------------------------

ISTIOCTL = {"operator.istio.io/managed": "Reconcile", "install.operator.istio.io/owning-resource": "unknown", "app.kubernetes.io/managed-by": "Helm"}
HELM = {"annotations": {"meta.helm.sh/release-name": "istiod", "meta.helm.sh/release-namespace": "istio-system"}}
OWNERS = [
    ("istioctl", {"labels": ISTIOCTL}, "next istioctl install", ["spec", "meshConfig"]),
    ("Helm", {"labels": {"install.operator.istio.io/owning-resource": "unknown"}, **HELM}, "release istiod", ["meshConfig"]),
    ("Sail operator", {"labels": {"app.kubernetes.io/managed-by": "sail-operator"}, **HELM}, "within seconds", ["spec", "values", "meshConfig"]),
]


@pytest.mark.parametrize(("owner", "marks", "when", "path"), OWNERS, ids=[row[0] for row in OWNERS])
def test_the_owner_and_the_lines_for_its_values(account: Account, mesh: Callable[..., Result], owner: str, marks: dict, when: str, path: list[str]) -> None:
    namespace = account.namespace("mesh")
    account.server.create(config_map(namespace, "rootNamespace: x\n", **marks))
    task = partial(mesh, istio_namespace=namespace)
    assert (task()["owner"], task().warnings) == (owner, [])

    result = task(mode="REGISTRY_ONLY")
    assert result["owner"] == owner
    values = yaml.safe_load(result["owner_values"])
    for key in path:
        values = values[key]
    assert values == {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}
    [warning] = result.warnings
    assert owner in warning and when in warning and result["owner_values"].strip() in warning
    assert task(mode="ALLOW_ANY").warnings == [], "back where its owner has it"


def test_the_add_on_of_aks(account: Account, mesh: Callable[..., Result]) -> None:
    namespace = "aks-istio-system"  # the name is the mark; an earlier run's may still be going
    wait_until(partial(made, account, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}), f"namespace {namespace}")
    account.server.create(config_map(namespace, "rootNamespace: x\n", "istio-asm-1-28", labels={"istio.io/rev": "asm-1-28"}))
    result = mesh(istio_namespace=namespace, revision="asm-1-28", mode="REGISTRY_ONLY")
    assert (result["owner"], yaml.safe_load(result["owner_values"])) == ("AKS add-on", {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}})
    assert "istio-shared-configmap-asm-1-28" in result["owner_values"]
    [warning] = result.warnings
    assert "AKS add-on" in warning and "istio-shared-configmap-asm-1-28" in warning


def made(account: Account, obj: Object) -> bool:
    """Whether the object could be created; not yet where the server still says no."""
    try:
        account.create(obj)
    except Refused:
        return False
    return True


def test_a_mesh_config_that_nobody_is_known_to_own(mesh: Callable[..., Result]) -> None:
    result = mesh(mode="REGISTRY_ONLY")
    assert (result["owner"], result.warnings) == ("unknown", [])


# -- a mode of Istio 1.31 -----------------------------------------------------------------------------------------------------------


def istiod(namespace: str, image: str, revision: str = "default", **labels: str) -> Object:
    pod = {"metadata": {"labels": {"app": "istiod"}}, "spec": {"containers": [{"name": "discovery", "image": image}]}}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": f"istiod-{revision}", "namespace": namespace, "labels": {"app": "istiod", "istio.io/rev": revision, **labels}},
        "spec": {"selector": {"matchLabels": {"app": "istiod"}}, "template": pod},
    }  # fmt: skip


@pytest.mark.parametrize(("image", "labels", "word"), [
    ("docker.io/istio/pilot:1.30.3", {}, "istiod is 1.30.3"),
    ("docker.io/istio/pilot:1.30.3-distroless", {}, "istiod is 1.30.3"),
    ("docker.io/istio/pilot:1.31.1", {"app.kubernetes.io/version": "1.30.9"}, "istiod is 1.30.9"),
    ("docker.io/istio/pilot:latest", {}, "could not be found"),
    (None, {}, "could not be found"),
], ids=["old", "distroless", "label", "unknown", "none"])  # fmt: skip
def test_dynamic_dns_is_not_for_an_older_istiod(
    account: Account, istio: str, mesh: Callable[..., Result], image: str | None, labels: dict[str, str], word: str
) -> None:
    if image:
        account.server.create(istiod(istio, image, **labels))
    account.server.create(istiod(istio, "docker.io/istio/pilot:1.31.1", revision="other"))
    before = account.server.everything(istio)
    result = mesh(mode="ALLOW_ANY_DYNAMIC_DNS")
    assert result["failed"], result
    assert "1.31" in result.msg and word in result.msg and result.msg.count("\n") == 1, result.msg
    assert account.server.everything(istio) == before


@pytest.mark.parametrize(("image", "labels"), [
    ("docker.io/istio/pilot:1.31.1", {}),
    ("registry.example.com:5000/istio/pilot@sha256:" + 64 * "0", {"app.kubernetes.io/version": "1.31.0"}),
    ("registry.example.com:5000/istio/pilot:1.32-alpha.0", {}),
], ids=["tag", "digest", "next"])  # fmt: skip
def test_dynamic_dns_from_1_31_on(account: Account, istio: str, mesh: Callable[..., Result], image: str, labels: dict[str, str]) -> None:
    account.server.create(istiod(istio, image, **labels))
    result = mesh(mode="ALLOW_ANY_DYNAMIC_DNS")
    assert (result["mode"], result["previous_mode"]) == ("ALLOW_ANY_DYNAMIC_DNS", "ALLOW_ANY"), result
    assert yaml.safe_load(text_of(account, istio))["outboundTrafficPolicy"] == {"mode": "ALLOW_ANY_DYNAMIC_DNS"}
    assert mesh(state="absent")["mode"] == "ALLOW_ANY"
    assert text_of(account, istio) == "rootNamespace: x"


# -- a namespace or a workload ------------------------------------------------------------------------------------------------------


def sidecar(namespace: str, name: str, spec: dict[str, Any], **metadata: Any) -> Object:
    return {**SIDECAR, "metadata": {"name": name, "namespace": namespace, **metadata}, "spec": spec}


def test_a_namespace_without_a_sidecar_gets_one(account: Account, namespace: str, scope: Callable[..., Result]) -> None:
    result = scope(mode="REGISTRY_ONLY")
    assert (result["mode"], result["previous_mode"]) == ("REGISTRY_ONLY", "ALLOW_ANY")
    [made] = account.server.list("Sidecar", namespace)
    assert made["spec"] == {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}, "without egress all hosts stay imported"
    assert made["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "istio-egress"
    assert result["source"] == f"Sidecar {namespace}/{made['metadata']['name']}"

    assert scope(mode="ALLOW_ANY")["previous_mode"] == "REGISTRY_ONLY"
    assert scope(state="absent")["previous_mode"] == "ALLOW_ANY"
    assert account.server.list("Sidecar", namespace) == []


def test_it_inherits_what_the_root_namespace_says(account: Account, istio: str, namespace: str, scope: Callable[..., Result]) -> None:
    egress = [{"hosts": ["istio-system/*", "./*"]}]
    root = account.server.create(sidecar(istio, "default", {"egress": egress, "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}))
    assert (scope()["mode"], scope()["source"]) == ("ALLOW_ANY", f"Sidecar {istio}/default")
    scope(mode="REGISTRY_ONLY")
    [made] = account.server.list("Sidecar", namespace)
    assert made["spec"] == {"egress": egress, "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}
    assert account.server.read("Sidecar", istio, "default") == root


def test_a_workload_gets_one_of_its_own(account: Account, namespace: str, scope: Callable[..., Result]) -> None:
    egress = [{"hosts": ["./*"]}]
    theirs = account.server.create(sidecar(namespace, "theirs", {"egress": egress}))
    task = partial(scope, selector={"app": "web", "tier": "front"})
    assert task(mode="REGISTRY_ONLY")["previous_mode"] == "ALLOW_ANY"
    [made] = [s for s in account.server.list("Sidecar", namespace) if s["metadata"]["name"] != "theirs"]
    labels = {"app": "web", "tier": "front"}
    assert made["spec"] == {"workloadSelector": {"labels": labels}, "egress": egress, "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}
    assert (task()["mode"], scope()["mode"], scope(selector={"app": "web"})["mode"]) == ("REGISTRY_ONLY", "ALLOW_ANY", "ALLOW_ANY")

    scope(mode="ALLOW_ANY", selector={"app": "db"})
    assert len(account.server.list("Sidecar", namespace)) == 3
    scope(state="absent", selector={"app": "db"})
    task(state="absent")
    assert account.server.list("Sidecar", namespace) == [theirs]


PROXY = {"host": "egress.istio-system.svc.cluster.local", "port": {"number": 80}}


@pytest.mark.parametrize("selector", [None, {"app": "web"}], ids=["namespace", "workload"])
@pytest.mark.parametrize(("policy", "before", "after"), [
    (None, "ALLOW_ANY", {"mode": "REGISTRY_ONLY"}),
    ({"mode": "ALLOW_ANY"}, "ALLOW_ANY", {"mode": "REGISTRY_ONLY"}),
    ({"mode": "ALLOW_ANY", "egressProxy": PROXY}, "ALLOW_ANY", {"mode": "REGISTRY_ONLY", "egressProxy": PROXY}),
    ({}, "REGISTRY_ONLY", {"mode": "ALLOW_ANY"}),
], ids=["none", "mode", "proxy", "empty"])  # fmt: skip
def test_of_a_sidecar_of_others_only_the_policy_changes(
    account: Account, namespace: str, scope: Callable[..., Result], policy: dict | None, before: str, after: dict, selector: dict | None
) -> None:
    spec: dict[str, Any] = {"egress": [{"hosts": ["./*", "~/*"]}], "ingress": [{"port": {"number": 9080, "protocol": "HTTP", "name": "in"}}]}
    spec |= {} if policy is None else {"outboundTrafficPolicy": policy}
    spec |= {"workloadSelector": {"labels": selector}} if selector else {}
    marks = {"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": {"example.com/note": "by hand"}} if policy else {}
    theirs = account.server.create(sidecar(namespace, "theirs", spec, **marks))
    task = partial(scope, selector=selector or {})

    result = task(mode=after["mode"])
    assert (result["mode"], result["previous_mode"], result["source"]) == (after["mode"], before, f"Sidecar {namespace}/theirs")
    [live] = account.server.list("Sidecar", namespace)
    assert live["spec"] == {**theirs["spec"], "outboundTrafficPolicy": after}
    assert live["metadata"].get("labels") == theirs["metadata"].get("labels")
    kept = {k: v for k, v in live["metadata"]["annotations"].items() if not k.startswith("istio-egress.meshops.io/")}
    assert kept == theirs["metadata"].get("annotations", {})

    assert task(state="absent")["changed"]
    [live] = account.server.list("Sidecar", namespace)
    assert said(live) == said(theirs)

    task(mode=after["mode"])
    task(mode=before)
    assert task(state="absent")["mode"] == before
    [live] = account.server.list("Sidecar", namespace)
    assert said(live) == said(theirs)


def test_what_its_owner_changes_meanwhile_stays(account: Account, namespace: str, scope: Callable[..., Result]) -> None:
    account.server.create(sidecar(namespace, "theirs", {"egress": [{"hosts": ["./*"]}]}))
    scope(mode="REGISTRY_ONLY")
    account.server.patch("Sidecar", namespace, "theirs", {"spec": {"egress": [{"hosts": ["istio-system/*"]}]}})
    scope(state="absent")
    [live] = account.server.list("Sidecar", namespace)
    assert live["spec"] == {"egress": [{"hosts": ["istio-system/*"]}]}

    scope(mode="REGISTRY_ONLY")
    account.server.patch("Sidecar", namespace, "theirs", {"spec": {"outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}})
    scope(state="absent")
    [live] = account.server.list("Sidecar", namespace)
    assert live["spec"]["outboundTrafficPolicy"] == {"mode": "ALLOW_ANY"}
    assert not live["metadata"].get("annotations")

    scope(mode="REGISTRY_ONLY")
    account.server.patch("Sidecar", namespace, "theirs", {"spec": {"outboundTrafficPolicy": None}})
    assert scope(state="absent")["changed"]
    [live] = account.server.list("Sidecar", namespace)
    assert "outboundTrafficPolicy" not in live["spec"] and not live["metadata"].get("annotations")


def test_a_conflict_on_a_sidecar_of_others_is_read_again(account: Account, namespace: str, scope: Callable[..., Result]) -> None:
    account.server.create(sidecar(namespace, "theirs", {"egress": [{"hosts": ["./*"]}]}))
    writes: list[str] = []

    def interfere(method: str, path: str) -> None:
        if method == "PATCH" and not writes:
            writes.append(path)
            account.server.patch("Sidecar", namespace, "theirs", {"spec": {"egress": [{"hosts": ["istio-system/*"]}]}})

    with Relay(account.server, interfere) as relay:
        result = scope(host=relay.url, api_key=account.token, mode="REGISTRY_ONLY")
    assert [r.code for r in result.sent if r.verb == "patch"] == [409, 200]
    [live] = account.server.list("Sidecar", namespace)
    assert live["spec"] == {"egress": [{"hosts": ["istio-system/*"]}], "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}


# -- who follows --------------------------------------------------------------------------------------------------------------------


def pod(namespace: str, name: str, **labels: str) -> Object:
    """A pod with a sidecar, as the API has it while no node has taken it."""
    containers = [{"name": "app", "image": "app"}, {"name": "istio-proxy", "image": "istio/proxyv2"}]
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers, "automountServiceAccountToken": False}}


def test_sidecars_that_do_not_follow_are_named_with_the_reason(account: Account, namespace: str, scope: Callable[..., Result]) -> None:
    wait_until(partial(made, account, pod(namespace, "web-1", app="web")), "the service account that every pod needs")
    account.server.create(pod(namespace, "db-1", app="db"))
    account.server.create(sidecar(namespace, "of-db", {"workloadSelector": {"labels": {"app": "db"}}, "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}))
    result = scope(mode="REGISTRY_ONLY")
    assert (result["changed"], result["verified"]) == (True, False)
    assert (result["proxies"]["total"], result["proxies"]["following"]) == (2, 0)
    reasons = {entry["pod"]: entry["reason"] for entry in result["proxies"]["pending"]}
    assert reasons == {f"{namespace}/web-1": "the pod is not ready", f"{namespace}/db-1": f"Sidecar {namespace}/of-db sets ALLOW_ANY"}

    # The pod now says that it is ready, but there is nobody to ask.
    status = {"containerStatuses": [{"name": "istio-proxy", "ready": True, "image": "x", "imageID": "x", "restartCount": 0}]}
    account.server.set_status("Pod", namespace, "web-1", status)
    late = scope(mode="ALLOW_ANY", wait_timeout=1)
    assert late["failed"], late
    assert late.msg.count("\n") == 1
    assert all(word in late.msg for word in ("1 of ", "did not follow within 1 s", f"{namespace}/web-1", "cannot be read", "What was written stays")), late.msg
    assert sorted(entry["pod"] for entry in late["proxies"]["pending"]) == [f"{namespace}/db-1", f"{namespace}/web-1"]
    assert scope(wait=False)["mode"] == "ALLOW_ANY"

    quick = scope(mode="REGISTRY_ONLY", wait=False)
    assert (quick["changed"], quick["verified"], "proxies" in quick) == (True, False, False)

    def end(method: str, path: str) -> None:
        if "/web-1/" in path:
            account.server.set_status("Pod", namespace, "web-1", {"phase": "Succeeded"})

    with Relay(account.server, end) as relay:
        done = scope(host=relay.url, api_key=account.token, mode="ALLOW_ANY", wait_timeout=5)
    assert (done.get("failed"), [entry["pod"] for entry in done["proxies"]["pending"]]) == (None, [f"{namespace}/db-1"]), done
    assert not any(r.resource == "pods" for r in quick.sent)
