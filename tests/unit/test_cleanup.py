"""What is taken back, in which order, and what stays because others use it. Objects as the API has them; no cluster."""

from __future__ import annotations

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils import _bypass, _cleanup, _mode
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway import Origination
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Wait
from unit.tasks import states
from unit.test_gateway import Task

GATEWAY_HOST = "istio-egressgateway.istio-system.svc.cluster.local"


def obj(kind, name, namespace="demo", policy=None, scope=None, ours=True, labels=None, **rest):
    marks = {"app.kubernetes.io/managed-by": "istio-egress"} if ours else {}
    marks |= {"istio-egress.meshops.io/policy": policy} if policy else {}
    marks |= {"istio-egress.meshops.io/scope": scope} if scope else {}
    metadata = {"name": name, "namespace": namespace, "resourceVersion": "1", "labels": {**marks, **(labels or {})}}
    return {"kind": kind, "metadata": metadata, "spec": {}, **rest}


def client_leg(name, namespace="demo", **keywords):
    to = [{"destination": {"host": GATEWAY_HOST, "subset": "plain", "port": {"number": 443}}}]
    spec = {"hosts": ["a.test"], "gateways": ["mesh"], "tls": [{"match": [{"port": 443, "sniHosts": ["a.test"]}], "route": to}]}
    return obj("VirtualService", name, namespace, "web", spec=spec, **keywords)


def gateway_leg(name, clients="demo", **keywords):
    spec = {"hosts": ["a.test"], "gateways": ["egress-istio-egressgateway"]}
    return obj("VirtualService", name, "istio-system", "web", clients, spec=spec, **keywords)


