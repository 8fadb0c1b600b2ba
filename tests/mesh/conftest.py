"""What every test on a real mesh needs: namespaces and workloads of its own in the cluster of KUBECONFIG, and modules run as Ansible runs them.

It writes nothing outside the namespaces that it made, so it may be pointed at any cluster with Istio. It knows nothing of what the modules do.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster
from api.modules import PACKAGE, ApiServer, Result, _Forks
from cluster.onemachine.layout import Cache, Run, runs

MESH = Path(__file__).resolve().parents[1] / "cluster" / "mesh"
IMAGE = "docker.io/curlimages/curl:8.16.0"
READY_WITHIN = 180
"""Seconds for a pod to start, on a machine that is busy with other tests."""

LANES = (
    ("test_drain",), ("test_follow",),  # these wait more than they work, so they are first, with make test's linters and unit tests beside them
    # share the mesh's own gateway, and hosts behind it
    ("test_gateway_playbooks", "test_gateway", "test_gateway_no_lost_request", "test_policy", "test_cleanup"),
    ("test_playbooks",), ("test_scenarios",), ("test_awx",), ("test_lock_down",),
    ("test_enforce",), ("test_gateway_deploy",), ("test_no_lost_request",),
)  # fmt: skip
"""Files whose tests run one after the other in one process, `make mesh` has several; most work first. A file that is not named is a lane of its own."""

RunModule = Callable[..., Result]
NewNamespace = Callable[..., str]
StartWorkload = Callable[..., "Workload"]


@dataclass(frozen=True)
class Answer:
    """What curl in a workload got. `outcome` is the HTTP status, else ``closed``; `address` the one that was dialled; `body` JSON of the far end."""

    exit: int
    status: int
    address: str
    text: str

    @property
    def outcome(self) -> str:
        return str(self.status) if self.status else "closed"

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.text)


@dataclass(frozen=True)
class Workload:
    """A pod with curl, and with a sidecar where its namespace asks for one."""

    namespace: str
    pod: str
    uid: str
    cluster: Cluster

    def curl(self, url: str, *options: str) -> Answer:
        """One request on a connection of its own."""
        command = ["curl", "-s", "-m", "10", "-w", r"\n%{http_code} %{remote_ip}", *options, url]
        code, out, _err = self.cluster.exec(self.namespace, self.pod, "sleep", command)
        text, _newline, told = out.rpartition("\n")
        status, _space, address = told.partition(" ")
        return Answer(code, int(status), address, text)

    def greeting(self, address: str, port: int) -> dict[str, Any] | None:
        """What the far end's TCP echo says first, ``{"client", "address", "port"}``; None when the connection was closed without it."""
        _code, out, _err = self.cluster.exec(self.namespace, self.pod, "sleep", ["curl", "-s", "-m", "1", f"telnet://{address}:{port}"])
        return json.loads(out) if out.strip() else None

    def echoed(self, address: str, port: int) -> bool:
        """Whether the far end's TCP echo sends back what it is sent. It speaks first, and is heard until a proxy looks at the caller's first bytes."""
        script = f"(echo there; sleep 1) | curl -s -m 3 telnet://{address}:{port}"
        return "there" in self.cluster.exec(self.namespace, self.pod, "sleep", ["sh", "-c", script])[1]


def scope_of(obj: dict[str, Any]) -> str | None:
    """The namespace whose clients an object beside a gateway is for: a label, or an annotation where labels have to be equal."""
    metadata = obj["metadata"]
    return {**metadata.get("annotations", {}), **metadata.get("labels", {})}.get("istio-egress.meshops.io/scope")


