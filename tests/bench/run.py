"""500 hosts in one task beside what else a team would use for them: kubernetes.core.k8s (a loop, a list) and `kubectl apply --server-side`.

All in one run against the API server of KUBECONFIG (`make bench` starts one), each as the same account, in namespaces of their own that are deleted
afterwards. Prints Markdown to stdout and what it is doing to stderr. Every figure is measured here, and a client whose work was not done ends the run.
It judges nothing about speed but the aims that it prints: absolute times are those of one machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from api.modules import WRITES, Account, ApiServer, Object, path_of, wait_until
from tooling import tree

LOOPED = 25
OURS = "istio_egress_host"
SCENARIOS = {"create": "create", "nothing": "nothing to do", "add": "one host added"}


@dataclass(frozen=True)
class Usage:
    """What one process and all that it started took. `memory` is the peak of the largest of them, in MB; `requests` counts discovery, too."""

    seconds: float
    cpu: float
    memory: float
    requests: int
    writes: int

    def scaled(self, factor: float) -> Usage:
        return Usage(self.seconds * factor, self.cpu * factor, self.memory, round(self.requests * factor), round(self.writes * factor))

    def above(self, floor: Usage) -> Usage:
        return Usage(max(0.0, self.seconds - floor.seconds), max(0.0, self.cpu - floor.cpu), self.memory, self.requests, self.writes)

    @classmethod
    def median(cls, several: Sequence[Usage]) -> Usage:
        def middle(field: str) -> float:
            return statistics.median(getattr(usage, field) for usage in several)

        return cls(middle("seconds"), middle("cpu"), middle("memory"), round(middle("requests")), round(middle("writes")))


@dataclass(frozen=True)
class Client:
    """`command` makes the command line for a scenario's hosts in a namespace. `grouped`: it writes our objects; else an object per host."""

    name: str
    command: Callable[[Path, str, list[str], list[Object]], list[str]]
    grouped: bool = False
    playbook: bool = True
    looped: bool = False


class Bench:
    """The account, a scratch directory, and one way to measure."""

    def __init__(self, account: Account, scratch: Path) -> None:
        self._account, self._scratch = account, scratch
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(account.kubeconfig), "K8S_AUTH_KUBECONFIG": str(account.kubeconfig), "KUBECACHEDIR": str(scratch / "kubectl"),
            "ANSIBLE_COLLECTIONS_PATH": str(tree.link()), "ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
            "ANSIBLE_NOCOLOR": "true", "ANSIBLE_LOCAL_TEMP": str(scratch / "ansible"),
        }  # fmt: skip
        self._count_requests()

    def _count_requests(self) -> None:
        """Has the API server count every request of the account, discovery too (which the audit log leaves out), under a FlowSchema of its own."""
        _kind, _prefix, namespace, name = self._account.user.split(":")
        everything = {
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": True}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }
        self._account.create({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": namespace},
            "spec": {
                "priorityLevelConfiguration": {"name": "workload-low"}, "matchingPrecedence": 100, "distinguisherMethod": {"type": "ByUser"},
                "rules": [{"subjects": [{"kind": "ServiceAccount", "serviceAccount": {"name": name, "namespace": namespace}}], **everything}],
            },
        })  # fmt: skip
        self._schema, asking = namespace, ApiServer(self._account.kubeconfig)
        wait_until(lambda: bool(asking.text("/api")) and self._requests() > 0, f"FlowSchema {namespace} to be in force")

    def _requests(self) -> int:
        counter = rf'^apiserver_flowcontrol_dispatched_requests_total\{{flow_schema="{re.escape(self._schema)}".*\}} (\S+)$'
        return round(sum(float(value) for value in re.findall(counter, self._account.server.text("/metrics"), re.MULTILINE)))

    def measure(self, command: list[str]) -> Usage:
        """Runs a command to its end. Exits with its output when it fails."""
        start, before = self._account.mark(), self._requests()
        with tempfile.TemporaryFile("w+", dir=self._scratch) as output:
            begin = time.perf_counter()
            process = subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=self._scratch)
            _pid, status, used = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - begin
            process.returncode = os.waitstatus_to_exitcode(status)
            if status:
                output.seek(0)
                sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{output.read()[-3000:]}")
        requests = self._requests() - before
        writes = sum(r.verb in WRITES for r in self._account.requests_since(start))
        return Usage(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, requests, writes)

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """A new namespace, which is empty again afterwards, so that its end disturbs no later measurement."""
        name = self._account.namespace("bench")
        yield name
        self._account.server.call("DELETE", path_of("ServiceEntry", name))

    def declared(self, namespace: str) -> int:
        return sum(len(o["spec"]["hosts"]) for o in self._account.server.list("ServiceEntry", namespace))

    def objects(self, namespace: str) -> list[Object]:
        return [_plain(o) for o in self._account.server.list("ServiceEntry", namespace)]


