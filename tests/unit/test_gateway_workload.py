"""Which gateways are for egress, who installed them, and what is written for one that we deploy. Tables of objects; no cluster."""

from __future__ import annotations

import copy

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway import GatewayError, Route
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway_workload import (
    DEFAULTS,
    EAST_WEST,
    EGRESS,
    GATEWAY_LABEL,
    INGRESS,
    KINDS,
    UNKNOWN,
    Settings,
    check_unused,
    choose,
    find,
    installed_by,
    is_gateway_template,
    parse,
    plan_absent,
    plan_present,
    purpose,
    target_port,
    unmet,
)
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change
from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import HostEntry, Port
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import Proxy

OPTIONS = {
    "name": None, "ports": None, "replicas": None, "autoscale": None, "resources": None, "drain_timeout": None, "read_secrets": None,
    "revision": None, "istio_namespace": "istio-system",
}  # fmt: skip


def service(name="gw", namespace="mesh", labels=None, selector=None, ports=(80, 443), annotations=None, **spec):
    metadata = {"name": name, "namespace": namespace, "labels": labels or {}, "annotations": annotations or {}}
    return {"kind": "Service", "metadata": metadata, "spec": {"selector": selector or {"app": name}, "ports": [{"port": p} for p in ports], **spec}}


def deployment(name="gw", namespace="mesh", labels=None, annotations=None, args=("proxy", "router"), replicas=1):
    template = {"metadata": {"labels": labels or {"app": name}, "annotations": annotations or {}}, "spec": {"containers": [{"name": "istio-proxy"}]}}
    template["spec"]["containers"][0]["args"] = list(args)
    return {"kind": "Deployment", "metadata": {"name": name, "namespace": namespace}, "spec": {"replicas": replicas, "template": template}}


def virtual_service(host, gateways=("mesh",), namespace="demo", kind="http"):
    spec = {"hosts": ["edition.cnn.com"], "gateways": list(gateways), kind: [{"route": [{"destination": {"host": host}}]}]}
    return {"metadata": {"name": "vs", "namespace": namespace}, "spec": spec}


# -- what a gateway is for ----------------------------------------------------------------------------------------------------------

GATEWAYS = {
    "istioctl, egress": (service("x", labels={"operator.istio.io/component": "EgressGateways"}), EGRESS),
    "istioctl, ingress": (service("x", labels={"operator.istio.io/component": "IngressGateways"}), INGRESS),
    "Helm, release istio-egressgateway": (service("istio-egressgateway", selector={"app": "istio-egressgateway", "istio": "egressgateway"}), EGRESS),
    "Helm, as its chart has it": (service("out", selector={"istio": "egress-out"}, type="LoadBalancer"), EGRESS),
    "Helm, release istio-ingress": (service("istio-ingress", selector={"istio": "ingress"}, type="LoadBalancer"), INGRESS),
    "ingress behind another load balancer": (service("front", selector={"istio": "ingressgateway"}), INGRESS),
    "east-west by its port": (service("cross", ports=(15021, 15443), type="LoadBalancer"), EAST_WEST),
    "east-west by its name": (service("istio-eastwestgateway"), EAST_WEST),
    "east-west by its class": (service("x", labels={"gateway.networking.k8s.io/gateway-class-name": "istio-east-west"}), EAST_WEST),
    "Gateway API, egress": (service("cnn-egress-gateway-istio", labels={"gateway.networking.k8s.io/gateway-name": "cnn-egress-gateway"}), EGRESS),
    "Gateway API, ingress": (service("web-istio", labels={"gateway.networking.k8s.io/gateway-name": "web"}, type="LoadBalancer"), INGRESS),
    "named by its namespace": (service("gw", namespace="istio-egress"), EGRESS),
    "its own name before the namespace's": (service("ingress", namespace="istio-egress"), INGRESS),
    "both words": (service("ingress-and-egress"), UNKNOWN),
    "both words, open to the world": (service("ingress-and-egress", type="NodePort"), INGRESS),
    "no sign": (service("gw"), UNKNOWN),
    "external addresses": (service("gw", externalIPs=["192.0.2.1"]), INGRESS),
    "used by clients": (service("used"), EGRESS),
    "used by clients of its namespace": (service("short"), EGRESS),
    "used by its own routes alone": (service("own"), UNKNOWN),
    "ours": (service("ingress", labels={"app.kubernetes.io/managed-by": "istio-egress", GATEWAY_LABEL: "mesh.ingress"}), EGRESS),
}  # fmt: skip
CLIENTS = [
    virtual_service("used.mesh.svc.cluster.local", kind="tls"), virtual_service("short", namespace="mesh"), virtual_service("short"),
    virtual_service("own.mesh.svc.cluster.local", gateways=["mesh/own"]),
]  # fmt: skip


