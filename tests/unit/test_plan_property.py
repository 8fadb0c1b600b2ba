"""What holds for any tasks in any order, also when some of them broke off half-way and others own objects of their own. No cluster.

ServiceEntries are small here (2 hosts instead of 256), so that full objects, moves and splits are the rule. What the CRD and istiod accept is
written down in `objections`, apart from the code under test.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from ansible_collections.meshops.istio_egress.plugins.module_utils import _objects
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import read_service_entry
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import MANAGED_BY_LABEL, POLICY_LABEL
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import HOSTS_ANNOTATION, HostEntry, PolicyError, parse_hosts
from unit.tasks import Object, Task, after, created, in_vain, service_entry, states, walk, written

CAPACITY = 2
NAMESPACES = ["demo", "prod"]


@pytest.fixture(autouse=True, scope="module")
def small_objects():
    with patch.object(_objects, "MAX_HOSTS", CAPACITY):
        yield


# -- tasks --------------------------------------------------------------------------------------------------------------------------

HOSTS = [f"{name}.example.com" for name in "abcdef"]
BY_NAME = [
    *[{}] * 12, *[{"ports": [80]}] * 6, {"ports": [80, 443]}, {"ports": ["http/8080"]}, {"ports": ["https/8443", "grpc/50051"]}, {"ports": ["tls/80"]},
    {"owner": "web"}, {"owner": "Zoë", "expires": "2027-01-31"}, {"ports": [80], "ticket": "NET-1"},
    {"resolution": "none"}, {"resolution": "dns_round_robin"}, {"resolution": "dns_round_robin", "ports": [80, 443], "reason": "CDN"},
]  # fmt: skip
BY_ADDRESS = [
    {"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.1", "192.0.2.2"], "ports": [80]}, {"addresses": ["198.51.100.0/24", "2001:db8::1"], "owner": "web"},
    {"addresses": ["192.0.2.1"], "resolution": "dns"}, {"addresses": ["192.0.2.1"], "resolution": "none", "ports": [80, 443]},
    {"addresses": ["192.0.2.1"], "ports": ["tcp/5432"]}, {"addresses": ["192.0.2.0/24"], "ports": ["tcp/5432", 443], "ticket": "NET-1"},
    {"addresses": ["192.0.2.1"], "ports": ["mongo/27017"], "resolution": "static"}, {"ports": ["tcp/5432"], "capture_port": True},
]  # fmt: skip
EXACT = st.builds(lambda host, entry: {"host": host, **entry}, st.sampled_from(HOSTS), st.sampled_from([*BY_NAME, *BY_ADDRESS]))
OTHER = st.sampled_from(
    [
        {"host": "*.example.com"}, {"host": "*.example.com", "addresses": ["192.0.2.1"]},
        {"host": "*.org", "ports": [80, 443]}, {"host": "*.org", "resolution": "dynamic_dns"},
        {"host": "192.0.2.9"}, {"host": "198.51.100.0/24", "ports": ["tcp/9000"]}, {"host": "2001:db8::/32", "ports": [80], "owner": "web"},
    ]
)  # fmt: skip
LISTED = st.lists(EXACT | EXACT | EXACT | OTHER, max_size=8, unique_by=lambda entry: entry["host"])
NAMED = st.lists(st.sampled_from([*HOSTS, "*.org", "192.0.2.9"]), max_size=3)

EXPORTS = st.sampled_from([["."], ["."], ["."], ["."], ["*"], [".", "stage"], ["stage"]])
PURGE = st.sampled_from([False, False, True])
TASKS = st.builds(Task, LISTED, export_to=EXPORTS, purge=PURGE) | st.builds(Task, NAMED, state=st.just("absent"), purge=PURGE)
OTHER_TASKS = st.builds(replace, TASKS, policy=st.just("web")) | st.builds(replace, TASKS, namespace=st.just("prod"))
BROKEN_OFF = st.sampled_from([99, 99, 0, 1, 2])
SOMEBODY_ELSES = st.builds(
    service_entry,
    st.sampled_from(["cnn", "egress-default-443-1", "egress-default-80-443-1", "egress-default-a.example.com"]),
    st.sampled_from(["a.example.com", "x.example.net"]),
    namespace=st.sampled_from(["demo", "prod"]),
    labels=st.sampled_from([None, {MANAGED_BY_LABEL: "Helm", POLICY_LABEL: "default"}, {MANAGED_BY_LABEL: "istio-egress"}]),
)


@dataclass(frozen=True)
class Run:
    """What was live, the task that ran on it, its plan, and what was live after each of its writes (first: before any)."""

    task: Task
    plan: Plan = field(repr=False)
    states: list[list[Object]]

    def mine(self, live: list[Object]) -> list[Object]:
        """The objects of the task's policy."""
        labels = {MANAGED_BY_LABEL: "istio-egress", POLICY_LABEL: self.task.policy}
        return [o for o in live if o["metadata"]["namespace"] == self.task.namespace and labels.items() <= (o["metadata"].get("labels") or {}).items()]

    def hosts(self, live: list[Object]) -> list[str]:
        return [host for o in self.mine(live) for host in o["spec"]["hosts"]]

    @property
    def listed(self) -> dict[str, HostEntry]:
        return {entry.host: entry for entry in parse_hosts(self.task.hosts)}


