"""The requests that prove what is declared: each host by its way, and refusals around it."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils import _objects, _policy
from ansible_collections.meshops.istio_egress.plugins.module_utils._derive import derive
from ansible_collections.meshops.istio_egress.plugins.module_utils._traffic import TrafficError
from unit.tasks import states
from unit.test_gateway import Task


def declared(*hosts: Any, policy: str = "web", namespace: str = "demo", export: tuple[str, ...] = (".",)) -> list[dict[str, Any]]:
    entries = _policy.parse_hosts(hosts)
    return _objects.service_entries([_objects.Declared(e, export) for e in entries], [], namespace, policy)


def wanted(entries: list[dict[str, Any]], refuses: bool = True, others: bool = True) -> dict[str, tuple[str, str | None]]:
    return {r.url: (r.expect, r.via) for r in derive(entries, "demo", "sleep", refuses, others).requests}


def test_each_host_must_pass_and_what_is_near_it_must_not() -> None:
    assert wanted(declared("a.example:80", "b.example", {"host": "db.example", "ports": ["tcp/5432"], "addresses": ["203.0.113.1"]})) == {
        "http://a.example/": ("allowed", "direct"),
        "https://b.example/": ("allowed", "direct"),
        "tcp://203.0.113.1:5432": ("allowed", "direct"),
        "http://undeclared.invalid/": ("blocked", None),
        "https://undeclared.invalid/": ("blocked", None),
        "tcp://a.example:8443": ("blocked", None),
        "tcp://b.example:8443": ("blocked", None),
        "http://b.example:443/": ("blocked", None),
        "tcp://db.example:8443": ("blocked", None),
    }


def test_an_undeclared_name_is_asked_for_at_a_declared_host_s_address() -> None:
    requests = derive(declared("a.example:80"), "demo", "sleep", True, True).requests
    assert [r.at for r in requests if r.host == "undeclared.invalid"] == ["a.example"]


def test_where_all_is_let_out_nothing_is_refused_and_the_result_says_so() -> None:
    derived = derive(declared("a.example:80"), "demo", "sleep", False, True)
    assert [r.expect for r in derived.requests] == ["allowed"]
    assert "not REGISTRY_ONLY" in derived.notes[0]


def test_refusals_can_be_asked_for_where_all_is_let_out() -> None:
    derived = derive(declared("a.example:80"), "demo", "sleep", False, True, undeclared=True)
    assert [r.url for r in derived.requests if r.expect == "blocked"] == ["http://undeclared.invalid/", "tcp://a.example:8443"]
    assert derived.notes == ()


@pytest.mark.parametrize("entries", [[], declared("*.a.example", {"host": "203.0.113.0/24", "ports": ["tcp/5432"]})], ids=["nothing", "no name"])
def test_where_no_name_is_declared_an_address_is_refused(entries: list[dict[str, Any]]) -> None:
    derived = derive(entries, "demo", "sleep", True, True, undeclared=True)
    assert [(r.url, r.expect) for r in derived.requests] == [("tcp://192.0.2.1:8443", "blocked")]


def test_wildcards_and_ranges_are_left_to_the_user() -> None:
    derived = derive(declared("*.a.example", {"host": "203.0.113.0/24", "ports": ["tcp/5432"]}, "b.example:80"), "demo", "sleep", False, True)
    assert [r.url for r in derived.requests] == ["http://b.example/"]
    assert {note.partition(" is a ")[0] for note in derived.notes} >= {"*.a.example", "203.0.113.0/24"}


@pytest.mark.parametrize(
    ("callers", "shadow", "own", "strangers"),
    [
        ([], False, ("allowed", "gateway"), []),
        (["demo/sleep"], False, ("allowed", "gateway"), ["blocked"]),
        (["demo/sleep"], True, ("allowed", "gateway"), []),
        (["demo"], False, ("allowed", "gateway"), []),
        (["demo/other"], False, ("blocked", None), []),
        (["demo/other"], True, ("allowed", "gateway"), []),
        (["third"], False, ("blocked", None), []),
    ],
)
def test_who_may_use_a_host_is_let_through_and_nobody_else(callers: list[str], shadow: bool, own: tuple[str, str | None], strangers: list[str]) -> None:
    task = Task([{"host": "a.example", "ports": [80], "allow_from": callers}], shadow=shadow)
    live = states([], task.plan([]))[-1]
    derived = derive([o for o in live if o["kind"] == "ServiceEntry"], "demo", "sleep", True, True)
    by_url = {r.url: (r.expect, r.via) for r in derived.requests}
    assert by_url["http://a.example/"] == own
    assert [(r.url, r.expect) for r in derived.strangers] == [("http://a.example/", what) for what in strangers]


def test_a_silent_connection_cannot_tell_who_is_refused() -> None:
    task = Task([{"host": "a.example", "ports": [443, "tcp/5432"], "addresses": ["203.0.113.1"], "allow_from": ["demo/sleep"]}])
    live = states([], task.plan([]))[-1]
    derived = derive([o for o in live if o["kind"] == "ServiceEntry"], "demo", "sleep", True, True)
    assert [r.url for r in derived.strangers] == ["https://a.example/"]
    assert any("plain TCP to a.example" in note for note in derived.notes)


def foreign(namespace: str = "team", **spec: Any) -> dict[str, Any]:
    ports = [{"number": 80, "name": "http", "protocol": "HTTP"}, {"number": 443, "name": "tls", "protocol": "https"}]
    return {
        "kind": "ServiceEntry",
        "metadata": {"name": "theirs", "namespace": namespace},
        "spec": {"hosts": ["a.example", "c.example"], "ports": ports, **spec},
    }


def test_what_another_owner_opens_beyond_the_declared_hosts_must_be_refused() -> None:
    ours = declared("a.example:80")
    opened = {url for url, (expect, _via) in wanted([*ours, foreign()]).items() if expect == "blocked"}
    assert {"https://a.example/", "http://c.example/", "https://c.example/"} <= opened
    assert "http://a.example/" not in opened
    assert wanted([*ours, foreign()], others=False) == wanted(ours)
    assert wanted([*ours, foreign(exportTo=["."])]) == wanted(ours)
    narrow = {"metadata": {"name": "default", "namespace": "demo"}, "spec": {"egress": [{"hosts": ["./*", "team/a.example"]}]}}
    seen = {r.url for r in derive([*ours, foreign()], "demo", "sleep", True, True, narrow).requests}
    assert "https://a.example/" in seen and "http://c.example/" not in seen


def test_nothing_declared_is_an_error_with_a_way_out() -> None:
    with pytest.raises(TrafficError, match="No host entry is declared") as error:
        derive([foreign()], "demo", "sleep", True, True)
    assert len(str(error.value).splitlines()) == 2
