"""Proves that explain never lies: random configurations on a real mesh, and what explain says beside what the far end saw.

    python tests/proof/prove.py --count 300        # make proof: about a quarter of an hour
    python tests/proof/prove.py --seed 4711 --keep DIR

Each configuration is written, and when the proxies have it, they are read, the requests are made, and they are read again: where explain says another thing
then, and once where it was wrong, that is done anew. Explain gets what was read and the objects, and has to say for each request whether the far end
answers, at which address, by which cluster of the sidecar, and directly or through the gateway. The far end's own answer is the judge.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tooling import tree

sys.path.insert(0, str(tree.link()))
from ansible_collections.meshops.istio_egress.plugins.module_utils import _explain, _path, _traffic
from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._inquiry import Inquiry
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import ask, ask_for
from api.modules import ApiServer
from proof.generate import CLIENTS, Cell, Object, Scenario, Try, marker, scenario

IMAGE = "docker.io/curlimages/curl:8.16.0"
KINDS = ("ServiceEntry", "VirtualService", "DestinationRule", "Gateway", "Sidecar", "AuthorizationPolicy")
TRIES = 4
"""How often a configuration is tried that changes while it is looked at."""
TIMEOUT = 4
"""Seconds for a request."""
DRAIN = 60
"""Seconds that proxies get to end connections of a former configuration; Istio gives them 45."""
LOG_WAIT = 1.5
"""Seconds for the sidecar's log line, which is written every second; one that comes later is done without."""


@dataclass(frozen=True)
class Seen:
    """What a request really did: whether the far end answered, at which of its addresses, to which client; `cluster` is of the sidecar's log."""

    allowed: bool
    address: str = ""
    client: str = ""
    cluster: str | None = None
    said: str = ""
    late: bool = False
    """curl's time was over: on a busy machine that says nothing."""


@dataclass
class Result:
    seed: int
    tried: int = 0
    looks: int = 1
    late: int = 0
    """Requests that curl gave up each time, and of which nothing is known."""
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)