def entry(name, namespace="demo", policy="web", scope=None, **keywords):
    spec = {"hosts": ["a.test"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "DNS", "exportTo": ["."]}
    return obj("ServiceEntry", name, namespace, policy, scope, spec=spec, **keywords)


def gateway_part(kind):
    return obj(kind, "istio-egressgateway", "istio-system", labels={"istio-egress.meshops.io/gateway": "x", "app": "istio-egressgateway"})


SHARED = obj("Gateway", "egress-istio-egressgateway", "istio-system")
SIDECAR = obj("Sidecar", "egress-mode", spec={"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}})
MESH = {"kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system", "resourceVersion": "1"}, "data": {"mesh": "{}\n"}}
WEB = {"kind": "Deployment", "metadata": {"name": "web", "namespace": "demo", "resourceVersion": "1"}, "spec": {"template": {"metadata": {}}}}


def live(*objects):
    return {kind: [o for o in objects if o["kind"] == kind] for kind in _cleanup.KINDS}


def taken_back(objects, namespace=None):
    """Changes as ``-Kind/name`` or ``~Kind/name``, waits as ``wait``; and what is said to stay."""
    plan, kept = _cleanup.plan(live(*objects), namespace, "istio-system")
    signs = {"delete": "-", "update": "~"}
    return [f"{signs[s.action]}{s.kind}/{s.name}" if isinstance(s, Change) else "wait" for s in plan.steps], kept


def set_mode(config_map):
    return _mode.plan_mesh(config_map, "REGISTRY_ONLY", "default").changes[0].after


def set_ranges(workload):
    return _bypass.plan_workload(workload, {"exclude": "192.0.2.0/24"}, dict.fromkeys(_bypass.SETTINGS)).changes[0].after


EVERYTHING = [
    obj("NetworkPolicy", "enforce"), set_mode(MESH), SIDECAR, set_ranges(WEB), client_leg("client"), gateway_leg("gateway"), SHARED,
    entry("known", scope="known"), entry("at-gateway", "istio-system", scope="demo"), obj("DestinationRule", "egress"),
    obj("Secret", "certificate", "istio-system", "web", "demo"), *map(gateway_part, ("Service", "Deployment", "ServiceAccount")),
]  # fmt: skip


def test_the_order_in_which_all_goes():
    steps, kept = taken_back(EVERYTHING)
    assert kept == []
    assert steps == [
        "-NetworkPolicy/enforce", "~ConfigMap/istio", "wait", "-Sidecar/egress-mode", "wait",
        "~Deployment/web", "wait",
        "-VirtualService/client", "wait",
        "-VirtualService/gateway", "-DestinationRule/egress", "-Gateway/egress-istio-egressgateway",
        "-ServiceEntry/known", "wait", "-ServiceEntry/at-gateway", "wait", "-Secret/certificate",
        "-Service/istio-egressgateway", "-Deployment/istio-egressgateway", "-ServiceAccount/istio-egressgateway",
    ]  # fmt: skip


def test_of_a_namespace_what_concerns_all_stays():
    steps, _kept = taken_back(EVERYTHING, "demo")
    assert [s for s in steps if s != "wait"] == [
        "-NetworkPolicy/enforce", "-Sidecar/egress-mode", "~Deployment/web", "-VirtualService/client", "-VirtualService/gateway", "-DestinationRule/egress",
        "-Gateway/egress-istio-egressgateway", "-ServiceEntry/known", "-ServiceEntry/at-gateway", "-Secret/certificate",
    ]  # fmt: skip


def test_another_namespace_is_not_touched():
    assert taken_back(EVERYTHING, "shop") == ([], [])
    assert taken_back([entry("e", "demo", scope="known")], "known") == ([], [])


def test_what_others_use_stays_and_is_said():
    others = [client_leg("theirs", "shop"), gateway_leg("their-leg", "shop")]
    steps, kept = taken_back([*EVERYTHING, *others], "demo")
    assert "-Gateway/egress-istio-egressgateway" not in steps and not [s for s in steps if "their" in s]
    assert kept == ["Gateway istio-system/egress-istio-egressgateway stays, since VirtualService istio-system/their-leg is bound to it"]
    _steps, kept = taken_back([*EVERYTHING, client_leg("by-hand", "shop", ours=False)])
    assert kept == [f"{kind} istio-system/istio-egressgateway stays, since clients of shop go through this gateway" for kind in KEPT]


KEPT = ("Deployment", "Service", "ServiceAccount")


@pytest.mark.parametrize(
    "theirs",
    [
        [entry("e", ours=False), client_leg("v", ours=False), obj("Sidecar", "s", ours=False), obj("Gateway", "g", ours=False), MESH, WEB],
        [obj("Deployment", "sleep"), obj("Service", "sleep"), obj("ServiceAccount", "sleep")],
    ],
    ids=["of others", "of the test source"],
)
def test_what_is_not_ours_to_take_back(theirs):
    assert taken_back(theirs) == ([], [])


def test_the_ways_that_clients_must_have_left():
    plan, _kept = _cleanup.plan(live(client_leg("client")), None, "istio-system")
    [wait] = [s for s in plan.steps if isinstance(s, Wait)]
    assert wait == Wait(("demo",), not_routes=frozenset({("a.test", 443, f"outbound|443|plain|{GATEWAY_HOST}")}))
    http = {"match": [{"port": 80}], "route": [{"destination": {"host": "x", "port": {"number": 80}}}]}
    tcp = {"match": [{"port": 5432, "destinationSubnets": ["10.0.0.1"]}], "route": [{"destination": {"host": "x"}}]}
    virtual_service = {"spec": {"hosts": ["a.test", "b.test"], "http": [http], "tcp": [tcp]}}
    expected = {("a.test", 80, "outbound|80||x"), ("b.test", 80, "outbound|80||x"), ("10.0.0.1", 5432, "outbound|||x")}
    assert _cleanup.routes_of(virtual_service) == expected


def test_what_stands_beside_a_gateway_for_one_host_goes_with_the_last_who_sends_it_there():
    host = {"host": "a.example.com", "ports": [80], "allow_from": ["demo/sleep"]}
    tasks = [Task([host], namespace=namespace, tls=Origination("simple")) for namespace in ("demo", "prod")]
    one = states([], tasks[0].plan([]))[-1]
    both = states(one, tasks[1].plan(one))[-1]

    def goes(live):
        by_kind = {kind: [o for o in live if o["kind"] == kind] for kind in _cleanup.KINDS}
        plan, _kept = _cleanup.plan(by_kind, "demo", "istio-system")
        return sorted(c.kind for c in plan.changes if c.after is None and c.namespace == "egress" and c.kind in ("DestinationRule", "AuthorizationPolicy"))

    assert goes(one) == ["AuthorizationPolicy", "DestinationRule"]
    assert goes(both) == []
