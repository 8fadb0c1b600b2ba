"""A switch to REGISTRY_ONLY and the connections that are open then: they live on for Istio's drain time, and `wait_drain` returns when they are closed."""

from __future__ import annotations

import sys
import threading
import time

from mesh.load import CONNECTIONS, Load, Stream, process_of

MODE = "istio_outbound_mode"
DRAIN_TIME = 45
"""Seconds; Istio's default (drainDuration of its ProxyConfig)."""
RATE = 2 * CONNECTIONS
"""Each connection is used every half second, so that this is how late its end is seen."""


def test_wait_drain_returns_when_the_open_connections_are_closed(workload, start, api, run_module, own_mesh, capsys):
    """Another pod of the namespace ends meanwhile."""
    ends = start(workload.namespace, "ends")
    undeclared = Stream("kept", "www.google.com", workload.curl("https://www.google.com/").address, tls=True, kept=True, rate=RATE)
    run_module(MODE, namespace=workload.namespace, mode="ALLOW_ANY")
    with Load(process_of(workload.uid), [undeclared], own_mesh.cache.far_ca, seconds=300) as load:
        while load.sent < 2 * CONNECTIONS:
            time.sleep(0.1)
            load.count()
        threading.Timer(10, api.delete, ("Pod", ends.namespace, ends.pod)).start()
        begun = load.elapsed
        result = run_module(MODE, namespace=workload.namespace, mode="REGISTRY_ONLY", wait_drain=True)
        returned = load.elapsed
        assert workload.curl("https://www.google.com/").outcome == "closed"
        time.sleep(2)
        load.finish()
    in_force = returned - result["drain_seconds"]
    closed = load.counts["kept"].reconnects[:CONNECTIONS]
    told = f"mode in force at {in_force - begun:.1f} s, closed at {', '.join(f'{at - begun:.1f}' for at in closed)}, task back at {returned - begun:.1f} s"
    with capsys.disabled():
        print(f"\n{told}; drain_seconds {result['drain_seconds']}", file=sys.stderr)
    assert DRAIN_TIME - 3 < result["drain_seconds"] < DRAIN_TIME + 10, told
    assert len(closed) == CONNECTIONS and closed[-1] < returned + 1, f"connections were open when the task came back: {told}\n{load.report()}"
    assert closed[0] > begun + DRAIN_TIME - 3, f"a connection did not live for the drain time: {told}\n{load.report()}"