@pytest.mark.parametrize("name", GATEWAYS)
def test_what_a_gateway_is_for_is_told_by_its_signs(name):
    gateway, expected = GATEWAYS[name]
    found, reason = purpose(gateway, {}, CLIENTS)
    assert (found, bool(reason)) == (expected, True), reason


def test_labels_of_the_pods_count_too():
    assert purpose(service("gw"), {"istio": "egressgateway"}) == (EGRESS, "label istio: egressgateway")


@pytest.mark.parametrize(("labels", "annotations", "expected"), [
    ({"install.operator.istio.io/owning-resource": "unknown", "helm.sh/chart": "istio-egress-1.0.0"}, {}, "istioctl"),
    ({"app.kubernetes.io/managed-by": "Helm"}, {"meta.helm.sh/release-name": "out"}, "Helm (release out)"),
    ({"helm.sh/chart": "gateway-1.31.1"}, {}, "Helm (chart gateway-1.31.1, rendered)"),
    ({"gateway.networking.k8s.io/gateway-name": "web", "gateway.istio.io/managed": "x"}, {}, "Gateway API (Gateway web)"),
    ({}, {"kubectl.kubernetes.io/last-applied-configuration": "{}"}, "hand (applied with kubectl)"),
    ({"team": "net"}, {}, "hand (owner: net)"),
    ({"app.kubernetes.io/managed-by": "istio-egress", GATEWAY_LABEL: "a.b"}, {}, "istio_egress_gateway_deploy"),
    ({"app.kubernetes.io/managed-by": "istio-egress"}, {}, "hand (owner: istio-egress)"),
])  # fmt: skip
def test_who_installed_a_gateway(labels, annotations, expected):
    assert installed_by(service(labels=labels, annotations=annotations)) == expected


@pytest.mark.parametrize(("annotations", "args", "expected"), [
    ({}, ["proxy", "router"], True),
    ({"inject.istio.io/templates": "gateway"}, [], True),
    ({"inject.istio.io/templates": "custom, gateway"}, [], True),
    ({"inject.istio.io/templates": "my-gateway"}, [], False),
    ({}, ["proxy", "sidecar"], False),
    ({}, ["proxy", "waypoint"], False),
])  # fmt: skip
def test_which_deployments_run_gateways(annotations, args, expected):
    assert is_gateway_template(deployment(annotations=annotations, args=args)) is expected


def test_gateways_are_found_by_what_runs_or_would_run():
    services = [service("runs"), service("stopped"), service("web"), service("elsewhere", namespace="other"), service("none", selector={})]
    services[-1]["spec"]["selector"] = {}
    proxies = [Proxy("mesh", "1", {"app": "runs", "x": "y"}), Proxy("mesh", "2", {"app": "runs"}, ready=False), Proxy("mesh", "3", {"app": "elsewhere"})]
    deployments = [deployment("stopped", replicas=0), deployment("web", args=["serve"])]
    found = find(services, deployments, proxies, [])
    assert [(f.reference, f.ready, len(f.proxies)) for f in found] == [("mesh/runs", 1, 2), ("mesh/stopped", 0, 0)]