# -- the clients --------------------------------------------------------------------------------------------------------------------


def playbook(directory: Path, task: dict[str, Any]) -> list[str]:
    """The command for a playbook with one task. JSON is YAML, and read faster than it: the same for all."""
    path = directory / "playbook.yml"
    path.write_text(json.dumps([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}]), encoding="utf-8")
    return [str(Path(sys.executable).with_name("ansible-playbook")), str(path)]


def manifest(directory: Path, objects: list[Object]) -> str:
    path = directory / "objects.yaml"
    path.write_text("\n---\n".join(map(json.dumps, objects)), encoding="utf-8")
    return str(path)


def ours(directory: Path, namespace: str, hosts: list[str], objects: list[Object]) -> list[str]:
    return playbook(directory, {"meshops.istio_egress.istio_egress_host": {"namespace": namespace, "hosts": hosts}})


def document(directory: Path, namespace: str, hosts: list[str], objects: list[Object]) -> list[str]:
    return playbook(directory, {"meshops.istio_egress.istio_egress_policy": {"namespace": namespace, "name": "bench", "policy": {"hosts": hosts}}})


def core_list(directory: Path, namespace: str, hosts: list[str], objects: list[Object]) -> list[str]:
    return playbook(directory, {"kubernetes.core.k8s": {"src": manifest(directory, objects)}})


def core_loop(directory: Path, namespace: str, hosts: list[str], objects: list[Object]) -> list[str]:
    return playbook(directory, {"kubernetes.core.k8s": {"definition": "{{ item }}"}, "loop": objects, "loop_control": {"label": "{{ item.metadata.name }}"}})


def kubectl_apply(directory: Path, namespace: str, hosts: list[str], objects: list[Object]) -> list[str]:
    program = shutil.which("kubectl", path=f"{tree.CACHE / 'bin'}:{os.environ['PATH']}")
    if not program:
        sys.exit("There is no kubectl in PATH. `tests/cluster/mesh build --api-only` makes one.")
    return [program, "apply", "--server-side", "--filename", manifest(directory, objects)]


CLIENTS = [
    Client(OURS, ours, grouped=True),
    Client("istio_egress_policy", document, grouped=True),
    Client("kubernetes.core.k8s, list", core_list),
    Client("kubernetes.core.k8s, loop", core_loop, looped=True),
    Client("kubectl apply --server-side", kubectl_apply, playbook=False),
    Client("kubernetes.core.k8s, list of our objects", core_list, grouped=True),
    Client("kubectl apply --server-side, our objects", kubectl_apply, grouped=True, playbook=False),
]


