"""What a task writes, in which order, and what it waits for: the lines that `--check --diff` shows.

Tables of tasks that ran before and the task that runs now. No cluster.
"""

from __future__ import annotations

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Declared
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait, describe_hosts, plan_hosts
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import parse_hosts
from unit.tasks import Task, after, created, in_vain, service_entry, states, walk

A, B, C = "a.example.com", "b.example.com", "c.example.com"
DB = {"host": "db.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.1"]}


def many(number, port=443):
    return [f"h{n:03}.example.com:{port}" for n in range(number)]


def writes(plan):
    """The lines of a plan without the padding, and without the waits."""
    return [" ".join(str(change).split()) for change in plan.changes]


def steps(plan):
    return [" ".join(line.split()) for line in plan.lines()]


# -- what is written ----------------------------------------------------------------------------------------------------------------

PLANS = {
    "first host": ([], Task([A]), ["+ serviceentry demo/egress-default-443-1 1 host: a.example.com"]),
    "hosts of two kinds": (
        [],
        Task([A, f"{B}:80", DB]),
        [
            "+ serviceentry demo/egress-default-443-1 1 host: a.example.com",
            "+ serviceentry demo/egress-default-80-1 1 host: b.example.com",
            "+ serviceentry demo/egress-default-db.example.com 1 host: db.example.com",
        ],
    ),
    "more hosts than a line holds": (
        [],
        Task(many(6)),
        ["+ serviceentry demo/egress-default-443-1 6 hosts: h000.example.com, h001.example.com, h002.example.com, h003.example.com and 2 more"],
    ),
    "the same again": ([Task([A, DB])], Task([DB, A]), []),
    "the same in other words": ([Task([A])], Task([{"host": "A.example.com.", "ports": ["tls/443"], "resolution": "dns"}]), []),
    "a host more": ([Task([A])], Task([B]), ["~ serviceentry demo/egress-default-443-1 + b.example.com"]),
    "a host less": ([Task([A, B])], Task([B], state="absent"), ["~ serviceentry demo/egress-default-443-1 - b.example.com"]),
    "the last host less": ([Task([A])], Task([A], state="absent"), ["- serviceentry demo/egress-default-443-1 1 host: a.example.com"]),
    "a host less that is not there": ([Task([A])], Task([B], state="absent"), []),
    "one host for another": ([Task([A, C])], Task([B, C], purge=True), ["~ serviceentry demo/egress-default-443-1 + b.example.com, - a.example.com"]),
    "purge": (
        [Task([A, B, DB])],
        Task([A], purge=True),
        ["~ serviceentry demo/egress-default-443-1 - b.example.com", "- serviceentry demo/egress-default-db.example.com 1 host: db.example.com"],
    ),
    "purge of all": (
        [Task([A]), Task([A], policy="web")],
        Task(state="absent", purge=True),
        ["- serviceentry demo/egress-default-443-1 1 host: a.example.com"],
    ),
    "another policy": ([Task([A])], Task([B], policy="web"), ["+ serviceentry demo/egress-web-443-1 1 host: b.example.com"]),
    "the same policy in another namespace": ([Task([A], namespace="prod")], Task([B]), ["+ serviceentry demo/egress-default-443-1 1 host: b.example.com"]),
    "a note": ([Task([A, B])], Task([{"host": A, "owner": "web"}]), ["~ serviceentry demo/egress-default-443-1 metadata of a.example.com"]),
    "a note taken back": ([Task([{"host": A, "owner": "web"}])], Task([A]), ["~ serviceentry demo/egress-default-443-1 metadata of a.example.com"]),
    "exported further": ([Task([A, B])], Task([A, B], export_to=[".", "prod"]), ["~ serviceentry demo/egress-default-443-1 exportTo ., prod"]),
    "exported to the same in another order": ([Task([A], export_to=["x", "y"])], Task([A], export_to=["y", "x"]), []),
    "another address": (
        [Task([DB])],
        Task([{**DB, "addresses": ["192.0.2.2"]}]),
        ["~ serviceentry demo/egress-default-db.example.com addresses of db.example.com"],
    ),
    "another port of a host that stands alone": (
        [Task([DB])],
        Task([{**DB, "ports": ["tcp/5433"]}]),
        ["~ serviceentry demo/egress-default-db.example.com ports of db.example.com"],
    ),
    # A host that moves is in its new object first, and leaves the old one afterwards.
    "a port more for the only host": (
        [Task([A])],
        Task([f"{A}:80,443"]),
        ["+ serviceentry demo/egress-default-80-443-1 1 host: a.example.com", "- serviceentry demo/egress-default-443-1 1 host: a.example.com"],
    ),
    "a port more for one of two": (
        [Task([A, B])],
        Task([f"{A}:80,443"]),
        ["+ serviceentry demo/egress-default-80-443-1 1 host: a.example.com", "~ serviceentry demo/egress-default-443-1 - a.example.com"],
    ),
    "another port for one of two, in an object that is there": (
        [Task([A, f"{B}:80", f"{C}:80"])],
        Task([B]),
        ["~ serviceentry demo/egress-default-443-1 + b.example.com", "~ serviceentry demo/egress-default-80-1 - b.example.com"],
    ),
    "one of two exported further": (
        [Task([A, B])],
        Task([A], export_to=["*"]),
        ["+ serviceentry demo/egress-default-443-2 1 host: a.example.com", "~ serviceentry demo/egress-default-443-1 - a.example.com"],
    ),
    "two hosts that change places": (
        [Task([A, f"{B}:80", C, "d.example.com:80"])],
        Task([f"{A}:80", B]),
        [
            "~ serviceentry demo/egress-default-443-1 + b.example.com",
            "~ serviceentry demo/egress-default-80-1 + a.example.com",
            "~ serviceentry demo/egress-default-443-1 - a.example.com",
            "~ serviceentry demo/egress-default-80-1 - b.example.com",
        ],
    ),
}


