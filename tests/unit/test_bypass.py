"""Ranges around the sidecar: what is refused, what is written and taken back, what a pod has, and what ranges swallow. Tables; no cluster."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.meshops.istio_egress.plugins.module_utils import _bypass, _bypass_warnings, _rollouts, _values
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change

INCLUDE, EXCLUDE, PORTS = (s.annotation for s in _bypass.SETTINGS.values())
DEFAULT = {"include": "*", "exclude": "", "exclude_ports": ""}

PARSED = [
    # options, what Istio gets
    ({}, {}),
    ({"include": ["*"]}, {"include": "*"}),
    ({"include": ["10.96.0.0/12", "fd00::/8"]}, {"include": "10.96.0.0/12,fd00::/8"}),
    ({"exclude": ["203.0.113.9/24"]}, {"exclude": "203.0.113.9/24"}),
    ({"exclude": []}, {"exclude": ""}),
    ({"exclude": [""]}, {"exclude": ""}),
    ({"exclude": ["10.0.0.0/8, 10.0.0.0/8\n192.0.2.0/24"]}, {"exclude": "10.0.0.0/8,192.0.2.0/24"}),
    ({"exclude_ports": ["5432", "9092\n9093"]}, {"exclude_ports": "5432,9092,9093"}),
]


@pytest.mark.parametrize(("options", "texts"), PARSED, ids=str)
def test_what_istio_gets(options, texts):
    assert _bypass.parse(options) == texts


REFUSED = [
    # option, value, a part of the message
    ("include", [], "everything around the sidecar"),
    ("include", ["*", "10.0.0.0/8"], "beside other ranges"),
    ("exclude", ["*"], "everything is 0.0.0.0/0"),
    ("exclude", ["203.0.113.10"], "Write 203.0.113.10/32"),
    ("exclude", ["2001:db8::1"], "Write 2001:db8::1/128"),
    ("include", ["10.0.0.0/255.0.0.0"], "no length that Istio takes"),
    ("include", ["10.0.0.0/08"], "no length that Istio takes"),
    ("include", ["10.0.0.0/33"], "from 0 to 32"),
    ("include", ["10.00.0.0/8"], "not an IP range"),
    ("exclude", ["fe80::1%eth0/64"], "not an IP range"),
    ("exclude", ["www.google.com"], "cannot be led around the sidecar by name"),
    ("exclude_ports", ["0"], "from 1 to 65535"),
    ("exclude_ports", ["65536"], "from 1 to 65535"),
    ("exclude_ports", ["9000-9010"], "no ranges of ports"),
    ("exclude_ports", ["*"], "not a port"),
]


@pytest.mark.parametrize(("option", "value", "words"), REFUSED, ids=str)
def test_what_istio_would_refuse_is_refused_in_two_lines(option, value, words):
    with pytest.raises(_bypass.BypassError) as refused:
        _bypass.parse({option: value})
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "workload"),
    [("web", ("Deployment", "web")), ("sts/db", ("StatefulSet", "db")), ("DaemonSet/x", ("DaemonSet", "x")), ("deployment.apps/web", ("Deployment", "web"))],
)
def test_workloads(text, workload):
    assert _bypass.parse_workload(text) == workload


@pytest.mark.parametrize("text", ["", "pod/web", "job/x", "deployment/", "a/b/c"])
def test_what_has_no_pod_template_is_refused(text):
    with pytest.raises(_bypass.BypassError, match="does not name a workload with a pod template"):
        _bypass.parse_workload(text)


# -- a workload ---------------------------------------------------------------------------------------------------------------------


def deployment(template=None, own=None):
    metadata = {"name": "web", "namespace": "demo", "resourceVersion": "7", **({"annotations": own} if own else {})}
    pods = {"labels": {"app": "web"}, **({"annotations": template} if template else {})}
    return {"kind": "Deployment", "metadata": metadata, "spec": {"template": {"metadata": pods}}}


def set_on(workload, **options):
    """The workload after the module's task."""
    plan = _bypass.plan_workload(workload, _bypass.parse(options), DEFAULT)
    return plan.changes[-1].after if plan else workload


def taken_back(workload):
    plan = _bypass.plan_workload(workload, None, DEFAULT)
    return plan.changes[-1].after if plan else workload