def service_entry(host: str) -> Object:
    """What a user writes for one host by hand; the same declaration as ours."""
    spec = {
        "hosts": [host], "ports": [{"number": 443, "name": "tls-443", "protocol": "TLS"}],
        "location": "MESH_EXTERNAL", "resolution": "DNS", "exportTo": ["."],
    }  # fmt: skip
    return {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": host.replace(".", "-")}, "spec": spec}


def _plain(obj: Object) -> Object:
    kept = {key: obj["metadata"][key] for key in ("name", "labels", "annotations") if key in obj["metadata"]}
    return {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": kept, "spec": obj["spec"]}


def _in(objects: list[Object], namespace: str) -> list[Object]:
    placed = copy.deepcopy(objects)
    for obj in placed:
        obj["metadata"]["namespace"] = namespace
    return placed


# -- the runs -----------------------------------------------------------------------------------------------------------------------


def names(count: int) -> list[str]:
    return [f"host-{number:05}.bench.example.com" for number in range(count)]


def grouped_objects(bench: Bench, scratch: Path, count: int) -> dict[int, list[Object]]:
    """Our own objects for `count` hosts and for one more, for the clients that are to write them."""
    result = {}
    with bench.namespace() as namespace:
        for hosts in (names(count), names(count + 1)):
            bench.measure(ours(scratch, namespace, hosts, []))
            result[len(hosts)] = bench.objects(namespace)
    return result


def measure(bench: Bench, scratch: Path, client: Client, count: int, grouped: dict[int, list[Object]]) -> tuple[dict[str, Usage], Usage | None]:
    """What each scenario takes, a playbook without what an empty one took just before; and what that empty one took.

    A loop is run for a few hosts, and scaled; another host is another turn of it, so adding one is left out.
    """
    size = min(LOOPED, count) if client.looped else count
    floor = bench.measure(playbook(scratch, {"ansible.builtin.ping": {}})) if client.playbook else None
    used: dict[str, Usage] = {}
    with bench.namespace() as namespace:
        for scenario in SCENARIOS:
            if client.looped and scenario == "add":
                continue
            hosts = names(size + (scenario == "add"))
            objects = _in(grouped[len(hosts)] if client.grouped else [service_entry(host) for host in hosts], namespace)
            usage = bench.measure(client.command(scratch, namespace, hosts, objects))
            if bench.declared(namespace) != len(hosts):
                sys.exit(f"{client.name} ended well, but {bench.declared(namespace)} of {len(hosts)} hosts are declared.")
            used[scenario] = (usage.above(floor) if floor else usage).scaled(count / size)
            print(f"{client.name}, {SCENARIOS[scenario]}: {usage.seconds:.2f} s, {usage.requests} requests", file=sys.stderr, flush=True)
    return used, floor


def measure_all(bench: Bench, scratch: Path, count: int, runs: int) -> tuple[dict[str, dict[str, Usage]], Usage]:
    """Medians by client and scenario, and that of the empty playbooks. The clients take turns, so that a busy moment of the machine meets all of them."""
    bench.measure(playbook(scratch, {"ansible.builtin.ping": {}}))  # what the first playbook alone has to load
    grouped = grouped_objects(bench, scratch, count)
    seen: dict[str, dict[str, list[Usage]]] = {client.name: defaultdict(list) for client in CLIENTS}
    floors: list[Usage] = []
    for turn in range(runs):
        for client in CLIENTS:
            if client.looped and turn:
                continue
            used, floor = measure(bench, scratch, client, count, grouped)
            for scenario, usage in used.items():
                seen[client.name][scenario].append(usage)
            floors += [floor] if floor else []
    medians = {name: {scenario: Usage.median(several) for scenario, several in by_scenario.items()} for name, by_scenario in seen.items()}
    return medians, Usage.median(floors)


def table(results: dict[str, dict[str, Usage]], floor: Usage, count: int, runs: int) -> Iterator[str]:
    yield f"{count} hosts, TLS on port 443, each declared, and exported to its own namespace alone. Medians of {runs} runs, discovery caches warm."
    yield f"Playbooks: seconds above those of an empty one ({floor.seconds:.1f} s, {floor.cpu:.1f} s CPU, {floor.memory:.0f} MB); kubectl has no such floor."
    yield f"The loop was run once, for {min(LOOPED, count)} hosts, and scaled. *Our objects*: what istio_egress_host makes was given to the other tool."
    yield "Requests include discovery; writes include those that change nothing; memory is the peak of the largest process."
    for scenario, title in SCENARIOS.items():
        base = results[OURS][scenario]
        yield ""
        yield f"| {title} | requests | writes | seconds | beside ours | CPU seconds | memory |"
        yield "|---|--:|--:|--:|--:|--:|--:|"
        for client, usage in ((name, used[scenario]) for name, used in results.items() if scenario in used):
            beside = ratio(usage, base)
            times = f"{beside:,.{0 if beside >= 10 else 1}f} ×"
            yield f"| {client} | {usage.requests} | {usage.writes} | {usage.seconds:,.2f} | {times} | {usage.cpu:,.2f} | {usage.memory:.0f} MB |"


def ratio(one: Usage, other: Usage) -> float:
    return one.seconds / other.seconds if other.seconds else float("nan")


def aims(results: dict[str, dict[str, Usage]]) -> Iterator[str]:
    mine, core, kubectl = results[OURS], results["kubernetes.core.k8s, list"], results["kubectl apply --server-side"]
    tenth, half = ratio(mine["nothing"], core["nothing"]), ratio(mine["create"], kubectl["create"])
    yield "| aim | seen | |"
    yield "|---|---|---|"
    requests, writes = mine["nothing"].requests, mine["nothing"].writes
    for aim, seen, met in [
        ("nothing to do: at most 3 requests, no write", f"{requests} and {writes}", requests <= 3 and not writes),
        ("nothing to do: under a tenth of kubernetes.core's list", f"{tenth:.3f}", tenth < 0.1),
        ("one host added: one write", str(mine["add"].writes), mine["add"].writes == 1),
        ("create: under half of kubectl's time", f"{half:.2f}", half < 0.5),
    ]:
        yield f"| {aim} | {seen} | {'met' if met else '**missed**'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host-count", type=int, default=500, help="hosts to declare (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each scenario, of which the median counts (%(default)s)")
    options = parser.parse_args()
    if not os.environ.get("KUBECONFIG"):
        sys.exit("KUBECONFIG is not set. `make bench` starts an API server and sets it.")
    with Account(ApiServer()) as account, tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        results, floor = measure_all(Bench(account, scratch), scratch, options.host_count, options.runs)
    print("\n".join([*table(results, floor, options.host_count, options.runs), "", *aims(results)]))


if __name__ == "__main__":
    main()