def found(name, namespace="mesh", ready=True, labels=None):
    gateway = service(name, namespace, labels=labels)
    return find([gateway], [deployment(name, namespace)], [Proxy(namespace, f"{name}-1", {"app": name}, ready=ready)], [])[0]


OURS = {"app.kubernetes.io/managed-by": "istio-egress", GATEWAY_LABEL: "mesh.ours"}


@pytest.mark.parametrize(("there", "expected"), [
    ([], None),
    ([found("istio-ingress"), found("gw")], None),
    ([found("egress-b"), found("egress-a")], "mesh/egress-a"),
    ([found("egress-a", ready=False), found("egress-b")], "mesh/egress-b"),
    ([found("egress-a"), found("ours", labels=OURS)], "mesh/ours"),
    ([found("egress-a"), found("egress-b", "istio-system")], "istio-system/egress-b"),
    ([found("egress-a", ready=False)], "mesh/egress-a"),
])  # fmt: skip
def test_which_gateway_is_used_when_none_was_named(there, expected):
    chosen = choose(there, "istio-system")
    assert (chosen.reference if chosen else None) == expected


# -- what is wanted -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "says"), [
    ({"name": "Egress"}, "which no Service can have"),
    ({"name": "9-egress"}, "which no Service can have"),
    ({"name": "e" * 64}, "which no Service can have"),
    ({"replicas": 0}, "use state=absent"),
    ({"drain_timeout": 1}, "less than 5"),
    ({"ports": []}, "ports is empty"),
    ({"ports": [0]}, "not a port"),
    ({"ports": [70000]}, "not a port"),
    ({"ports": [15021]}, "of the proxy itself"),
    ({"ports": [80, 8080]}, "would both lead to port 8080"),
    ({"autoscale": {"min": 3, "max": 2, "cpu": 80}}, "from 3 to 2"),
    ({"autoscale": {"min": 0, "max": 2, "cpu": 80}}, "1 <= min"),
    ({"autoscale": {"min": 1, "max": 2, "cpu": 0}}, "at 0 %"),
    ({"autoscale": {"min": 1, "max": 2, "cpu": 80}, "resources": {"requests": {"memory": "1Gi"}}}, "requests.cpu"),
    ({"resources": {"request": {"cpu": "1"}}}, "no key request"),
    ({"resources": {"requests": {"cpu": "1 core"}}}, "not a quantity"),
])  # fmt: skip
def test_what_could_never_work_is_refused(options, says):
    with pytest.raises(GatewayError, match=says.replace("(", r"\(")) as error:
        parse({**OPTIONS, **options})
    assert len(str(error.value).splitlines()) == 2


def test_ports_lead_to_ports_that_a_proxy_may_open():
    assert [target_port(p) for p in (80, 443, 5432)] == [8080, 8443, 5432]
    assert parse({**OPTIONS, "ports": [443, 80, 443]}).ports == (443, 80)


# -- the order of change ------------------------------------------------------------------------------------------------------------


def after(live, plan):
    """What is live, by kind, when the plan was carried out; with what an API server adds."""
    result = dict(live)
    for change in plan.changes:
        obj = copy.deepcopy(change.after)
        if obj and obj["kind"] == "Service":
            obj["spec"].update(clusterIP="10.0.0.1", sessionAffinity="None")
        if obj and obj["kind"] == "Deployment":
            obj["spec"].update(progressDeadlineSeconds=600)
            obj["spec"]["template"]["spec"].update(dnsPolicy="ClusterFirst", schedulerName="default-scheduler")
            container = obj["spec"]["template"]["spec"]["containers"][0]
            container.update(imagePullPolicy="IfNotPresent")
            for amounts in container["resources"].values():
                amounts.update({name: {"1000m": "1", "1024Mi": "1Gi", "0.5": "500m"}.get(amount, amount) for name, amount in amounts.items()})
        result[change.kind] = obj
    return result


def plan(live, namespace="egress", name="out", **options):
    return plan_present(namespace, name, parse({**OPTIONS, **options}), live)