TEMPLATES = [None, {"prometheus.io/scrape": "true"}, {EXCLUDE: "10.1.0.0/16"}, {INCLUDE: "*", EXCLUDE: ""}]
STEPS = [[{"exclude": ["192.0.2.0/24"]}], [{"include": ["10.0.0.0/8"]}, {"exclude": ["192.0.2.0/24"], "exclude_ports": ["25"]}]]


@pytest.mark.parametrize("template", TEMPLATES, ids=str)
@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_absent_leaves_no_trace(template, steps):
    before = deployment(template)
    after = copy.deepcopy(before)
    for options in steps:
        after = set_on(after, **options)
    assert after != before
    assert taken_back(after) == before


def test_what_is_not_given_any_more_is_as_it_was_before():
    first = set_on(deployment({EXCLUDE: "10.1.0.0/16"}), exclude=["192.0.2.0/24"])
    second = set_on(first, include=["10.0.0.0/8"])
    assert second["spec"]["template"]["metadata"]["annotations"] == {INCLUDE: "10.0.0.0/8", EXCLUDE: "10.1.0.0/16"}


def test_the_same_again_writes_nothing_and_a_look_writes_nothing():
    workload = set_on(deployment(), exclude=["192.0.2.0/24"])
    assert not _bypass.plan_workload(workload, _bypass.parse({"exclude": ["192.0.2.0/24"]}), DEFAULT)
    assert not _bypass.plan_workload(workload, {}, DEFAULT)


def test_what_somebody_changed_since_is_theirs():
    workload = set_on(deployment(), exclude=["192.0.2.0/24"], include=["10.0.0.0/8"])
    workload["spec"]["template"]["metadata"]["annotations"][EXCLUDE] = "198.51.100.0/24"
    assert taken_back(workload)["spec"]["template"]["metadata"]["annotations"] == {EXCLUDE: "198.51.100.0/24"}


@pytest.mark.parametrize("theirs", [{}, {"a/b": "1"}], ids=["no annotation", "theirs"])
def test_nothing_but_our_annotations_is_written_one_way_and_the_other(theirs):
    live = deployment(theirs)
    [change] = _bypass.plan_workload(live, _bypass.parse({"exclude": ["192.0.2.0/24"]}), DEFAULT).changes
    record = change.after["metadata"]["annotations"][_bypass.BEFORE_ANNOTATION]

    def patch(text, record):
        return {"spec": {"template": {"metadata": {"annotations": {EXCLUDE: text}}}}, "metadata": {"annotations": {_bypass.BEFORE_ANNOTATION: record}}}

    assert (change.partial, change.patch) == (True, patch("192.0.2.0/24", record))
    assert Change(change.after, live).patch == patch(None, None)


# -- the mesh's default -------------------------------------------------------------------------------------------------------------

PROXY = '"proxy": {\n      "excludeIPRanges": "",\n      "includeIPRanges": "*"\n    }'
VALUES = {
    "chart": '{\n  "global": {\n    "tag": "1.31.1",\n    ' + PROXY + '\n  },\n  "revision": ""\n}',
    "one line": '{"global":{"proxy":{"excludeIPRanges":"","includeIPRanges":"*","image":"x"}}}',
    "none": '{"global": {"proxy": {}}}',
    "other keys": '{"x": [1, {"proxy": 2}], "global": {"proxy": {"a": "}\\"{", "b": {}}}}\n',
    "empty with space": '{ "global" : { "proxy" : { } } }',
}


def injector(text):
    return {"kind": "ConfigMap", "metadata": {"name": "istio-sidecar-injector", "namespace": "istio-system", "resourceVersion": "3"}, "data": {"values": text}}


@pytest.mark.parametrize("text", VALUES.values(), ids=VALUES.keys())
def test_only_the_keys_change_and_every_byte_comes_back(text):
    before = injector(text)
    wanted = {"exclude": "192.0.2.0/24", "include": "10.0.0.0/8"}
    [change] = _bypass.plan_mesh(before, wanted).changes
    changed, expected = json.loads(change.after["data"]["values"]), json.loads(text)
    expected["global"]["proxy"] |= {"excludeIPRanges": "192.0.2.0/24", "includeIPRanges": "10.0.0.0/8"}
    assert changed == expected
    assert not _bypass.plan_mesh(change.after, wanted)
    [back] = _bypass.plan_mesh(change.after, None).changes
    assert back.after == before