@st.composite
def runs(draw) -> Run:
    """A task, after a few others each of which may have broken off after any of its writes, and between which others wrote objects of their own."""
    simple = draw(st.lists(st.sampled_from([None, {}, {}, {"ports": [80]}]), min_size=len(HOSTS), max_size=len(HOSTS)))
    live = after([], Task([{"host": host, **entry} for host, entry in zip(HOSTS, simple, strict=True) if entry is not None]))
    for event in draw(st.lists(st.tuples(TASKS | TASKS | OTHER_TASKS, BROKEN_OFF) | SOMEBODY_ELSES, max_size=3)):
        if isinstance(event, tuple):
            task, steps_done = event
            try:
                for change in task.plan(live).changes[:steps_done]:
                    live = written(live, change)
            except PolicyError:  # somebody else has one of the hosts
                continue
        elif key(event) not in {key(o) for o in live}:
            live = [*live, created(live, event)]
    task = draw(TASKS)
    try:
        plan = task.plan(live)
    except PolicyError:
        reject()
    return Run(task, plan, states(live, plan))


def key(obj):
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


# -- laws ---------------------------------------------------------------------------------------------------------------------------


def a_second_run_writes_nothing(run):
    assert run.task.plan(run.states[-1]).changes == []


def exactly_the_wanted_hosts_are_declared_once_each(run):
    before, listed = set(run.hosts(run.states[0])), set(run.listed)
    if run.task.state == "absent":
        wanted = set() if run.task.purge else before - listed
    else:
        wanted = listed if run.task.purge else before | listed
    assert Counter(run.hosts(run.states[-1])) == Counter(wanted)


def what_is_listed_is_declared_as_it_is_listed(run):
    for entry in run.listed.values() if run.task.state == "present" else ():
        [obj] = [o for o in run.mine(run.states[-1]) if entry.host in o["spec"]["hosts"]]
        spec = obj["spec"]
        assert {(p["number"], p["protocol"]) for p in spec["ports"]} == {(p.number, p.protocol) for p in entry.ports}
        assert (spec["resolution"], set(spec["exportTo"]), spec["location"]) == (entry.resolution, set(run.task.export_to), "MESH_EXTERNAL")
        assert {*spec.get("addresses", []), *(e["address"] for e in spec.get("endpoints", []))} == set(entry.addresses)
        notes = json.loads(obj["metadata"].get("annotations", {}).get(HOSTS_ANNOTATION, "{}"))
        assert notes.get(entry.host, {}) == dict(entry.metadata)
        assert notes.keys() <= set(spec["hosts"])


def what_is_not_listed_stays_as_it_was(run):
    """But for hosts that are in two objects because a move broke off: these may end as in either."""
    twice = {host for host, times in Counter(run.hosts(run.states[0])).items() if times > 1}
    before, now = ({d for o in run.mine(live) for d in read_service_entry(o)} for live in (run.states[0], run.states[-1]))
    assert run.task.purge or {d.entry.host for d in before ^ now} <= {*run.listed, *twice}


