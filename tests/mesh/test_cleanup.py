"""istio_egress_cleanup under load, on real proxies: what the collection made for a namespace goes, the rest stays, and no request is lost on the way.

Of a namespace: what is made for the whole mesh belongs to everybody who uses this one; taking that back is shown on an API server (tests/api).
"""

from __future__ import annotations

import sys

from mesh.conftest import scope_of
from mesh.load import Load, Stream, process_of

CLEANUP, HOST, MODE, GATEWAY, BYPASS = "istio_egress_cleanup", "istio_egress_host", "istio_outbound_mode", "istio_egress_gateway", "istio_egress_bypass"
HTTP, TLS = "httpbin.org", "www.google.com"
KINDS = ("Sidecar", "ServiceEntry", "DestinationRule", "VirtualService")
MOST_RESETS = 2
"""Connections that Envoy may reset in their handshake when it rebuilds the listener of a TLS port (docs/limits.md); most runs see none."""
LONGEST = 300
"""Seconds after which the load ends by itself."""


def ours(api, *namespaces: str) -> set[str]:
    """What has our mark, and is of these namespaces or for their clients."""
    found = set()
    for kind in KINDS:
        for obj in api.list(kind):
            metadata = obj["metadata"]
            concerned = {metadata["namespace"], scope_of(obj)} & {*namespaces}
            if concerned and metadata.get("labels", {}).get("app.kubernetes.io/managed-by") == "istio-egress":
                found.add(f"{kind}/{metadata['namespace']}/{metadata['name']}")
    return found


def test_what_was_made_for_a_namespace_goes_and_no_request_with_it(run_module, workload, namespace, start, api, own_mesh, capsys):
    mine, other = workload.namespace, namespace("beside", injection=False)
    theirs = {
        "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
        "metadata": {"name": "theirs", "namespace": mine}, "spec": {"workloadSelector": {"labels": {"app": "none"}}, "egress": [{"hosts": ["./*"]}]},
    }  # fmt: skip
    before = api.create(theirs)
    # Keeps the sidecar's listener for port 443: Envoy resets connections that are in their handshake when the last TLS host of a port goes.
    entry = {"hosts": ["other.example.com"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "DNS", "exportTo": ["."]}
    api.create({**theirs, "kind": "ServiceEntry", "spec": entry})
    run_module(HOST, namespace=other, hosts=["de.wikipedia.org"])
    beside = ours(api, other)

    run_module(HOST, namespace=mine, hosts=["en.wikipedia.org"])
    run_module(GATEWAY, namespace=mine, hosts=[f"{HTTP}:80", TLS])
    run_module(MODE, namespace=mine, mode="REGISTRY_ONLY")
    run_module(MODE, namespace=mine, selector={"app": "none"}, mode="ALLOW_ANY")
    at = {host: workload.curl(f"{scheme}://{host}/").address for scheme, host in (("http", HTTP), ("https", TLS))}
    assert workload.curl("http://edition.cnn.com/").outcome == "502"
    made = ours(api, mine)
    assert {name.partition("/")[0] for name in made} == set(KINDS)

    streams = [Stream(host, host, at[host], tls=host == TLS, kept=False) for host in (HTTP, TLS)]
    with Load(process_of(workload.uid), streams, own_mesh.cache.far_ca, LONGEST) as load:
        checked = run_module(CLEANUP, check=True, namespace=mine)
        assert ours(api, mine) == made, "check mode"
        done = run_module(CLEANUP, namespace=mine)
        load.finish()
    with capsys.disabled():
        print(f"\n{load.report()}", file=sys.stderr)
    assert checked["steps"] == done["steps"] and done["changed"]
    failures = [what for count in load.counts.values() for _at, what in count.failures]
    assert load.sent > 0 and all("reset in the handshake" in what for what in failures) and len(failures) <= MOST_RESETS, load.report()
    assert ours(api, mine) == set()
    assert api.read("Sidecar", mine, "theirs")["spec"] == before["spec"]
    assert not api.read("Sidecar", mine, "theirs")["metadata"].get("annotations")
    assert ours(api, other) == beside
    shared = api.read("Gateway", "istio-system", "egress-istio-egressgateway")
    assert bool(shared) == bool(done["kept"]), done["kept"]
    assert workload.curl("http://edition.cnn.com/").outcome == "200"
    assert workload.curl(f"http://{HTTP}/").body["client"] == workload.curl("http://edition.cnn.com/").body["client"], "still by way of the gateway"

    again = run_module(CLEANUP, namespace=mine)
    assert (again["changed"], again["steps"]) == (False, [])


def test_ranges_are_taken_back_by_a_rollout(run_module, workload, api):
    before = api.read("Deployment", workload.namespace, "sleep")["spec"]
    run_module(BYPASS, namespace=workload.namespace, workload="sleep", exclude=["203.0.113.0/24"])
    done = run_module(CLEANUP, namespace=workload.namespace)
    assert [o["kind"] for o in done["objects"]] == ["Deployment"]
    assert api.read("Deployment", workload.namespace, "sleep")["spec"] == before