@pytest.mark.parametrize("scenario", PLANS)
def test_a_task_writes(scenario):
    earlier, now, expected = PLANS[scenario]
    plan = now.plan(after([], *earlier))
    assert writes(plan) == expected
    assert bool(plan) == bool(expected)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 600])
def test_one_host_more_is_one_write_whatever_the_number(size):
    live = after([], Task(many(size)))
    assert len(live) == (size + 255) // 256
    [change] = Task([A]).plan(live).changes
    assert change.note in ("+ a.example.com", "1 host: a.example.com")


@pytest.mark.parametrize("size", [1, 2, 257, 600])
@pytest.mark.parametrize("which", [0, -1])
def test_one_host_less_is_one_write_whatever_the_number(size, which):
    hosts = many(size)
    live = after([], Task(hosts))
    [change] = Task([hosts[which]], state="absent").plan(live).changes
    assert change.note in (f"- {hosts[which].split(':')[0]}", f"1 host: {hosts[which].split(':')[0]}")


def test_the_place_of_a_removed_host_is_used_again():
    live = after([], Task(many(257)), Task(["h000.example.com"], state="absent"))
    [change] = Task([A]).plan(live).changes
    assert (change.name, change.note) == ("egress-default-443-1", "+ a.example.com")


@pytest.mark.parametrize(
    ("drift", "note"),
    [
        ({"hosts": [A, B, "evil.example.com"]}, "- evil.example.com"),
        ({"hosts": [A]}, "+ b.example.com"),
        ({"location": "MESH_INTERNAL"}, "spec brought back to what is declared"),
        ({"exportTo": ["*"]}, "exportTo ."),
        ({"subjectAltNames": ["x"]}, "spec brought back to what is declared"),
    ],
    ids=str,
)
def test_what_somebody_changed_in_our_object_is_brought_back(drift, note):
    live = after([], Task([A, B]))
    live[0]["spec"].update(drift)
    [change] = Task([A, B], purge=True).plan(live).changes
    assert (change.action, change.note) == ("update", note)


def test_nobody_elses_object_is_touched():
    theirs = [
        service_entry("cnn", A),
        service_entry("helm", B, labels={"app.kubernetes.io/managed-by": "Helm", "istio-egress.meshops.io/policy": "default"}),
        service_entry("elsewhere", C, namespace="prod", labels={"app.kubernetes.io/managed-by": "istio-egress", "istio-egress.meshops.io/policy": "default"}),
    ]
    assert not Task(state="absent", purge=True).plan(theirs)
    assert {c.name for c in Task([A, B, C], purge=True).plan(theirs).changes} == {"egress-default-443-1"}


def test_hosts_of_two_full_objects_change_places_without_a_gap():
    tls, http = [f"t{n}.example.com:443" for n in range(256)], [f"p{n}.example.com:80" for n in range(256)]
    live = after([], Task(tls + http))
    plan = Task(["t0.example.com:80", "p0.example.com:443"]).plan(live)
    for state in states(live, plan):
        assert {"t0.example.com", "p0.example.com"} <= {host for o in state for host in o["spec"]["hosts"]}


def test_a_full_object_takes_no_host_for_one_that_is_still_in_it():
    """It moves to an object of its own, and leaves the full one only when it is there."""
    live = after([], Task(many(256)))
    plan = Task([{"host": "h000.example.com", "addresses": ["192.0.2.1"]}, A]).plan(live)
    assert max(len(o["spec"]["hosts"]) for state in states(live, plan) for o in state) == 256


