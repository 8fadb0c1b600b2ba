"""Under REGISTRY_ONLY and load, tasks on a policy lose no request to the hosts that it declares, and close no kept TLS connection to them.

200 requests a second flow to two declared hosts, over HTTP and TLS, on new and on kept connections, while tasks add, change and remove other hosts of
the same policy, and give the hosts in use another port, which moves them between ServiceEntries. The last test shows that a lost request is seen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from api.modules import Account, Relay, kubeconfig_for
from mesh.load import Load, Stream, process_of

HOST, MODE = "istio_egress_host", "istio_outbound_mode"
HTTP, TLS = "httpbin.org", "www.google.com"
IN_USE = [{"host": HTTP, "ports": [80]}, {"host": TLS, "ports": [443]}]
LEAST = 10_000
"""Requests, 50 seconds of load; the round of tasks that is under way then is finished."""
LONGEST = 600
"""Seconds after which the load ends by itself, so that no test can leave one behind."""

ROUND = [
    ("add a host to the ServiceEntry of the HTTP host", {"hosts": ["other.example.com:80"]}),
    ("add a host to the ServiceEntry of the TLS host", {"hosts": ["edition.cnn.com:443"]}),
    ("add a host with both ports", {"hosts": ["en.wikipedia.org:80,443"]}),
    ("add a wildcard", {"hosts": [{"host": "*.wikipedia.org", "ports": [80, 443]}]}),
    ("add a port that nobody has yet", {"hosts": [{"host": "www.cnn.com", "ports": ["http/8080", "tls/8443"]}]}),
    ("add a range", {"hosts": [{"host": "203.0.113.0/24", "ports": ["tcp/9000"]}]}),
    ("give another host a second port", {"hosts": ["other.example.com:80,443"]}),
    ("give the HTTP host a second port", {"hosts": [f"{HTTP}:80,443"]}),
    ("give the TLS host a second port", {"hosts": [f"{TLS}:80,443"]}),
    ("take both second ports back", {"hosts": IN_USE}),
    ("exchange the ports of two other hosts", {"hosts": ["other.example.com:443", "edition.cnn.com:80"]}),
    ("say who asked for the hosts", {"hosts": [{**entry, "owner": "team-web"} for entry in IN_USE]}),
    ("remove another host", {"hosts": ["edition.cnn.com"], "state": "absent"}),
    ("remove two kinds at once", {"hosts": ["*.wikipedia.org", "www.cnn.com"], "state": "absent"}),
    ("purge all but the hosts in use", {"hosts": IN_USE, "purge": True}),
]

LoadOn = Callable[[Iterable[Stream]], AbstractContextManager[Load]]


@pytest.fixture(scope="module")
def load_on(workload, own_mesh) -> LoadOn:
    """A load of these streams from the workload."""
    return lambda streams: Load(process_of(workload.uid), streams, own_mesh.cache.far_ca, LONGEST)


@pytest.fixture(scope="module")
def streams(workload, run_module) -> list[Stream]:
    """New and kept connections to both hosts, which are declared."""
    run_module(HOST, namespace=workload.namespace, hosts=IN_USE)
    run_module(MODE, namespace=workload.namespace, mode="REGISTRY_ONLY")
    addresses = {HTTP: workload.curl(f"http://{HTTP}/").address, TLS: workload.curl(f"https://{TLS}/").address}
    return [
        Stream(f"{'TLS' if host == TLS else 'HTTP'} {'kept' if kept else 'new'}", host, addresses[host], tls=host == TLS, kept=kept)
        for host in (HTTP, TLS)
        for kept in (False, True)
    ]


@pytest.fixture
def slow_writes(api) -> Iterator[dict[str, Any]]:
    """Arguments with which istiod sees a task's writes one by one: it takes those less than 0.1 s apart for one, which would hide a wrong order."""
    with Account(api) as account, Relay(api, lambda method, path: time.sleep(0.2 if method != "GET" else 0)) as relay:
        yield {"kubeconfig": kubeconfig_for(relay.url, None, account.token), "wait": False}


def test_tasks_on_a_policy_lose_no_request_to_its_hosts(workload, run_module, load_on, streams, slow_writes, capsys):
    with load_on(streams) as load:
        for what, arguments in ROUND:
            load.mark(f"{what}, slowly and without wait")
            assert run_module(HOST, namespace=workload.namespace, **arguments, **slow_writes)["changed"], what
        rounds = 1
        while load.sent < LEAST:
            for what, arguments in ROUND:
                load.mark(what)
                result = run_module(HOST, namespace=workload.namespace, **arguments)
                assert result["changed"] and result["verified"], (what, result)
            rounds += 1
            load.count()
        load.mark("nothing more")
        load.finish()
    with capsys.disabled():
        print(f"\nDuring {rounds} rounds of {len(ROUND)} tasks:\n{load.report()}", file=sys.stderr)
    assert load.failed == 0, load.report()
    assert load.counts["TLS kept"].reconnects == [], load.report()


def test_a_lost_request_is_seen(workload, run_module, api, load_on, streams):
    """The same move by delete and create, as a person would do it: the load counts what it costs."""
    run_module(HOST, namespace=workload.namespace, hosts=IN_USE, purge=True)
    [entry] = [o for o in api.list("ServiceEntry", workload.namespace) if HTTP in o["spec"]["hosts"]]
    again = {"apiVersion": entry["apiVersion"], "kind": "ServiceEntry", "metadata": {"name": "again", "namespace": workload.namespace}, "spec": entry["spec"]}
    with load_on([s for s in streams if s.host == HTTP]) as load:
        api.delete("ServiceEntry", workload.namespace, entry["metadata"]["name"])
        while workload.curl(f"http://{HTTP}/").status == 200:
            pass
        api.create(again)
        while workload.curl(f"http://{HTTP}/").status != 200:
            pass
        load.finish()
    api.delete("ServiceEntry", workload.namespace, "again")
    assert load.failed > 0, load.report()
    assert all(what.startswith(("status 502", "status 503")) for count in load.counts.values() for _at, what in count.failures), load.report()
