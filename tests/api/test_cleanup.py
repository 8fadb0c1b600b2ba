"""istio_egress_cleanup for a whole cluster, on a real API server: all that the collection made goes, and every byte of others is as it was before.

The control plane of these tests is a namespace with its ConfigMaps; nothing runs in it, so nothing is waited for.
"""

from __future__ import annotations

import pytest

from api.modules import Account, Object, Relay

CLEANUP, MODE, HOST, BYPASS = "istio_egress_cleanup", "istio_outbound_mode", "istio_egress_host", "istio_egress_bypass"
MESH = "# by hand\r\naccessLogFile: /dev/stdout\r\noutboundTrafficPolicy: {}  # closed\r\n"
VALUES = '{\n  "global": {\n    "proxy": {\n      "excludeIPRanges": "",\n      "includeIPRanges": "*"\n    }\n  }\n}'


@pytest.fixture
def istio(account: Account) -> str:
    namespace = account.namespace("mesh")
    for name, data in (("istio", {"mesh": MESH}), ("istio-sidecar-injector", {"values": VALUES, "config": "x"}), ("istio-ca-root-cert", {"pem": "x"})):
        account.server.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data})
    return namespace


def said(objects: dict[str, Object]) -> dict[str, Object]:
    """The objects without what every write changes."""
    noise = ("resourceVersion", "generation", "managedFields")
    return {key: {**o, "metadata": {k: v for k, v in o["metadata"].items() if k not in noise}} for key, o in objects.items()}


def test_a_cluster_is_as_it_was_before(account: Account, istio: str) -> None:
    server, demo, shop = account.server, account.namespace("demo"), account.namespace("shop")
    pods = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web"}]}}
    networking = "networking.istio.io/v1"
    for obj in (
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": pods}},
        {"apiVersion": networking, "kind": "Sidecar", "metadata": {"name": "theirs"}, "spec": {"egress": [{"hosts": ["./*"]}]}},
        {"apiVersion": networking, "kind": "ServiceEntry", "metadata": {"name": "theirs"}, "spec": {"hosts": ["a.cleanup.test"], "ports": [PORT]}},
    ):
        server.create({**obj, "metadata": {**obj["metadata"], "namespace": demo}})
    places = (istio, demo, shop)
    before = [said(server.everything(place)) for place in places]

    common = {"istio_namespace": istio, "wait": False}
    for module, arguments in (
        (MODE, {"mode": "ALLOW_ANY"}), (MODE, {"namespace": demo, "mode": "REGISTRY_ONLY"}), (MODE, {"namespace": shop, "mode": "REGISTRY_ONLY"}),
        (HOST, {"namespace": demo, "hosts": ["b.cleanup.test"]}), (HOST, {"namespace": shop, "hosts": ["c.cleanup.test", "*.cleanup.test"], "policy": "x"}),
        (BYPASS, {"namespace": demo, "workload": "web", "exclude": ["192.0.2.0/24"]}), (BYPASS, {"exclude": ["192.0.2.0/24"]}),
    ):  # fmt: skip
        assert account.run(module, **common, **arguments)["changed"]
    made = [said(server.everything(place)) for place in places]
    assert all(now != was for now, was in zip(made, before, strict=True))

    checked = account.run(CLEANUP, check=True, **common)
    assert checked["changed"] and checked.writes == []
    assert [said(server.everything(place)) for place in places] == made

    done = account.run(CLEANUP, **common)
    here, would_be = ([o for o in result["objects"] if o["namespace"] in places] for result in (done, checked))  # earlier tests' namespaces are just going
    assert here == would_be
    assert [said(server.everything(place)) for place in places] == before

    again = account.run(CLEANUP, **common)
    assert (again["changed"], again.attempts) == (False, [])


def test_a_secret_goes_unseen(account: Account, istio: str) -> None:
    labels = {"app.kubernetes.io/managed-by": "istio-egress"}
    for name, marks in (("ours", labels), ("theirs", {})):
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": istio, "labels": marks}, "stringData": {"tls.key": "hush"}}
        account.server.create(secret)
    done = account.run(CLEANUP, diff=True, istio_namespace=istio, wait=False, namespace=istio)
    assert [(o["kind"], o["name"]) for o in done["objects"]] == [("Secret", "ours")]
    assert "aHVzaA==" not in str(dict(done)), "the key is in the diff"
    assert [s["metadata"]["name"] for s in account.server.list("Secret", istio)] == ["theirs"]


PORT = {"number": 80, "name": "http", "protocol": "HTTP"}


def test_what_others_delete_meanwhile_needs_no_cleanup(account: Account, istio: str) -> None:
    """In a whole cluster something always goes between the reading and the writing of a task."""
    demo = account.namespace("demo")
    pods = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web"}]}}
    spec = {"selector": {"matchLabels": {"app": "web"}}, "template": pods}
    for name in ("stays", "goes"):
        account.server.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": demo}, "spec": spec})
    before = said(account.server.everything(demo))
    common = {"istio_namespace": istio, "wait": False, "namespace": demo}
    for name in ("stays", "goes"):
        account.run(BYPASS, **common, workload=name, exclude=["192.0.2.0/24"])
    account.run(HOST, **common, hosts=["b.cleanup.test"])
    gone: list[str] = []

    def delete(method: str, path: str) -> None:
        if method in ("PATCH", "PUT") and "/deployments/goes" in path and not gone:
            gone.append(path)
            account.server.delete("Deployment", demo, "goes")

    with Relay(account.server, delete) as relay:
        done = account.run(CLEANUP, host=relay.url, api_key=account.token, **common)
    assert gone and done["changed"]
    assert [r.code for r in done.sent if r.verb in ("patch", "update")].count(404) == 1
    assert said(account.server.everything(demo)) == {key: o for key, o in before.items() if o["metadata"]["name"] != "goes"}


def test_a_task_that_is_refused_half_way_undoes_what_it_did(account: Account, istio: str) -> None:
    demo = account.namespace("demo")
    account.run(HOST, istio_namespace=istio, wait=False, namespace=demo, hosts=["b.cleanup.test"])
    account.run(MODE, istio_namespace=istio, wait=False, namespace=demo, mode="REGISTRY_ONLY")
    before = said(account.server.everything(demo))
    rules = [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["list", "get"]},
        {"apiGroups": ["networking.istio.io"], "resources": ["sidecars"], "verbs": ["*"]},
    ]
    with Account(account.server, rules) as limited:
        result = limited.run(CLEANUP, istio_namespace=istio, wait=False, namespace=demo)
    assert result.get("failed") and "Not allowed to delete serviceentries" in result.msg, result
    assert "everything is as it was before" in result.msg

    def spec(objects: dict[str, Object]) -> dict[str, Object]:
        return {key: o.get("spec") for key, o in objects.items()}

    assert spec(account.server.everything(demo)) == spec(before)