def test_a_full_object_takes_no_host_for_one_that_a_broken_move_left_in_it():
    """Both objects of an interrupted move hold the host; the one that it leaves now is full."""
    tls = many(256)
    live = after([], Task([*tls[1:], "h000.example.com:http/80"]))
    halfway = states(live, Task(["h000.example.com"]).plan(live))[1]
    plan = Task(["h000.example.com:http/80", A]).plan(halfway)
    assert max(len(o["spec"]["hosts"]) for state in states(halfway, plan) for o in state) == 256


def test_a_move_that_was_interrupted_is_finished_by_the_steps_that_are_left():
    live = after([], Task([f"{A}:80,443"]))
    move = Task([A])
    _before, halfway, _done = states(live, move.plan(live))
    assert writes(move.plan(halfway)) == writes(move.plan(live))[1:]


def test_namespaces_in_another_order_are_no_reason_to_move_a_host():
    live = after([], Task([A, B], export_to=["x", "y"]))
    assert writes(Task([A], export_to=["y", "x"]).plan(live)) == []


def test_the_namespace_itself_beside_the_dot_is_said_once():
    [change] = Task([A], export_to=[".", "demo"]).plan([]).changes
    assert change.after["spec"]["exportTo"] in (["."], ["demo"])


def test_wanted_hosts_may_come_from_an_iterator():
    wanted = [Declared(entry, (".",)) for entry in parse_hosts([A, DB])]
    assert writes(plan_hosts(iter(wanted), [], "demo", "default")) == writes(plan_hosts(wanted, [], "demo", "default"))


# -- what is waited for -------------------------------------------------------------------------------------------------------------

WAITS = {
    "a host": ([], Task([A]), ["sidecars of demo have a.example.com:443"]),
    "nothing to write": ([Task([A])], Task([A]), ["sidecars of demo have a.example.com:443"]),
    "several ports": ([], Task([f"{A}:80,443"]), ["sidecars of demo have a.example.com:443, a.example.com:80"]),
    "exported to all": ([], Task([A], export_to=["*"]), ["all sidecars have a.example.com:443"]),
    "exported to others": ([], Task([A], export_to=["prod", "."]), ["sidecars of demo, prod have a.example.com:443"]),
    "a host removed": ([Task([A, B])], Task([B], state="absent"), ["sidecars of demo have a.example.com:443 and no longer have b.example.com:443"]),
    "all removed": ([Task([A])], Task(state="absent", purge=True), ["sidecars of demo no longer have a.example.com:443"]),
    "nothing there": ([], Task(state="absent", purge=True), []),
    "a port removed": ([Task([f"{A}:80,443"])], Task([A]), ["sidecars of demo have a.example.com:443 and no longer have a.example.com:80"]),
    "removed, but another policy has it": ([Task([A]), Task([A], policy="web")], Task([A], state="absent"), []),
    "removed, and declared only where demo does not see it": (
        [Task([A], namespace="prod"), Task([A, B])],
        Task([A], state="absent"),
        ["sidecars of demo have b.example.com:443 and no longer have a.example.com:443"],
    ),
    "removed, but it is declared elsewhere": (
        [Task([A], namespace="prod", export_to=["*"]), Task([A, B])],
        Task([A], state="absent"),
        ["sidecars of demo have b.example.com:443"],
    ),
    "exported to others only": ([], Task([A], export_to=["prod"]), ["sidecars of prod have a.example.com:443"]),
    "exported further": ([Task([A])], Task([A], export_to=[".", "prod"]), ["sidecars of demo, prod have a.example.com:443"]),
    "exported less far": ([Task([A], export_to=[".", "prod"])], Task([A]), ["sidecars of demo have a.example.com:443"]),
    "hosts that different namespaces see": (
        [Task([A])],
        Task([B], export_to=[".", "prod"]),
        ["sidecars of demo have a.example.com:443", "sidecars of demo, prod have b.example.com:443"],
    ),
}


@pytest.mark.parametrize("scenario", WAITS)
def test_a_task_waits_until(scenario):
    earlier, now, expected = WAITS[scenario]
    plan = now.plan(after([], *earlier))
    assert [" ".join(str(step).split()).removeprefix("wait ") for step in plan.steps if isinstance(step, Wait)] == expected


def test_sidecars_are_looked_at_when_all_is_written():
    plan = Task([f"{A}:80,443"]).plan(after([], Task([A])))
    assert steps(plan) == [
        "+ serviceentry demo/egress-default-80-443-1 1 host: a.example.com",
        "- serviceentry demo/egress-default-443-1 1 host: a.example.com",
        "wait sidecars of demo have a.example.com:443, a.example.com:80",
    ]


