"""What a policy's document says, what is recorded of it, and the steps from one document to another. Objects as the API has them; no cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import yaml

from ansible_collections.meshops.istio_egress.plugins.module_utils import _document, _gateway
from ansible_collections.meshops.istio_egress.plugins.module_utils._document import Record, essence, next_record, parse, read_record, record_object
from ansible_collections.meshops.istio_egress.plugins.module_utils._document_plan import NOTHING, Around, Place, Task, plan_document, plan_task, rendered
from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Wait
from unit.tasks import known_to, states
from unit.test_gateway import GATEWAYS, broken_ways

A, B, C = "a.example.com", "b.example.com", "c.example.com"
PLACE = Place("demo", "web", "istio-system")
WEB = {
    "apiVersion": "apps/v1", "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "demo", "resourceVersion": "1"}, "spec": {"template": {"metadata": {}}},
}  # fmt: skip
EXCLUDE = "traffic.sidecar.istio.io/excludeOutboundIPRanges"


def through(*hosts, gateway="egress/one", **rest):
    return {"gateways": [{"gateway": gateway, "hosts": list(hosts), **rest}]}


@dataclass
class Cluster:
    """Tasks one after the other, for objects that are a list."""

    objects: list = field(default_factory=list)
    others: dict = field(default_factory=dict)

    def record(self):
        return next((o for o in self.objects if o["kind"] == "ConfigMap"), None)

    def planned(self, document=None, state="present", purge=True, most=None):
        return plan_task(self.record(), Task(state, document, purge, most), self.look, PLACE)

    def look(self, before, after):
        live = {kind: [o for o in self.objects if o["kind"] == kind] for kind in (*_gateway.KINDS, "Sidecar", "Deployment")}
        workloads = {("Deployment", o["metadata"]["name"]): o for o in live["Deployment"]}
        others = {name: parse(given, "demo", name) for name, given in self.others.items()}
        return Around(live, tuple(live["Sidecar"]), workloads, GATEWAYS, others)

    def apply(self, document=None, state="present", breaks_off=None, **options):
        """The states on the way, first and last included; as far as `breaks_off` changes."""
        seen = states(self.objects, self.planned(document, state, **options).plan)[: None if breaks_off is None else breaks_off + 1]
        self.objects = seen[-1]
        return seen

    def meaning(self):
        """The objects, but for what the server adds."""
        return {(o["kind"], o["metadata"]["name"]): (o.get("spec"), o.get("data")) for o in self.objects}

    def annotations(self):
        return next(o for o in self.objects if o["kind"] == "Deployment")["spec"]["template"]["metadata"].get("annotations", {})


def entries(objects):
    return [o for o in objects if o["kind"] == "ServiceEntry"]


def legs(objects):
    """The hosts that clients are sent to a gateway for."""
    return {host for o in objects if o["kind"] == "VirtualService" and o["spec"]["gateways"] == ["mesh"] for host in o["spec"]["hosts"]}


# -- what a document says -----------------------------------------------------------------------------------------------------------


def test_what_a_document_does_not_say_is_as_by_default() -> None:
    said = {"hosts": [A], "gateways": [{"hosts": [B]}], "bypass": [{"workload": "web", "exclude": ["203.0.113.0/24"]}]}
    [route] = parse(said, "demo", "web").routes
    assert (route.gateway, route.hop, route.export_to) == ("istio-system/istio-egressgateway", "auto", (".",))
    filled = {
        "mode": None, "export_to": ["."], "hosts": [A],
        "gateways": [{"hosts": [B], "hop": "auto", "tls_port": 443, "credential": ""}],
        "bypass": [{"workload": "web", "exclude": ["203.0.113.0/24"], "include": None}],
    }  # fmt: skip
    assert parse(filled, "demo", "web") == parse(said, "demo", "web")
    assert essence(filled) == said


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"hosts": ["*"]}, "allow every host"),
        ({"hosts": [A], **through(A)}, f"{A} goes through a gateway twice, or is listed in hosts beside it"),
        ({"gateways": [*through(A)["gateways"], *through(A, gateway="egress/two")["gateways"]]}, f"{A} goes through a gateway twice"),
        ({"gateways": [*through("everything")["gateways"], *through("everything")["gateways"]]}, "everything twice"),
        (through(A, gateway="nowhere"), 'gateway is "nowhere"'),
        ({"bypass": [{"workload": "web", "exclude": []}, {"workload": "deploy/web"}]}, "Deployment/web is in bypass twice"),
        ({"bypass": [{"workload": "web"}]}, "web is in bypass without ranges"),
        ({"bypass": [{"workload": "web", "exclude": ["203.0.113.1"]}]}, "has no length"),
        ({"export_to": []}, "export_to is empty"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_planned(document: dict, told: str) -> None:
    with pytest.raises(EgressError, match=told.replace("*", r"\*")) as error:
        parse(document, "demo", "web")
    assert str(error.value).count("\n") == 1


# -- the record ---------------------------------------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written() -> None:
    record = Record({"mode": "REGISTRY_ONLY", "hosts": [{"host": A, "expires": "2027-01-31"}]}, {})
    written = record_object(record, "demo", "web")
    assert read_record(written) == record
    assert yaml.safe_load(written["data"]["policy.yaml"]) == record.document
    assert _document.records([written]) == {"web": written}
    assert read_record(None) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metadata": {"name": "istio-egress-policy-web", "namespace": "demo", "labels": {"team": "a"}}}, "owner: a"),
        ({"data": {}}, "holds no document"),
        ({"data": {"policy.yaml": "{"}}, "holds no document"),
        ({"data": {"policy.yaml": "- a\n"}}, "holds no document"),
    ],
)
def test_a_record_that_is_not_ours_or_was_spoiled_stops_the_task(change: dict, told: str) -> None:
    with pytest.raises(EgressError, match=told):
        read_record({**record_object(Record({}), "demo", "web"), **change})


def test_one_step_back_is_kept() -> None:
    one, two = {"hosts": [A]}, {"hosts": [B]}
    first = next_record(None, "present", one)
    assert first == Record(one, {})
    assert next_record(first, "present", one) == first
    second = next_record(first, "present", two)
    assert second == Record(two, one)

    back = next_record(second, "restored", None)
    assert back == Record(one, None)
    assert next_record(back, "restored", None) == back
    assert next_record(back, "present", two) == Record(two, one)
    assert next_record(first, "restored", None) is None
    assert next_record(None, "restored", None) is None
    assert next_record(second, "absent", None) is None


def test_a_document_is_on_trial_until_it_runs_without() -> None:
    one, two, three = {"hosts": [A]}, {"hosts": [B]}, {"hosts": [C]}
    proven = next_record(next_record(None, "present", one, trial=True), "present", one)
    assert proven == Record(one, {})
    assert next_record(proven, "present", one, trial=True) == proven
    tried = next_record(proven, "present", two, trial=True)
    assert tried == Record(two, one, trial=True) == next_record(tried, "present", two, trial=True)
    assert next_record(tried, "present", three, trial=True) == Record(three, one, trial=True)
    assert next_record(tried, "present", three) == Record(three, one)
    assert next_record(tried, "restored", None) == Record(one, None)
    assert read_record(record_object(tried, "demo", "web")) == tried


def test_the_record_comes_first_and_keeps_what_others_wrote_on_it() -> None:
    cluster = Cluster()
    cluster.apply({"hosts": [A]})
    cluster.record()["metadata"]["labels"]["of"] = "others"
    changes = cluster.planned({"hosts": [B]}).plan.changes
    assert [c.kind for c in changes] == ["ConfigMap", "ServiceEntry", "ServiceEntry"]
    assert read_record(changes[0].after) == Record({"hosts": [B]}, {"hosts": [A]})
    assert changes[0].after["metadata"]["labels"]["of"] == "others"
    assert [c.kind for c in cluster.planned(state="absent").plan.changes] == ["ServiceEntry", "ConfigMap"]


# -- from document to document ------------------------------------------------------------------------------------------------------

DOCUMENTS = [
    {},
    {"hosts": [A, B, f"{C}:80"], "mode": "REGISTRY_ONLY"},
    {"hosts": [B], **through(A), "mode": "REGISTRY_ONLY"},
    {**through(A, {"host": B, "ports": [80, 443]}, hop="mutual_tls"), "mode": "ALLOW_ANY"},
    {"hosts": [A, {"host": "db.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.1"]}]},
    {"gateways": [*through(A)["gateways"], *through(B, gateway="egress/two")["gateways"]]},
]


@pytest.mark.parametrize("first", DOCUMENTS)
@pytest.mark.parametrize("second", DOCUMENTS)
def test_a_host_of_both_documents_never_goes_and_nothing_is_left_of_the_first(first: dict, second: dict) -> None:
    cluster, fresh = Cluster(), Cluster()
    cluster.apply(first)
    both = known_to(entries(cluster.objects), "demo")
    fresh.apply(second)
    both &= known_to(entries(fresh.objects), "demo")
    for state in cluster.apply(second):
        assert both <= known_to(entries(state), "demo")
        assert broken_ways(state) == []
    assert cluster.meaning().keys() == fresh.meaning().keys()
    assert legs(cluster.objects) == legs(fresh.objects)
    assert not cluster.planned(second).plan


AROUND = {"bypass": [{"workload": "web", "exclude": ["203.0.113.0/24"]}]}
FULL = {"hosts": [B], **through(A), "mode": "REGISTRY_ONLY", **AROUND}


@pytest.mark.parametrize("second", [{"hosts": [A]}, {**through(A, B), "mode": "ALLOW_ANY"}, {**AROUND, "mode": "REGISTRY_ONLY"}, {}])
@pytest.mark.parametrize("state", ["present", "restored", "absent"])
def test_a_task_that_broke_off_is_finished_or_taken_back(second: dict, state: str) -> None:
    """After each of its changes."""
    def begun() -> Cluster:
        cluster = Cluster([WEB])
        cluster.apply(FULL if state == "present" else second)
        if state != "present":
            cluster.apply(FULL)
        return cluster

    asked = second if state == "present" else None
    before, done = begun(), begun()
    changes = len(done.apply(asked, state)) - 1
    for number in range(changes):
        broken = begun()
        broken.apply(asked, state, breaks_off=number)
        broken.apply(asked, state)
        assert broken.meaning() == done.meaning(), number
        assert not broken.planned(asked, state).plan
        if state == "present" and number:
            back = begun()
            back.apply(asked, breaks_off=number)
            back.apply(state="restored")
            assert {k: v for k, v in back.meaning().items() if k[0] != "ConfigMap"} == {k: v for k, v in before.meaning().items() if k[0] != "ConfigMap"}
            assert read_record(back.record()) == Record(FULL)


def test_a_mode_that_opens_comes_first_and_one_that_closes_last() -> None:
    cluster = Cluster()

    def order(document: dict) -> list[str]:
        changes = cluster.planned(document).plan.changes
        cluster.apply(document)
        return [change.kind for change in changes if change.kind != "ConfigMap"]

    assert order({"hosts": [A], "mode": "REGISTRY_ONLY"}) == ["ServiceEntry", "Sidecar"]
    assert order({"hosts": [], "mode": "ALLOW_ANY"}) == ["Sidecar", "ServiceEntry"]
    assert order({"hosts": [A], "mode": "REGISTRY_ONLY"}) == ["ServiceEntry", "Sidecar"]
    assert order({}) == ["Sidecar", "ServiceEntry"]
    cluster.apply(state="absent")
    assert cluster.objects == []


def test_a_mode_that_others_set_is_left_alone() -> None:
    cluster = Cluster()
    cluster.apply({"mode": "REGISTRY_ONLY"})
    cluster.objects.remove(cluster.record())  # as if istio_outbound_mode had set it
    assert [c.kind for c in cluster.planned({"hosts": [A]}).plan.changes] == ["ConfigMap", "ServiceEntry"]
    cluster.apply({"mode": "REGISTRY_ONLY"})
    cluster.others = {"other": {"mode": "REGISTRY_ONLY"}}
    assert [c.kind for c in cluster.planned({}).plan.final()] == ["ConfigMap"]
    with pytest.raises(EgressError, match='Policy "other" of namespace demo sets the mode REGISTRY_ONLY'):
        cluster.planned({"mode": "ALLOW_ANY"})


def test_without_purge_hosts_stay_but_move() -> None:
    cluster = Cluster()
    cluster.apply({"hosts": [A, B]})
    planned = cluster.planned({"hosts": [C], **through(A)}, purge=False)
    assert [d.entry.host for d in planned.hosts] == [B, C]
    assert [r.entry.host for r in planned.routes] == [A]
    cluster.apply({"hosts": [C], **through(A)}, purge=False)
    planned = cluster.planned({"hosts": [A]}, purge=False)
    assert [d.entry.host for d in planned.hosts] == [A, B, C]
    assert planned.routes == []


def test_more_hosts_than_may_go_stop_the_task() -> None:
    cluster = Cluster()
    cluster.apply({"hosts": [A, B], **through(C)})
    assert cluster.planned({"hosts": [C]}, most=2).plan  # one that moves does not go
    with pytest.raises(EgressError, match=f"2 hosts of policy .* would go \\({A}, {B}\\), more than max_delete \\(1\\)"):
        cluster.planned({"hosts": [C]}, most=1)
    assert not cluster.planned({"hosts": [A, B], **through(C)}, most=0).plan


def test_ranges_come_and_go_with_the_document() -> None:
    cluster = Cluster([WEB])
    cluster.apply(AROUND)
    assert cluster.annotations() == {EXCLUDE: "203.0.113.0/24"}
    with pytest.raises(EgressError, match="has bypass for Deployment/web, too"):
        Cluster([WEB], {"other": AROUND}).planned(AROUND)
    cluster.apply({})
    assert cluster.annotations() == {}
    with pytest.raises(EgressError, match="There is no Deployment gone in namespace demo"):
        cluster.planned({"bypass": [{"workload": "gone", "exclude": []}]})
    cluster.apply(AROUND)
    cluster.objects = [cluster.record()]  # the workload has gone meanwhile
    cluster.apply({})
    assert [o["kind"] for o in cluster.objects] == ["ConfigMap"]


def test_what_changes_nothing_is_looked_at_once() -> None:
    cluster = Cluster()
    cluster.apply({"hosts": [A], "mode": "REGISTRY_ONLY"})
    steps = cluster.planned({"hosts": [A], "mode": "REGISTRY_ONLY"}).plan.steps
    assert [type(step) for step in steps] == [Wait, Wait]
    adding = cluster.planned({"hosts": [A, B], "mode": "REGISTRY_ONLY"}).plan.steps
    assert [type(step) for step in adding] == [Change, Change, Wait, Wait]


def test_rendered_objects_are_those_that_are_applied() -> None:
    document = {"hosts": [A], **through(B, gateway="istio-system/istio-egressgateway"), "mode": "REGISTRY_ONLY", "bypass": [{"workload": "web", "exclude": []}]}
    objects = rendered(parse(document, "demo", "web"), PLACE)
    routing = ["Gateway", "DestinationRule", "VirtualService", "VirtualService"]
    assert [o["kind"] for o in objects] == ["ServiceEntry", "ServiceEntry", *routing, "ServiceEntry", "Sidecar"]
    gateway = next(o for o in objects if o["kind"] == "Gateway")
    assert gateway["spec"]["selector"] == {"istio": "egressgateway"}
    live = {kind: [o for o in objects if o["kind"] == kind] for kind in _gateway.KINDS}
    gateways = {"istio-system/istio-egressgateway": _gateway.named("istio-system/istio-egressgateway")}
    around = Around(live, tuple(o for o in objects if o["kind"] == "Sidecar"), {}, gateways)
    assert not plan_document(NOTHING, parse({**document, "bypass": []}, "demo", "web"), True, None, around, PLACE).plan
