"""The short-lived pod that makes requests for a workload without curl: what it has of the workload's pod, and what keeps it out of the way."""

from __future__ import annotations

from ansible_collections.meshops.istio_egress.plugins.module_utils._short_lived import pod_for

POD = {
    "metadata": {
        "name": "web-5d97-x", "namespace": "demo", "uid": "u1",
        "labels": {"app": "web", "pod-template-hash": "5d97", "security.istio.io/tlsMode": "istio"},
        "annotations": {
            "traffic.sidecar.istio.io/excludeOutboundIPRanges": "203.0.113.0/24", "sidecar.istio.io/status": "{}", "prometheus.io/scrape": "true",
        },
    },
    "spec": {"serviceAccountName": "web", "containers": [{"name": "main"}], "dnsPolicy": "ClusterFirst", "hostAliases": [], "volumes": [{"name": "data"}]},
}  # fmt: skip
MADE = pod_for(POD, "docker.io/curlimages/curl:8.16.0", "ab12")


def test_to_the_mesh_it_is_the_workload():
    assert MADE["metadata"]["labels"].items() >= {"app": "web"}.items()
    assert MADE["metadata"]["annotations"] == {"traffic.sidecar.istio.io/excludeOutboundIPRanges": "203.0.113.0/24"}
    assert MADE["spec"]["serviceAccountName"] == "web"
    assert [c["image"] for c in MADE["spec"]["containers"]] == ["docker.io/curlimages/curl:8.16.0"]


def test_no_controller_takes_it_and_no_service_sends_it_traffic():
    assert "pod-template-hash" not in MADE["metadata"]["labels"]
    assert [(o["uid"], o["controller"]) for o in MADE["metadata"]["ownerReferences"]] == [("u1", True)]
    assert MADE["spec"]["containers"][0]["readinessProbe"]["exec"]["command"] == ["false"]


def test_it_ends_by_itself_and_takes_nothing_of_the_workload_s_data():
    assert MADE["spec"]["activeDeadlineSeconds"] and MADE["spec"]["restartPolicy"] == "Never"
    assert "volumes" not in MADE["spec"]


def test_as_a_stranger_it_is_somebody_else():
    stranger = pod_for(POD, "docker.io/curlimages/curl:8.16.0", "ab12", "nobody")
    assert stranger["spec"]["serviceAccountName"] == "nobody"
    assert {**stranger["spec"], "serviceAccountName": "web"} == MADE["spec"]