MOVES = {
    "another host is exported further": ([Task([A])], Task([B], export_to=[".", "prod"])),
    "another host is exported to all": ([Task([A])], Task([B], export_to=["*"])),
    "exported less far": ([Task([A], export_to=[".", "prod"])], Task([A])),
    "a port more and another resolution": ([Task([A])], Task([{"host": A, "ports": [80, 443], "resolution": "dns_round_robin"}])),
    "a port more and exported further": ([Task([A])], Task([f"{A}:80,443"], export_to=[".", "prod"])),
    "from TCP by address to TLS by name": ([Task([DB])], Task(["db.example.com"])),
}


@pytest.mark.parametrize("scenario", MOVES)
def test_every_wait_can_be_fulfilled(scenario):
    earlier, now = MOVES[scenario]
    live = after([], *earlier)
    assert not [vain for step, state in walk(live, now.plan(live)) if isinstance(step, Wait) for vain in in_vain(step, state, ["demo", "prod", "any"])]


# -- the plan as a value ------------------------------------------------------------------------------------------------------------


def test_an_object_that_is_written_twice_is_shown_once_from_start_to_end():
    earlier, now, _lines = PLANS["two hosts that change places"]
    plan = now.plan(after([], *earlier))
    assert len(plan.changes) == 4
    assert [(c.action, c.name, c.before["spec"]["hosts"], c.after["spec"]["hosts"]) for c in plan.final()] == [
        ("update", "egress-default-443-1", [A, C], [B, C]),
        ("update", "egress-default-80-1", [B, "d.example.com"], [A, "d.example.com"]),
    ]


@pytest.mark.parametrize(("before", "after_", "action", "sign"), [(None, "x", "create", "+"), ("x", "x", "update", "~"), ("x", None, "delete", "-")])
def test_a_change_says_what_it_does(before, after_, action, sign):
    change = Change(service_entry(before, A) if before else None, service_entry(after_, B) if after_ else None, "a note")
    assert change.object["spec"]["hosts"] == ([B] if after_ else [A])
    assert change.reference() == {"kind": "ServiceEntry", "namespace": "demo", "name": "x", "action": action}
    assert str(change) == f"{sign} serviceentry   demo/x  a note"


def test_what_sidecars_look_up_in_dns_is_what_is_declared_with_it():
    robin = {"host": C, "ports": [443], "resolution": "dns_round_robin"}
    plan = Task([A, f"{B}:80", robin, "*.example.org", DB]).plan([])
    [wait] = [step for step in plan.steps if isinstance(step, Wait)]
    assert wait.looked_up == {f"outbound|443||{A}", f"outbound|80||{B}", f"outbound|443||{C}"}


def test_a_plan_without_a_write_is_false_even_if_it_waits():
    assert not Plan((Wait(("demo",)),)) and not Plan()


def test_planning_changes_nothing_that_was_read():
    live = [created([], o) for o in after([], Task([A, f"{B}:80"]))]
    copies = [str(o) for o in live]
    Task([f"{A}:80", B, DB], purge=True, export_to=["*"]).plan(live)
    assert [str(o) for o in live] == copies


# -- what a module returns ----------------------------------------------------------------------------------------------------------


def test_each_host_is_returned_with_its_object_and_what_was_chosen_for_it_now():
    live = after([], Task([{"host": A, "owner": "web"}]))
    now = Task([f"{B}:80", {**DB, "expires": "2027-01-31"}])
    chosen = {entry.host: entry.chosen for entry in parse_hosts(now.hosts)}
    rows = {row["host"]: row for row in describe_hosts(now.wanted(live), live, "demo", "default", chosen)}
    place = {"export_to": ["."], "object": "egress-default-443-1"}
    assert rows[A] == {"host": A, "ports": ["tls/443"], "resolution": "DNS", "addresses": [], "chosen": [], "owner": "web", **place}
    assert rows[B]["object"] == "egress-default-80-1" and rows[B]["chosen"][0] == "port 80 is HTTP"
    assert (rows["db.example.com"]["addresses"], rows["db.example.com"]["expires"]) == (["192.0.2.1"], "2027-01-31")
    placed = {(o["metadata"]["name"], host) for o in after(live, now) for host in o["spec"]["hosts"]}
    assert placed == {(row["object"], row["host"]) for row in rows.values()}


def test_what_comes_and_goes_within_a_plan_is_no_change_of_the_cluster():
    entry = service_entry("a", A)
    assert Plan((Change(None, entry), Change(entry, None))).final() == []