def nobody_elses_object_is_written(run):
    mine = {key(o) for o in run.mine(run.states[0])}
    theirs = {key(o) for o in run.states[0]} - mine
    for change in run.plan.changes:
        assert key(change.object) not in theirs
        assert all(run.mine([o]) for o in (change.before, change.after) if o)


def there_is_no_moment_without_a_host_that_was_declared_and_stays(run):
    during = [set(run.hosts(state)) for state in run.states]
    for hosts in during:
        assert during[0] & during[-1] <= hosts


def every_object_at_every_moment_is_one_that_istio_takes(run):
    for change in run.plan.changes:
        assert change.after is None or objections(change.after) == []


def only_hosts_without_addresses_and_without_TCP_share_an_object(run):
    for obj in run.mine(run.states[-1]):
        spec = obj["spec"]
        if spec.get("addresses") or spec.get("endpoints") or {"TCP", "MONGO"} & {p["protocol"] for p in spec["ports"]}:
            assert len(spec["hosts"]) == 1


def one_host_more_or_less_is_one_write(run):
    for host in ("new.example.com", {"host": "new.example.com", "addresses": ["192.0.2.5"], "ports": ["tcp/6379"]}):
        more = replace(run.task, hosts=[host], purge=False, state="present").plan(run.states[-1])
        assert len(more.changes) == 1
        less = replace(run.task, hosts=["new.example.com"], purge=False, state="absent").plan(states(run.states[-1], more)[-1])
        assert len(less.changes) == 1