class Prover:
    """One cell on the mesh: its namespaces and pods, and the proof of one scenario after the other."""

    def __init__(self, cluster: Cluster, api: ApiServer, cell: Cell) -> None:
        self.cluster, self.api, self.cell = cluster, api, cell
        self.pods: dict[str, Object] = {}
        self.addresses: dict[str, list[str] | None] = {}

    def set_up(self) -> None:
        cell = self.cell
        for namespace in (cell.clients, cell.team, cell.gateway):
            self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {"istio-injection": "enabled"}}})
        for name, notes in CLIENTS.items():
            container = {"name": "sleep", "image": IMAGE, "command": ["sleep", "infinity"]}
            labels = {} if notes is not None else {"sidecar.istio.io/inject": "false"}
            self.api.create(_deployment(cell.clients, name, labels, notes or {}, container))
        proxy = {"name": "istio-proxy", "image": "auto"}
        labels = {"istio": cell.name, "sidecar.istio.io/inject": "true"}
        self.api.create(_deployment(cell.gateway, "gw", labels, {"inject.istio.io/templates": "gateway"}, proxy))
        ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tls", "port": 443, "targetPort": 8443}]
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "gw", "namespace": cell.gateway}}
        self.api.call("POST", f"/api/v1/namespaces/{cell.gateway}/services", {**service, "spec": {"selector": {"app": "gw"}, "ports": ports}})

    def wait(self, seconds: float = 180) -> None:
        """Until all pods are ready. A gateway without a listener is not ready by its probe, so for that one the container's start is enough."""
        deadline, wanted = time.monotonic() + seconds, {*CLIENTS, "gw"}
        while True:
            pods = {p["metadata"]["labels"]["app"]: p for n in (self.cell.clients, self.cell.gateway) for p in self.cluster.list("Pod", n)}
            up = {name for name, p in pods.items() if all(c.get("started") for c in (p["status"].get("containerStatuses") or [{}]))}
            if up >= wanted and all(_ready(pods[name]) for name in wanted):
                break
            if time.monotonic() > deadline:
                raise SystemExit(f"cell {self.cell.name}: {sorted(wanted - up)} not up after {seconds:.0f} s")
            time.sleep(0.5)
        self.pods = pods

    def tear_down(self) -> None:
        for namespace in (self.cell.clients, self.cell.team, self.cell.gateway):
            self.api.delete("Namespace", None, namespace)

    # -- one scenario ---------------------------------------------------------------------------------------------------------------

    def prove(self, seed: int, keep: Path | None = None) -> Result:
        made = scenario(seed, self.cell)
        result = Result(seed)
        self._write(made, result)
        self._follow(made)
        for attempt in range(1, TRIES + 1):
            before = self._dumps()
            seen = self._requests(made.tries)
            said, then = self._explain(made.tries, before), self._explain(made.tries, self._dumps())
            if [_core(s) for s in said] == [_core(s) for s in then]:
                result.looks = attempt
                result.wrong = self._compare(made, said, seen)
                result.late = sum(s.late and e.allowed for s, e in zip(seen, said, strict=True))
                if not result.late and (not result.wrong or attempt > 1):
                    break
                if result.wrong:
                    self._drained()
        else:
            if not result.late:
                result.wrong = result.wrong or [f"seed {seed}: the proxies do not come to rest"]
        result.tried = len(said)
        result.kinds = Counter(f"{s.verdict} {s.by or ('by gateway' if s.via != 'direct' else 'direct')}" for s in said)
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            text = {"objects": made.objects, "dumps": before, "wrong": result.wrong}
            (keep / f"{seed}.json").write_text(json.dumps(text, indent=1), encoding="utf-8")
        return result

    def _write(self, made: Scenario, result: Result) -> None:
        """The objects of a scenario instead of those of the last one."""
        spaces = (self.cell.clients, self.cell.team, self.cell.gateway)
        with ThreadPoolExecutor(8) as pool:
            old = [o for found in pool.map(lambda where: self.cluster.list(*where), [(k, n) for k in KINDS for n in spaces]) for o in found]
            list(pool.map(self.cluster.delete, old))

            def create(obj: Object) -> int:
                try:
                    self.cluster.create(obj)
                except ClusterError as error:
                    if error.status not in (400, 403, 422):
                        raise
                    return 1
                return 0

            result.refused = sum(pool.map(create, made.objects))
        for namespace in (self.cell.clients, self.cell.gateway):
            self.cluster.create(marker(self.cell, made.seed, namespace))

    def _follow(self, made: Scenario) -> None:
        deadline, name = time.monotonic() + 60, f"outbound|7||m{made.seed}.marker.test"
        proxied = [pod["metadata"] for client, pod in self.pods.items() if CLIENTS.get(client, {}) is not None]
        query = f"config_dump?resource=dynamic_active_clusters&name_regex={quote(re.escape(name))}"
        while not all(ask_for(self.cluster, pod["namespace"], pod["name"], query)[0].get("configs") for pod in proxied):
            if time.monotonic() > deadline:
                raise SystemExit(f"cell {self.cell.name}: the proxies did not follow within 60 s (seed {made.seed})")
            time.sleep(0.3)

    def _drained(self) -> None:
        """Waits until no proxy serves connections of a former configuration any more: sidecars keep theirs to the gateway open, from one to the next."""
        deadline, query = time.monotonic() + DRAIN, "stats?filter=listener_manager.total_(listeners|filter_chains)_draining"
        proxied = [pod["metadata"] for client, pod in self.pods.items() if CLIENTS.get(client, {}) is not None]
        while time.monotonic() < deadline:
            told = [ask(self.cluster, pod["namespace"], pod["name"], query)[0] for pod in proxied]
            if not any(int(line.rpartition(":")[2]) for text in told for line in text.splitlines() if ":" in line):
                return
            time.sleep(1)

    def _dumps(self) -> dict[str, Any]:
        """What every proxy of the cell has."""

        def one(name: str) -> Any:
            pod = self.pods[name]["metadata"]
            return ask_for(self.cluster, pod["namespace"], pod["name"], "config_dump?include_eds")[0]

        names = [name for name in self.pods if CLIENTS.get(name, {}) is not None]
        with ThreadPoolExecutor(len(names)) as pool:
            return dict(zip(names, pool.map(one, names), strict=True))

    def _requests(self, tries: list[Try]) -> list[Seen]:
        by_client = {client: [t for t in tries if t.client == client] for client in CLIENTS}
        with ThreadPoolExecutor(len(by_client)) as pool:
            seen = dict(zip(by_client, pool.map(self._ask, by_client, by_client.values()), strict=True))
        return [seen[t.client].pop(0) for t in tries]

    def _ask(self, client: str, tries: list[Try]) -> list[Seen]:
        if not tries:
            return []
        pod, token, started = self.pods[client]["metadata"], secrets.token_hex(8), time.monotonic()
        requests = list(_traffic.parse_requests([{"url": t.url} for t in tries]))
        shares = [requests[i::4] for i in range(4) if requests[i::4]]
        first = random.choice(_traffic.PORTS)

        def share(item: tuple[int, list[_traffic.Request]]) -> list[_traffic.Answer]:
            command = _traffic.command(item[1], TIMEOUT, True, token, first + item[0] * 40)
            _code, out, err = self.cluster.exec(pod["namespace"], pod["name"], "sleep", command, 60)
            return _traffic.parse_output(item[1], token, out, err)

        with ThreadPoolExecutor(4) as pool:
            answered = list(pool.map(share, enumerate(shares)))
        answers = [answered[i % 4][i // 4] for i in range(len(requests))]
        lines: dict[Any, Any] = {}
        wanted = [a.connection for a in answers if a.connection] if CLIENTS[client] is not None else []
        deadline = time.monotonic() + LOG_WAIT
        while wanted and time.monotonic() < deadline and not set(wanted) <= set(lines):
            log = self.cluster.log(pod["namespace"], pod["name"], "istio-proxy", since_seconds=int(time.monotonic() - started) + 3)
            lines |= _traffic.parse_log(log, wanted)
            time.sleep(0.2)
        return [_seen(answer, lines.get(answer.connection)) for answer in answers]

    def _explain(self, tries: list[Try], dumps: dict[str, Any]) -> list[_explain.Explanation]:
        proxies = {name: _path.Configuration(_path.whole(dump)) for name, dump in dumps.items()}
        gateway, inquiry = self.pods["gw"], Inquiry(self.cluster, "istio-system")
        world = inquiry.world(self.cell.clients)

        def neighbour(address: str, _namespace: str) -> _explain.Neighbour | None:
            return _explain.Neighbour(gateway, proxies["gw"]) if address == gateway["status"]["podIP"] else None

        result = []
        for request in tries:
            pod = self.pods[request.client]
            known = self.addresses.get(request.host) or inquiry.resolve(pod, "sleep", request.host)
            self.addresses[request.host] = known
            call = _path.Call(request.protocol, request.host, request.port, request.path)
            result.append(_explain.explain(call, known, pod, "sleep", proxies.get(request.client), neighbour, world))
        return result

    def _compare(self, made: Scenario, said_all: list[_explain.Explanation], seen: list[Seen]) -> list[str]:
        """A text for each request of which explain said something else than what was seen."""
        wrong, gateway = [], self.pods["gw"]["status"]["podIP"]
        for request, said, truth in zip(made.tries, said_all, seen, strict=True):
            lies = []
            if said.allowed != truth.allowed:
                lies.append(f"said {said.verdict}, was {'allowed' if truth.allowed else 'blocked'}")
            if truth.allowed and said.allowed:
                sender = gateway if said.via != "direct" else self.pods[request.client]["status"]["podIP"]
                if truth.client and truth.client != sender:
                    lies.append(f"said via {said.via}, the far end saw {truth.client}")
                if truth.address and said.address and truth.address not in (said.address, *said.addresses):  # a name that the proxy looks up itself has none
                    lies.append(f"said address {said.address}, was {truth.address}")
            if truth.cluster and truth.cluster != said.cluster:
                lies.append(f"said cluster {said.cluster}, was {truth.cluster}")
            if truth.cluster is not None and not any(h.hop == "sidecar" for h in said.path):
                lies.append("said around the sidecar, which has it in its log")
            if lies and not truth.late:
                call = _path.Call(request.protocol, request.host, request.port, request.path)
                told = "\n    ".join(_explain.picture(call, said))
                wrong.append(f"seed {made.seed}: {request.client} {request.url}: {'; '.join(lies)} ({truth.said})\n    {told}")
        return wrong


def _core(said: _explain.Explanation) -> tuple[str, ...]:
    """What is compared with what was seen; names of objects that others make meanwhile are not."""
    return said.verdict, said.by, said.via, said.address, said.cluster


def _seen(answer: _traffic.Answer, line: _traffic.LogLine | None) -> Seen:
    try:
        told = json.loads(answer.body)
    except ValueError:
        told = {}
    by_far_end = "client" in told or "The plain HTTP request was sent to HTTPS port" in answer.body
    said = f"status {answer.status}, rc {answer.rc} {answer.error or ''}" + (
        f", {line.cluster or '-'} {line.flags} {line.details}" if line else ", no log line"
    )
    return Seen(by_far_end, told.get("address", ""), told.get("client", ""), line.cluster if line else None, said, answer.gave_up and not told)


def _deployment(namespace: str, name: str, labels: dict[str, str], annotations: dict[str, str], container: Object) -> Object:
    labels = {"app": name, **labels}
    template = {"metadata": {"labels": labels, "annotations": annotations}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
    }  # fmt: skip


def _ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or ())


@contextlib.contextmanager
def cells(count: int) -> Iterator[list[Prover]]:
    """Provers with cells of their own, ready; all is gone afterwards."""
    cluster, api = Cluster({}), ApiServer()
    provers = [Prover(cluster, api, Cell(f"proof-{secrets.token_hex(2)}")) for _turn in range(count)]
    try:
        for prover in provers:
            prover.set_up()
        for prover in provers:
            prover.wait()
        yield provers
    finally:
        for prover in provers:
            prover.tear_down()


def prove(provers: list[Prover], seeds: list[int], keep: Path | None = None, tell: Any = None) -> list[Result]:
    """All seeds, each by the next cell that is free."""
    waiting, lock, results = list(seeds), threading.Lock(), []

    def work(prover: Prover) -> None:
        while True:
            with lock:
                if not waiting:
                    return
                seed = waiting.pop(0)
            result = prover.prove(seed, keep)
            with lock:
                results.append(result)
                if tell:
                    tell(result, len(results))

    with ThreadPoolExecutor(len(provers)) as pool:
        try:
            for done in [pool.submit(work, prover) for prover in provers]:
                done.result()
        finally:
            waiting.clear()  # an error, or Ctrl-C, ends the others, too
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="configurations")
    parser.add_argument("--first", type=int, default=1, help="seed of the first; the others follow")
    parser.add_argument("--seed", type=int, action="append", help="these alone")
    parser.add_argument("--cells", type=int, default=3, help="how many at the same time")
    parser.add_argument("--keep", type=Path, help="folder for objects and proxies' configurations of each")
    options = parser.parse_args()
    seeds = options.seed or list(range(options.first, options.first + options.count))
    started = time.monotonic()

    def tell(result: Result, number: int) -> None:
        print(
            f"{number}/{len(seeds)} seed {result.seed}: {result.tried} requests, {result.looks} looks, {result.late} late, {len(result.wrong)} wrong",
            flush=True,
        )
        for line in result.wrong:
            print(line, flush=True)

    with cells(min(options.cells, len(seeds))) as provers:
        print(f"{len(provers)} cells ready after {time.monotonic() - started:.0f} s", flush=True)
        results = prove(provers, seeds, options.keep, tell)
    tried, wrong = sum(r.tried for r in results), sum(len(r.wrong) for r in results)
    kinds: Counter = sum((r.kinds for r in results), Counter())
    print(", ".join(f"{kind}: {count}" for kind, count in kinds.most_common()))
    refused, seconds = sum(r.refused for r in results), time.monotonic() - started
    late = sum(r.late for r in results)
    print(
        f"{len(results)} configurations, {tried} requests, {wrong} wrong, {late} without an answer in time, {refused} objects refused by Istio, {seconds:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