def test_a_pretty_text_stays_pretty():
    assert _values.write(VALUES["chart"], "excludeIPRanges", "x") == VALUES["chart"].replace('"excludeIPRanges": ""', '"excludeIPRanges": "x"')
    text = _values.write(VALUES["chart"], "excludeOutboundPorts", "25")
    assert text == VALUES["chart"].replace('"proxy": {\n      ', '"proxy": {\n      "excludeOutboundPorts": "25",\n      ')


@pytest.mark.parametrize(
    ("text", "words"),
    [("global:\n  proxy: {}\n", "are not JSON"), ("{}", "no global.proxy"), ('{"global": {"proxy": 1}}', "no global.proxy"), ("[]", "no global.proxy")],
)
def test_values_that_are_something_else_are_refused(text, words):
    with pytest.raises(_values.ValuesError, match=words):
        _bypass.plan_mesh(injector(text), {"exclude": "192.0.2.0/24"})


def test_a_value_that_is_no_string_is_refused():
    with pytest.raises(_values.ValuesError, match="is 3, which is no string"):
        _values.read('{"global": {"proxy": {"excludeIPRanges": 3}}}', "excludeIPRanges")


PLAIN = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(st.dictionaries(st.text(), PLAIN), st.dictionaries(st.text(), PLAIN), st.sampled_from([None, 1, "\t"]), st.text())
def test_any_values(outer, proxy, indent, value):
    proxy.pop("excludeIPRanges", None)
    text = json.dumps({**outer, "global": {"x": outer, "proxy": proxy}}, indent=indent, ensure_ascii=False)
    changed = _values.write(text, "excludeIPRanges", value)
    assert _values.read(changed, "excludeIPRanges") == value
    assert json.loads(changed) == {**outer, "global": {"x": outer, "proxy": {**proxy, "excludeIPRanges": value}}}
    assert _values.write(changed, "excludeIPRanges", None) == text


# -- running pods -------------------------------------------------------------------------------------------------------------------


def pod(arguments=None, name="istio-init", sidecar=True, **metadata):
    containers = [{"name": "app"}, *([{"name": "istio-proxy"}] if sidecar else [])]
    init = [{"name": name, "args": ["istio-iptables", "-p", "15001", *arguments]}] if arguments is not None else []
    return {"metadata": {"name": "p", "namespace": "demo", **metadata}, "spec": {"containers": containers, "initContainers": init}}


@pytest.mark.parametrize(
    ("running", "reason"),
    [
        (pod(["-i", "*", "-x", "192.0.2.0/24,10.0.0.0/8", "-b", "*"]), ""),
        (pod(["-i", "*", "-x", "10.0.0.0/8,192.0.2.0/24"], name="istio-validation"), ""),
        (pod(["-i", "*", "-x", "", "-b", "*"]), "was started with exclude nothing"),
        (pod(["-i", "10.0.0.0/8", "-x", "", "-o", "25"]), "was started with include 10.0.0.0/8 and exclude nothing and exclude_ports 25"),
        (pod(["-i", "*", "-x", ""], deletionTimestamp="x"), "was started with exclude nothing, until it has ended"),
        (pod(["-i", "", "-x", ""]), ""),
        (pod(), ""),
        (pod(sidecar=False), ""),
    ],
)
def test_which_running_pods_are_captured_otherwise(running, reason):
    assert _bypass.differs(running, {"include": "*", "exclude": "10.0.0.0/8,192.0.2.0/24", "exclude_ports": ""}) == reason


def test_what_is_not_known_is_not_held_against_a_pod():
    assert _bypass.differs(pod(["-i", "*", "-x", "1.0.0.0/8"]), {"include": None, "exclude": "1.0.0.0/8", "exclude_ports": None}) == ""


CLUSTER = [("the API server", "10.96.0.1"), ("Service demo/web", "10.96.7.7"), ("pod demo/web", "10.244.0.9"), ("Service demo/web", "fd00::7")]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"exclude": "203.0.113.0/24"}, []),
        ({"exclude": "10.96.0.0/16"}, ["the API server 10.96.0.1", "Service demo/web 10.96.7.7"]),
        ({"exclude": "10.96.0.1/12"}, ["the API server 10.96.0.1", "Service demo/web 10.96.7.7"]),
        ({"include": "10.96.0.0/16,fd00::/8"}, ["pod demo/web 10.244.0.9"]),
        ({"include": "10.0.0.0/8,fd00::/8"}, []),
        ({"include": "10.0.0.0/8,fd00::/8", "exclude": "10.244.0.0/24"}, ["pod demo/web 10.244.0.9"]),
        ({"exclude": "0.0.0.0/0"}, ["the API server 10.96.0.1", "Service demo/web 10.96.7.7", "pod demo/web 10.244.0.9"]),
        ({"include": None, "exclude": None}, []),
    ],
    ids=str,
)
def test_what_ranges_swallow(texts, expected):
    assert _bypass_warnings.swallowed({**DEFAULT, **texts}, CLUSTER) == expected