def changes(plan):
    return [f"{c.action} {c.kind}" for c in plan.changes]


def test_a_new_gateway_has_all_that_it_needs():
    live = after({}, plan({}))
    assert list(live) == [kind for kind in KINDS if kind != "HorizontalPodAutoscaler"]
    spec, selector = live["Deployment"]["spec"], {GATEWAY_LABEL: "egress.out"}
    assert spec["replicas"] == DEFAULTS["replicas"] and spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert spec["selector"]["matchLabels"] == live["Service"]["spec"]["selector"] == selector
    assert selector.items() <= spec["template"]["metadata"]["labels"].items()
    assert spec["template"]["metadata"]["annotations"]["inject.istio.io/templates"] == "gateway"
    assert spec["template"]["spec"]["containers"][0]["image"] == "auto"
    assert {p["port"]: p["targetPort"] for p in live["Service"]["spec"]["ports"]} == {80: 8080, 443: 8443}
    assert live["Role"]["rules"][0]["resources"] == ["secrets"]
    assert "None" not in str({kind: o for kind, o in live.items() if kind != "Service"})


def test_only_the_gateway_in_the_usual_place_has_the_usual_label():
    """A Gateway that selects istio=egressgateway, in whatever namespace, must not find the pods of another gateway."""
    usual, other = (
        after({}, plan({}, *place))["Deployment"]["spec"]["template"]["metadata"]["labels"].get("istio")
        for place in (("istio-system", "istio-egressgateway"), ("egress", "istio-egressgateway"))
    )
    assert (usual, other) == ("egressgateway", None)