def no_wait_is_in_vain(run):
    """Of a host that is exported to all, other namespaces may have a declaration of their own, which is their business."""
    for step, live in walk(run.states[0], run.plan):
        assert isinstance(step, Change) or not in_vain(step, live, [run.task.namespace, "other"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(runs())
def test_a_task_whatever_came_before(run):
    a_second_run_writes_nothing(run)
    exactly_the_wanted_hosts_are_declared_once_each(run)
    what_is_listed_is_declared_as_it_is_listed(run)
    what_is_not_listed_stays_as_it_was(run)
    nobody_elses_object_is_written(run)
    there_is_no_moment_without_a_host_that_was_declared_and_stays(run)
    every_object_at_every_moment_is_one_that_istio_takes(run)
    only_hosts_without_addresses_and_without_TCP_share_an_object(run)
    one_host_more_or_less_is_one_write(run)
    no_wait_is_in_vain(run)


# -- what the CRD and istiod accept -------------------------------------------------------------------------------------------------

DNS_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
LABEL_VALUE = "([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"


def is_network(text):
    try:
        return bool(ipaddress.ip_network(text))
    except ValueError:
        return False


def is_address(text):
    return is_network(text) and "/" not in text


def objections(obj: Object) -> list[str]:
    """Why the API server (schema and CEL rules of the CRD) or istiod's webhook would refuse a ServiceEntry; in their order."""
    metadata, spec = obj["metadata"], obj["spec"]
    hosts, ports, resolution = spec.get("hosts", []), spec.get("ports", []), spec.get("resolution", "NONE")
    addresses, endpoints, export_to = spec.get("addresses", []), spec.get("endpoints"), spec.get("exportTo", [])
    dns = resolution in ("DNS", "DNS_ROUND_ROBIN")
    wildcards = [host for host in hosts if host.startswith("*.")]
    names = [host.removeprefix("*.") for host in hosts]
    numbers = [p["number"] for p in ports]
    protocols = {p["protocol"] for p in ports}
    exported = [metadata["namespace"] if name == "." else name for name in export_to]
    rules = {
        "object name": re.fullmatch(SUBDOMAIN, metadata["name"]) and len(metadata["name"]) <= 253,
        "label values": all(re.fullmatch(LABEL_VALUE, value) for value in (metadata.get("labels") or {}).values()),
        "1 to 256 hosts": 1 <= len(hosts) <= CAPACITY,
        "at most 256 addresses and ports, names up to 64 and 256": len(addresses) <= 256 and len(ports) <= 256 and all(len(a) <= 64 for a in addresses),
        "hosts are DNS names, * only as the first label": all(re.fullmatch(rf"{DNS_LABEL}(\.{DNS_LABEL})*", name) and len(name) <= 255 for name in names),
        "no host twice": len(set(hosts)) == len(hosts),
        "top level domain is not a number": not any(name.rsplit(".", 1)[-1].isdigit() for name in names),
        "port numbers": len(set(numbers)) == len(numbers) and all(1 <= n <= 65535 for n in numbers),
        "port names": len({p["name"] for p in ports}) == len(ports) and all(re.fullmatch(DNS_LABEL, p["name"]) for p in ports),
        "protocols": protocols <= {"HTTP", "HTTPS", "GRPC", "HTTP2", "MONGO", "TCP", "TLS"},
        "resolution": resolution in ("NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"),
        "addresses are IPs or CIDRs": all(is_network(a) for a in addresses),
        "CIDRs only with NONE and STATIC": resolution in ("NONE", "STATIC") or not any("/" in a for a in addresses),
        "NONE has no endpoints": resolution != "NONE" or endpoints is None,
        "STATIC has endpoints that are IPs": resolution != "STATIC" or (bool(endpoints) and all(is_address(e["address"]) for e in endpoints)),
        "DNS looks up exact hosts": not dns or endpoints or not wildcards,
        "DNS_ROUND_ROBIN has one endpoint at most": resolution != "DNS_ROUND_ROBIN" or len(endpoints or []) <= 1,
        "DYNAMIC_DNS is for wildcards": resolution != "DYNAMIC_DNS" or (len(wildcards) == len(hosts) and not addresses and not endpoints),
        "DYNAMIC_DNS is for HTTP and TLS": resolution != "DYNAMIC_DNS" or protocols <= {"HTTP", "HTTP2", "GRPC", "TLS"},
        "several hosts only with HTTP and TLS": resolution == "NONE" or len(hosts) == 1 or not {"TCP", "MONGO"} & protocols,
        "exportTo": bool(exported) and len(set(exported)) == len(exported) and ("*" not in exported or exported == ["*"]),
        "endpoints or a selector": not (endpoints and spec.get("workloadSelector")),
    }
    return [rule for rule, kept in rules.items() if not kept]


GOOD = service_entry("x", "a.example.com", resolution="DNS", exportTo=["."], labels={POLICY_LABEL: "web"})
TCP = [{"number": 1, "name": "tcp-1", "protocol": "TCP"}]


@pytest.mark.parametrize(
    ("rule", "spec"),
    [
        ("1 to 256 hosts", {"hosts": []}),
        ("1 to 256 hosts", {"hosts": HOSTS}),
        ("hosts are DNS names, * only as the first label", {"hosts": ["a_b.example.com"]}),
        ("top level domain is not a number", {"hosts": ["a.7"]}),
        ("port numbers", {"ports": [{"number": 443, "name": n, "protocol": "TLS"} for n in "ab"]}),
        ("port names", {"ports": [{"number": n, "name": "a", "protocol": "TLS"} for n in (1, 2)]}),
        ("protocols", {"ports": [{"number": 1, "name": "a", "protocol": "UDP"}]}),
        ("addresses are IPs or CIDRs", {"addresses": ["192.0.2"]}),
        ("CIDRs only with NONE and STATIC", {"addresses": ["192.0.2.0/24"]}),
        ("NONE has no endpoints", {"resolution": "NONE", "endpoints": []}),
        ("STATIC has endpoints that are IPs", {"resolution": "STATIC"}),
        ("DNS looks up exact hosts", {"hosts": ["*.example.com"]}),
        ("DYNAMIC_DNS is for wildcards", {"resolution": "DYNAMIC_DNS"}),
        ("several hosts only with HTTP and TLS", {"hosts": ["a.example.com", "b.example.com"], "ports": TCP}),
        ("exportTo", {"exportTo": ["*", "demo"]}),
        ("exportTo", {"exportTo": [".", "demo"]}),
    ],
    ids=str,
)
def test_the_rules_of_this_file_bite(rule, spec):
    assert objections(GOOD) == []
    assert objections({**GOOD, "spec": {**GOOD["spec"], **spec}}) == [rule]