def test_what_a_cluster_answers_at():
    services = [
        {"metadata": {"namespace": "default", "name": "kubernetes"}, "spec": {"clusterIP": "10.96.0.1"}},
        {"metadata": {"namespace": "demo", "name": "web"}, "spec": {"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7", "fd00::7"]}},
        {"metadata": {"namespace": "demo", "name": "headless"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}},
    ]
    pods = [{**pod(), "status": {"podIP": "10.244.0.9"}}, pod()]
    found = [("the API server", "10.96.0.1"), ("Service demo/web", "10.96.7.7"), ("Service demo/web", "fd00::7"), ("pod demo/p", "10.244.0.9")]
    assert list(_bypass_warnings.addresses_of(services, pods)) == found


@pytest.mark.parametrize(
    ("metadata", "manager"),
    [
        ({}, None),
        ({"annotations": {"meta.helm.sh/release-name": "shop"}}, "Helm release shop"),
        ({"annotations": {"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:demo/web"}}, "Argo CD shop"),
        ({"labels": {"kustomize.toolkit.fluxcd.io/name": "apps"}}, "Flux Kustomization apps"),
        ({"ownerReferences": [{"kind": "Keycloak", "name": "sso", "controller": True}]}, "Keycloak sso"),
        ({"ownerReferences": [{"kind": "Keycloak", "name": "sso"}]}, None),
    ],
    ids=str,
)
def test_who_else_writes_a_workload(metadata, manager):
    assert (_bypass_warnings.manager_of({"metadata": metadata}) or [None])[0] == manager


# -- rollouts -----------------------------------------------------------------------------------------------------------------------


def workload(kind, generation=2, spec=None, **status):
    return {"kind": kind, "metadata": {"generation": generation}, "spec": spec or {}, "status": {"observedGeneration": 2, **status}}


@pytest.mark.parametrize(
    ("obj", "missing"),
    [
        (workload("Deployment", 3), "its controller has not seen the change yet"),
        (workload("Deployment", spec={"replicas": 2}, replicas=3, updatedReplicas=1, availableReplicas=2), "1 of 2 new pods are there"),
        (workload("Deployment", spec={"replicas": 2}, replicas=3, updatedReplicas=2, availableReplicas=2), "the new pods are not all ready, 1 of before go on"),
        (workload("Deployment", spec={"replicas": 2}, replicas=2, updatedReplicas=2, availableReplicas=2), ""),
        (workload("Deployment", spec={"replicas": 0}), ""),
        (workload("StatefulSet", replicas=1, updatedReplicas=0, availableReplicas=1, currentRevision="a", updateRevision="b"), "0 of 1 new pods are there"),
        (workload("StatefulSet", replicas=1, availableReplicas=1, currentRevision="b", updateRevision="b"), ""),
        (workload("DaemonSet", desiredNumberScheduled=3, updatedNumberScheduled=3, numberAvailable=2), "2 of 3 pods are ready"),
        (workload("DaemonSet", desiredNumberScheduled=3, updatedNumberScheduled=3, numberAvailable=3), ""),
    ],
)
def test_when_a_rollout_is_through(obj, missing):
    assert _rollouts.unfinished(obj) == missing


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, ""),
        ({"paused": True}, "is paused"),
        ({"updateStrategy": {"type": "OnDelete"}}, "OnDelete"),
        ({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}, "partition 2"),
        ({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}, ""),
    ],
    ids=str,
)
def test_when_new_pods_do_not_come_by_themselves(spec, words):
    reason = _rollouts.by_hand({"spec": spec})
    assert words in reason and bool(reason) == bool(words)


def test_the_selector_of_a_workload():
    rules = [{"key": "a", "operator": "In", "values": ["1", "2"]}, {"key": "b", "operator": "Exists"}, {"key": "c", "operator": "DoesNotExist"}]
    assert _rollouts.selector({"spec": {"selector": {"matchLabels": {"app": "web"}, "matchExpressions": rules}}}) == "app=web,a in (1,2),b,!c"