@pytest.mark.parametrize("options", [
    {}, {"replicas": 3}, {"autoscale": {"min": 2, "max": 4, "cpu": 70}}, {"ports": [80, 443, 5432]}, {"revision": "canary"}, {"read_secrets": False},
    {"resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"cpu": "1"}}}, {"resources": {}}, {"drain_timeout": 300},
], ids=str)  # fmt: skip
def test_a_second_run_writes_nothing_and_nor_does_one_without_options(options):
    live = after({}, plan({}, **options))
    again = plan(live, **options)
    assert not again and len(again.steps) == 1
    assert not plan(live)


@pytest.mark.parametrize(("before", "then", "expected"), [
    ({}, {"replicas": 5}, ["update Deployment"]),
    ({}, {"ports": [80, 443, 5432]}, ["update Deployment", "update Service"]),
    ({"ports": [80, 443, 5432]}, {"ports": [80]}, []),
    ({}, {"autoscale": {"min": 2, "max": 4, "cpu": 70}}, ["create HorizontalPodAutoscaler"]),
    ({"autoscale": {"min": 2, "max": 4, "cpu": 70}}, {"replicas": 3}, ["delete HorizontalPodAutoscaler", "update Deployment"]),
    ({"autoscale": {"min": 2, "max": 4, "cpu": 70}}, {"autoscale": {"min": 2, "max": 4, "cpu": 60}}, ["update HorizontalPodAutoscaler"]),
    ({}, {"read_secrets": False}, ["delete RoleBinding", "delete Role"]),
    ({"read_secrets": False}, {"read_secrets": True}, ["create Role", "create RoleBinding"]),
    ({}, {"revision": "canary"}, ["update Deployment"]),
    ({"revision": "canary"}, {"revision": "default"}, ["update Deployment"]),
    ({}, {"resources": {"requests": {"cpu": "100m"}}}, ["update Deployment"]),
])  # fmt: skip
def test_only_what_differs_is_written(before, then, expected):
    live = after({}, plan({}, **before))
    first = plan(live, **then)
    assert changes(first) == expected
    assert not plan(after(live, first), **then)


def test_a_revision_and_a_limit_that_are_no_longer_wanted_go():
    live = after({}, plan({}, revision="canary"))
    live = after(live, plan(live, revision="default", resources={"requests": {"cpu": "100m"}}))
    template = live["Deployment"]["spec"]["template"]
    assert "istio.io/rev" not in template["metadata"]["labels"]
    assert template["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "100m"}}


def test_what_others_added_stays():
    live = after({}, plan({}))
    template = live["Deployment"]["spec"]["template"]
    template["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] = "now"
    template["spec"]["containers"].append({"name": "log-shipper"})
    template["spec"]["containers"][0]["env"].append({"name": "THEIRS", "value": "1"})
    live["Service"]["metadata"]["annotations"] = {"theirs": "1"}
    live["Service"]["spec"]["ports"].append({"name": "tcp-5432", "port": 5432, "targetPort": 5432, "protocol": "TCP"})
    assert not plan(live)
    [change] = plan(live, replicas=7).changes
    was = copy.deepcopy(live["Deployment"])
    was["spec"]["replicas"] = 7
    assert change.after == was and live["Deployment"]["spec"]["replicas"] == DEFAULTS["replicas"]


def test_what_somebody_took_away_comes_back():
    live = after({}, plan({}))
    live["PodDisruptionBudget"] = live["Role"] = None
    live["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"] = []
    assert changes(plan(live)) == ["create Role", "update Deployment", "create PodDisruptionBudget"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "HorizontalPodAutoscaler"])
def test_an_object_of_somebody_else_is_in_the_way(kind):
    live = after({}, plan({}))
    live[kind]["metadata"]["labels"] = {"team": "net"}
    with pytest.raises(GatewayError, match=rf"{kind} egress/out(-sds)? \(owner: net\) is in the way"):
        plan(live)


def test_what_goes_is_ours_alone_and_the_service_before_what_serves_it():
    live = after({}, plan({}, replicas=1))
    live["ServiceAccount"]["metadata"]["labels"] = {}
    assert changes(plan_absent(live)) == [f"delete {k}" for k in ("PodDisruptionBudget", "Service", "Deployment", "RoleBinding", "Role")]
    assert not plan_absent({})
    live["Service"]["metadata"]["labels"] = {"install.operator.istio.io/owning-resource": "unknown"}
    with pytest.raises(GatewayError, match="installed by istioctl"):
        plan_absent(live)


def test_a_gateway_in_use_stays():
    route = Route(HostEntry("edition.cnn.com", (Port(443, "TLS"),)), "demo", "web", "egress/out", "auto")
    with pytest.raises(GatewayError, match=r'edition.cnn.com \(policy "web" of namespace demo\)'):
        check_unused("egress", "out", [route], [])
    with pytest.raises(GatewayError, match="VirtualService demo/vs"):
        check_unused("egress", "out", [], [virtual_service("out.egress.svc.cluster.local", kind="tcp")])
    delegate = virtual_service("out.egress.svc.cluster.local")
    del delegate["spec"]["hosts"], delegate["spec"]["gateways"]
    with pytest.raises(GatewayError, match=r"a delegate \(VirtualService demo/vs\)"):
        check_unused("egress", "out", [], [delegate])
    check_unused("egress", "other", [route], [virtual_service("out.egress.svc.cluster.local")])


@pytest.mark.parametrize(("settings", "says"), [
    (Settings(), ""),
    (Settings(ports=(80,), replicas=1), ""),
    (Settings(ports=(80, 5432)), "port 5432"),
    (Settings(replicas=3), "replicas 3 (it has 1)"),
    (Settings(drain_timeout=30), "drain_timeout"),
])  # fmt: skip
def test_what_somebody_elses_gateway_lacks_is_said(settings, says):
    lacking = unmet(found("egress"), settings)
    assert says in lacking and bool(lacking) == bool(says)


def test_a_long_name_still_makes_a_label():
    live = after({}, plan({}, "n" * 63, "e" * 63))
    [value] = live["Service"]["spec"]["selector"].values()
    assert len(value) <= 63
    assert isinstance(plan(live, "n" * 63, "e" * 63, replicas=9).steps[0], Change)