def lane_of(path: str) -> tuple[int, str]:
    """The place in LANES of a file's tests, and what tells lanes apart."""
    name = Path(path).stem
    number = next((n for n, names in enumerate(LANES) if name in names), len(LANES))
    return number, name if number == len(LANES) else str(number)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: lane_of(item.path.name)[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return lane_of(nodeid.partition("::")[0])[1]

    return Lanes(config, log)


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set: run make mesh, or set it to a cluster with Istio")
    return Path(os.environ["KUBECONFIG"])


@pytest.fixture(scope="session")
def own_mesh(kubeconfig: Path) -> Run:
    """The one-machine mesh of KUBECONFIG, for tests that need its far end or its processes."""
    cache = Cache.from_environment()
    found = [run for run in (Run(cache, name) for name in runs(cache)) if run.kubeconfig == kubeconfig.absolute()]
    if not found or os.geteuid() != 0:
        pytest.skip("needs the one-machine mesh and root: run make mesh as root and without KUBECONFIG")
    return found[0]


@pytest.fixture(scope="session")
def far_end(own_mesh: Run) -> Callable[..., None]:
    """`far_end("set", HOST, "--status", "502")`: the command `mesh farend` for the mesh in use."""

    def run(*arguments: str) -> None:
        subprocess.run([MESH, "farend", "--name", own_mesh.name, *arguments], check=True, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def cluster(kubeconfig: Path) -> Cluster:
    return Cluster({"kubeconfig": str(kubeconfig)})


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> ApiServer:
    """The API server as its administrator has it, for what the collection's own Cluster does not do: namespaces, rights, other owners' objects."""
    return ApiServer(kubeconfig)


@pytest.fixture(scope="session")
def run_module(kubeconfig: Path) -> RunModule:
    """`run_module(NAME, check=False, fails=False, **arguments)`: the module's result. One that fails although it should not ends the test, and vice versa."""
    path = next(p for p in sys.path if (Path(p) / "ansible_collections" / "meshops" / "istio_egress").exists())

    def run(name: str, /, check: bool = False, fails: bool = False, **arguments: Any) -> Result:
        request = {
            "module": f"{PACKAGE}.{name}",
            "path": path,
            "arguments": {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_module_name": name, "_ansible_check_mode": check, "_ansible_diff": False}},
            "environment": {**os.environ, "K8S_AUTH_KUBECONFIG": str(kubeconfig)},
        }
        answer = _Forks.shared().run(request)
        try:
            result = Result(json.loads(answer["out"]), [])
        except ValueError:
            raise AssertionError(f"{name} did not answer with JSON (code {answer['code']}):\n{answer['out']}\n{answer['err']}") from None
        assert bool(result.get("failed")) == fails, result.msg or result
        return result

    return run


@pytest.fixture(scope="module")
def namespace(api: ApiServer) -> Iterator[NewNamespace]:
    """`namespace(PURPOSE, injection=True)`: the name of a new namespace, whose pods get a sidecar. It goes after the last test of the file."""
    made: list[str] = []

    def new(purpose: str, injection: bool = True) -> str:
        name = f"{purpose}-{secrets.token_hex(3)}"
        labels = {"istio-injection": "enabled"} if injection else {}
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        made.append(name)
        return name

    yield new
    for name in made:
        api.delete("Namespace", None, name)


@pytest.fixture(scope="module")
def start(api: ApiServer, cluster: Cluster) -> StartWorkload:
    """`start(NAMESPACE, name="sleep", annotations={}, ready=True)`: a workload in a namespace; `ready` waits until it is."""

    def new(namespace: str, name: str = "sleep", annotations: dict[str, str] | None = None, ready: bool = True) -> Workload:
        labels = {"app": name}
        container = {"name": "sleep", "image": IMAGE, "command": ["sleep", "infinity"]}
        api.create({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels, "annotations": annotations or {}},
                    "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
                },
            },
        })  # fmt: skip
        deadline = time.monotonic() + READY_WITHIN
        while True:
            pods = [p for p in cluster.list("Pod", namespace, labels=f"app={name}") if not ready or _is_ready(p)]
            if pods:
                return Workload(namespace, pods[0]["metadata"]["name"], pods[0]["metadata"]["uid"], cluster)
            assert time.monotonic() < deadline, f"{namespace}/{name} has no ready pod after {READY_WITHIN} s; look at kubectl -n {namespace} describe pods"
            time.sleep(0.5)

    return new


@pytest.fixture(scope="module")
def workload(request: pytest.FixtureRequest, namespace: NewNamespace, start: StartWorkload) -> Workload:
    """A workload with a sidecar, in a namespace that the tests of the file share."""
    return start(namespace(request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")))


def _is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", []))
