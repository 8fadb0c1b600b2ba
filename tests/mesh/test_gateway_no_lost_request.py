"""Under REGISTRY_ONLY and load, hosts move to an egress gateway, between its hops and back, and no request is lost.

200 requests a second flow to the hosts that move, over HTTP and TLS, on new and on kept connections, and some more to a host beside them whose kept
TLS connections must stay. Those of a host that moves end by Envoy's drain, 45 seconds later: the one request that is on its way on such a connection
when it ends is sent again by any HTTP client, and is not counted as lost.
"""

from __future__ import annotations

from mesh.load import Load, Stream, process_of

HOST, MODE, GATEWAY = "istio_egress_host", "istio_outbound_mode", "istio_egress_gateway"
HTTP, TLS, BESIDE = "httpbin.org", "www.google.com", "edition.cnn.com"
MOVING = [{"host": HTTP, "ports": [80]}, {"host": TLS, "ports": [443]}]
LEAST = 10_000
LONGEST = 900
"""Seconds after which the load ends by itself, so that no test can leave one behind."""

ROUND = [
    ("direct to gateway", {"hosts": MOVING}),
    ("another host to the gateway", {"hosts": ["other.example.com:80,443"]}),
    ("hop plain", {"hosts": MOVING, "hop": "plain"}),
    ("hop mutual", {"hosts": MOVING, "hop": "mutual_tls"}),
    ("one host alone back to plain", {"hosts": MOVING[1:], "hop": "plain"}),
    ("gateway to direct", {"state": "absent", "purge": True}),
]


def test_hosts_move_to_a_gateway_and_back_without_a_lost_request(workload, run_module, own_mesh, capsys):
    run_module(HOST, namespace=workload.namespace, hosts=[*MOVING, BESIDE])
    run_module(MODE, namespace=workload.namespace, mode="REGISTRY_ONLY")
    at = {host: workload.curl(f"{scheme}://{host}/").address for scheme, host in (("http", HTTP), ("https", TLS), ("https", BESIDE))}
    own = workload.curl(f"http://{HTTP}/").body["client"]
    streams = [
        Stream(f"{'TLS' if host == TLS else 'HTTP'} {'kept' if kept else 'new'}", host, at[host], tls=host == TLS, kept=kept)
        for host in (HTTP, TLS)
        for kept in (False, True)
    ]
    streams.append(Stream("TLS kept beside", BESIDE, at[BESIDE], tls=True, kept=True, rate=10))
    with Load(process_of(workload.uid), streams, own_mesh.cache.far_ca, LONGEST) as load:
        rounds = 0
        while load.sent < LEAST:
            for what, arguments in ROUND:
                load.mark(what)
                result = run_module(GATEWAY, namespace=workload.namespace, **arguments)
                assert result["changed"] and result["verified"], (what, result)
                through = workload.curl(f"http://{HTTP}/").body["client"]
                assert (through == own) == (what == "gateway to direct"), (what, through)
            rounds += 1
            load.count()
        load.mark("nothing more")
        load.finish()
    with capsys.disabled():
        print(f"\nDuring {rounds} rounds of {len(ROUND)} tasks:\n{load.report()}")
    drained = load.counts.pop("TLS kept")
    assert all(what.startswith(("connection closed before", "connection broken before")) for _at, what in drained.failures), drained
    assert drained.failed <= len(drained.reconnects), drained
    assert sum(count.failed for count in load.counts.values()) == 0, load.report()
    assert load.counts["TLS kept beside"].reconnects == [], load.report()
