"""Nothing is written when nothing differs, or in check mode; and what diff mode shows is what happens.

Seen in the API server's audit log, where a dry run counts as an attempt to write, and in the objects themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from api.modules import Account, Object

MODE, HOST, BYPASS, POLICY = "istio_outbound_mode", "istio_egress_host", "istio_egress_bypass", "istio_egress_policy"

SOME = {"hosts": ["a.nowrites.test", {"host": "b.nowrites.test", "ports": [80, 443], "owner": "web", "ticket": "NET-1"}, "*.wild.test"]}
ODD = {
    "policy": "data",
    "export_to": [".", "istio-system"],
    "hosts": [
        {"host": "203.0.113.0/24", "ports": ["tcp/9000"]},
        {"host": "db.nowrites.test", "ports": ["tcp/5432", {"number": 8443, "protocol": "HTTPS"}], "addresses": ["203.0.113.10", "203.0.113.11"]},
        {"host": "fixed.nowrites.test", "addresses": ["2001:db8::1"], "ports": [80], "resolution": "static"},
    ],
}
CLOSED = {"mode": "REGISTRY_ONLY", "scoped": True}
AROUND = {"exclude": ["192.0.2.0/24"], "wait": False}  # no pod runs here that could be waited for
INJECTOR = '{\n  "global": {\n    "proxy": {\n      "excludeIPRanges": "",\n      "includeIPRanges": "*"\n    }\n  }\n}'
MESH = "# by hand\r\naccessLogFile: /dev/stdout\r\noutboundTrafficPolicy: {}  # closed\r\n"


@dataclass(frozen=True)
class Case:
    """A call that changes something, after the calls in `first`."""

    module: str
    arguments: dict[str, Any]
    first: tuple[tuple[str, dict[str, Any]], ...] = ()
    actions: tuple[str, ...] = ("create",)
    foreign: tuple[Object, ...] = field(default=())


FOREIGN_SIDECAR = {
    "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "theirs", "labels": {"app.kubernetes.io/managed-by": "Helm"}},
    "spec": {"egress": [{"hosts": ["./*"]}], "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}},
}  # fmt: skip
FOREIGN_DEPLOYMENT = {
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "annotations": {"meta.helm.sh/release-name": "shop"}},
    "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web"}]}},
    },
}  # fmt: skip
ONE = {"policy": {"mode": "REGISTRY_ONLY", "hosts": ["a.nowrites.test", "b.nowrites.test:80"]}}
TWO = {"policy": {"hosts": ["a.nowrites.test"], "bypass": [{"workload": "web", "exclude": ["192.0.2.0/24"]}]}, "wait": False}
AROUND_WEB = {**AROUND, "workload": "web", "scoped": True}

CASES = {
    "hosts, create": Case(HOST, SOME, actions=("create", "create", "create")),
    "hosts, create odd ones": Case(HOST, ODD, actions=("create", "create", "create")),
    "hosts, add one": Case(HOST, {"hosts": ["c.nowrites.test"]}, ((HOST, SOME),), ("update",)),
    "hosts, new ticket": Case(HOST, {"hosts": [{"host": "a.nowrites.test", "ticket": "NET-2"}]}, ((HOST, SOME),), ("update",)),
    "hosts, other port": Case(HOST, {"hosts": ["a.nowrites.test:80"]}, ((HOST, SOME),), ("create", "delete")),
    "hosts, other export_to": Case(HOST, {**SOME, "export_to": ["*"]}, ((HOST, SOME),), ("update", "update", "update")),
    "hosts, purge": Case(HOST, {"hosts": ["*.wild.test"], "purge": True}, ((HOST, SOME),), ("delete", "delete")),
    "hosts, absent": Case(HOST, {"hosts": ["a.nowrites.test"], "state": "absent"}, ((HOST, {"hosts": ["a.nowrites.test", "z.nowrites.test"]}),), ("update",)),
    "hosts, all absent": Case(HOST, {"policy": "data", "state": "absent", "purge": True}, ((HOST, ODD),), ("delete", "delete", "delete")),
    "mesh, set": Case(MODE, {"mode": "ALLOW_ANY"}, actions=("update",)),
    "mesh, back": Case(MODE, {"state": "absent"}, ((MODE, {"mode": "ALLOW_ANY"}),), ("update",)),
    "namespace, create": Case(MODE, CLOSED),
    "workload, create": Case(MODE, {"mode": "REGISTRY_ONLY", "scoped": True, "selector": {"app": "web"}}),
    "namespace, update": Case(MODE, {"mode": "ALLOW_ANY", "scoped": True}, ((MODE, CLOSED),), ("update",)),
    "namespace, back": Case(MODE, {"state": "absent", "scoped": True}, ((MODE, CLOSED),), ("delete",)),
    "their Sidecar, set": Case(MODE, CLOSED, (), ("update",), (FOREIGN_SIDECAR,)),
    "ranges of the mesh, set": Case(BYPASS, AROUND, actions=("update",)),
    "ranges of the mesh, back": Case(BYPASS, {"state": "absent", "wait": False}, ((BYPASS, AROUND),), ("update",)),
    "their workload's ranges, set": Case(BYPASS, AROUND_WEB, (), ("update",), (FOREIGN_DEPLOYMENT,)),
    "their workload's ranges, back": Case(
        BYPASS, {**AROUND_WEB, "exclude": None, "state": "absent"}, ((BYPASS, AROUND_WEB),), ("update",), (FOREIGN_DEPLOYMENT,)
    ),
    "a document, first": Case(POLICY, ONE, (), ("create",) * 4),  # its record, two ServiceEntries, a Sidecar
    "a document, another": Case(POLICY, TWO, ((POLICY, ONE),), ("update", "update", "delete", "delete"), (FOREIGN_DEPLOYMENT,)),
    "a document, restored": Case(
        POLICY, {"state": "restored", "wait": False}, ((POLICY, ONE), (POLICY, TWO)), ("update", "update", "create", "create"), (FOREIGN_DEPLOYMENT,)
    ),
    "the first document, restored": Case(POLICY, {"state": "restored"}, ((POLICY, ONE),), ("delete",) * 4),
    "a document, absent": Case(POLICY, {"state": "absent"}, ((HOST, SOME), (POLICY, ONE)), ("delete",) * 4),
    "their Sidecar, back": Case(MODE, {"state": "absent", "scoped": True}, ((MODE, CLOSED),), ("update",), (FOREIGN_SIDECAR,)),
}


@pytest.fixture
def place(account: Account) -> str:
    """A namespace that is both the clients' and the control plane's."""
    namespace = account.namespace("nowrites")
    for name, data in (("istio", {"mesh": MESH}), ("istio-sidecar-injector", {"values": INJECTOR})):
        account.server.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data})
    return namespace


def arguments_of(module: str, arguments: dict[str, Any], place: str) -> dict[str, Any]:
    if module in (HOST, POLICY):
        return {**arguments, "namespace": place, "istio_namespace": place}
    given = {k: v for k, v in arguments.items() if k != "scoped"}
    return {**given, "istio_namespace": place, **({"namespace": place} if "scoped" in arguments else {})}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_check_mode_then_the_change_then_nothing_left_to_do(account: Account, place: str, case: Case) -> None:
    server = account.server
    for obj in case.foreign:
        server.create({**obj, "metadata": {**obj["metadata"], "namespace": place}})
    for module, arguments in case.first:
        assert account.run(module, **arguments_of(module, arguments, place))["changed"]
    before = server.everything(place)
    arguments = arguments_of(case.module, case.arguments, place)

    tried = account.run(case.module, check=True, diff=True, **arguments)
    assert tried["changed"] is True, tried
    assert tried.writes == []
    assert len(tried.attempts) == len(case.actions), "each write is tried once, so that what the server refuses fails here too"
    assert server.everything(place) == before

    done = account.run(case.module, diff=True, **arguments)
    after = server.everything(place)
    assert done["changed"] is True, done
    assert tuple(sorted(o["action"] for o in done["objects"])) == tuple(sorted(case.actions))
    assert after != before
    assert (tried["objects"], tried["steps"], tried["diff"]) == (done["objects"], done["steps"], done["diff"])
    assert shown(done["diff"]) == really_changed(before, after)

    again = account.run(case.module, diff=True, **arguments)
    assert again["changed"] is False, again
    assert again.attempts == []
    assert (again["objects"], again["diff"]) == ([], [])
    assert server.everything(place) == after
    assert account.run(case.module, check=True, **arguments).attempts == []
    assert again["requests"] == len(again.sent)
    assert done["requests"] == len(done.sent)


def test_reading_the_mode_writes_nothing(account: Account, place: str) -> None:
    before = account.server.everything(place)
    for arguments in ({}, {"namespace": place}, {"namespace": place, "selector": {"app": "web"}}):
        result = account.run(MODE, istio_namespace=place, **arguments)
        assert (result["changed"], result["mode"], result.attempts) == (False, "REGISTRY_ONLY", [])
    assert account.server.everything(place) == before


def test_taking_back_what_was_never_set_writes_nothing(account: Account, place: str) -> None:
    for module, arguments in [
        (MODE, {"istio_namespace": place}), (MODE, {"istio_namespace": place, "namespace": place}),
        (BYPASS, {"istio_namespace": place, "wait": False}),
        (HOST, {"namespace": place, "hosts": ["a.nowrites.test"]}), (HOST, {"namespace": place, "purge": True}),
        (POLICY, {"namespace": place, "istio_namespace": place}),
    ]:  # fmt: skip
        result = account.run(module, state="absent", **arguments)
        assert (result["changed"], result.attempts) == (False, [])


def shown(diff: list[dict[str, str]]) -> dict[str, tuple[Object | None, Object | None]]:
    """What the diff says, parsed: (before, after) by ``KIND NAMESPACE/NAME``."""
    assert all(part["before_header"] == part["after_header"] for part in diff)
    return {part["before_header"]: (yaml.safe_load(part["before"]), yaml.safe_load(part["after"])) for part in diff}


def really_changed(before: dict[str, Object], after: dict[str, Object]) -> dict[str, tuple[Object | None, Object | None]]:
    """The same, from the objects that the API server has."""
    changed = {}
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old != new:
            obj = new or old
            changed[f"{key.split('/')[0]} {obj['metadata']['namespace']}/{obj['metadata']['name']}"] = (plain(key, old), plain(key, new))
    return changed


def plain(key: str, obj: Object | None) -> Object | None:
    """An object without what every write changes, or the server alone sets."""
    if obj is None:
        return None
    noise = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
    api = {"ConfigMap": "v1", "Deployment": "apps/v1"}.get(key.split("/")[0], "networking.istio.io/v1")
    metadata = {k: v for k, v in obj["metadata"].items() if k not in noise}
    return {"apiVersion": api, "kind": key.split("/")[0], **{k: v for k, v in obj.items() if k not in ("status", "apiVersion", "kind")}, "metadata": metadata}
