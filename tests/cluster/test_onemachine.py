"""The one-machine mesh on this very machine: it starts whatever it finds, and leaves nothing behind.

As root, after `mesh build`: pytest tests/cluster (about 3 min). Each test has meshes of its own, under names of its own, and touches no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.onemachine import machine
from cluster.onemachine.layout import LINK_FAR, Cache, Run

MESH = str(Path(__file__).with_name("mesh"))
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Mesh:
    def __init__(self, name: str) -> None:
        self.run = Run(Cache.from_environment(), name)

    def __call__(self, *words: str, ok: bool = True, stdin: str = "") -> str:
        # Reading to the end of its output shows that no daemon holds it.
        done = subprocess.run(
            [MESH, "--name", self.run.name, *words], input=stdin, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False
        )
        assert (done.returncode == 0) == ok, done.stdout
        return done.stdout

    def kubectl(self, *words: str, stdin: str = "") -> str:
        return self("exec", "kubectl", *words, stdin=stdin)

    def processes(self) -> list[int]:
        """Every process on its machine, those in containers included."""
        first, parents = machine.pid_of(self.run), {}
        for entry in Path("/proc").iterdir():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (ValueError, OSError):
                continue
        found = {first}
        while more := {p for p, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)


def traces(*names: str) -> dict[str, object]:
    """What meshes of these names could leave on the machine."""
    cache = Cache.from_environment()
    groups = [str(g) for root in machine.hierarchies() for name in names if (g := root / f"mesh-{name}").exists()]
    processes = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        processes += [entry.name for name in names if str(cache.root / "run" / name).encode() + b"/" in words + b"/" and entry.name != str(os.getpid())]
    return {
        "folders": [n for n in names if (cache.root / "run" / n).exists()],
        "cgroups": groups,
        "processes": processes,
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if any(f"/run/{n}/" in line for n in names)],
        "machine": {
            folder: sorted(p.name for p in Path(folder).glob("*"))
            for folder in ("/run/netns", "/run/containerd", "/var/log/pods", "/var/log/containers", "/var/lib/cni")
        },
    }


@pytest.fixture
def meshes() -> Iterator[tuple[Mesh, Mesh]]:
    pair = Mesh("trial-1"), Mesh("trial-2")
    for mesh in pair:
        mesh("down")
    before = traces("trial-1", "trial-2")
    yield pair
    for mesh in pair:
        mesh("down")
    assert traces("trial-1", "trial-2") == before


def config_map(mesh: Mesh, name: str) -> str:
    return mesh.kubectl("create", "configmap", name)


def test_up_and_down_twice(meshes: tuple[Mesh, Mesh]) -> None:
    mesh = meshes[0]
    assert "is up in" in mesh("up", "--api-only")
    assert "is running" in mesh("up", "--api-only")
    assert "API server alone" in mesh("up", ok=False)
    assert "Kubernetes v" in mesh("status")
    assert mesh("kubeconfig").strip() == str(mesh.run.kubeconfig)
    assert "is down" in mesh("down")
    assert "nothing to take down" in mesh("down")
    assert "not running" in mesh("status", ok=False)
    assert "mesh --name trial-1 up" in mesh("exec", "true", ok=False)


def test_istios_rules_are_in_force_without_a_node(meshes: tuple[Mesh, Mesh]) -> None:
    mesh = meshes[0]
    mesh("up", "--api-only")
    entry = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": "a"},
        "spec": {"hosts": ["a.example"], "ports": [{"number": 0, "name": "x"}]},
    }
    done = subprocess.run(
        [MESH, "--name", "trial-1", "exec", "kubectl", "create", "-f", "-"], input=json.dumps(entry), text=True, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert "ports[0].number" in done.stderr


def test_the_audit_log_shows_each_write_and_no_other(meshes: tuple[Mesh, Mesh]) -> None:
    mesh = meshes[0]
    mesh("up", "--api-only")

    def writes() -> list[tuple[str, str, str, int]]:
        events = [json.loads(line) for line in mesh.run.audit_log.read_text().splitlines()]
        changing = [e for e in events if e["verb"] in ("create", "update", "patch", "delete", "deletecollection")]
        return [(e["user"]["username"], e["verb"], e["objectRef"].get("name", ""), e["responseStatus"]["code"]) for e in changing]

    before = writes()
    config_map(mesh, "one")
    mesh.kubectl("get", "configmaps", "-A")
    subprocess.run([MESH, "--name", "trial-1", "exec", "kubectl", "create", "configmap", "one"], capture_output=True, check=False)
    seen = [w for w in writes() if w not in before and w[0] == "admin"]
    assert [(verb, code) for _user, verb, _name, code in seen] == [("create", 201), ("create", 409)]


def test_two_side_by_side_know_nothing_of_each_other(meshes: tuple[Mesh, Mesh]) -> None:
    one, two = meshes
    one("up", "--api-only")
    two("up", "--api-only")
    config_map(one, "only-here")
    assert "only-here" in one.kubectl("get", "configmaps")
    assert "only-here" not in two.kubectl("get", "configmaps")
    one("down")
    assert "default" in two.kubectl("get", "namespaces")


@pytest.mark.parametrize("victims", ["all", "first", "one component"])
def test_up_after_kill_9(meshes: tuple[Mesh, Mesh], victims: str) -> None:
    mesh = meshes[0]
    mesh("up", "--api-only")
    config_map(mesh, "from-before")
    processes = mesh.processes()
    assert len(processes) > 4
    component = [p for p in processes if Path(f"/proc/{p}/comm").read_text().strip() == "etcd"]
    for pid in {"all": processes, "first": [machine.pid_of(mesh.run)], "one component": component}[victims]:
        with contextlib.suppress(ProcessLookupError):  # it went with the first one
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)
    assert "NOT WELL" in mesh("status", ok=False)
    assert ("etcd ended" if victims == "one component" else "processes are gone") in mesh("up", "--api-only")
    assert "from-before" not in mesh.kubectl("get", "configmaps")


def test_up_after_a_start_that_was_killed_half_way(meshes: tuple[Mesh, Mesh]) -> None:
    mesh = meshes[0]
    half = subprocess.Popen([MESH, "--name", "trial-1", "up", "--api-only"], stdout=subprocess.DEVNULL)
    while not (mesh.run.pids / "kube-apiserver").exists():
        time.sleep(0.01)
    half.kill()
    half.wait()
    assert "did not come to an end" in mesh("up", "--api-only")
    assert "default" in mesh.kubectl("get", "namespaces")


def test_a_stranger_with_the_old_pid_lives_on(meshes: tuple[Mesh, Mesh]) -> None:
    mesh = meshes[0]
    mesh("up", "--api-only")
    os.kill(machine.pid_of(mesh.run) or 0, signal.SIGKILL)
    with subprocess.Popen(["sleep", "600"]) as stranger:
        mesh.run.write_state({**(mesh.run.read_state() or {}), "pid": stranger.pid})
        mesh("down")
        assert stranger.poll() is None
        stranger.kill()


def test_down_ends_what_exec_started_and_what_lost_its_folder(meshes: tuple[Mesh, Mesh]) -> None:
    mesh = meshes[0]
    mesh("up", "--api-only")
    with subprocess.Popen([MESH, "--name", "trial-1", "exec", "sleep", "600"]) as inside:
        while Path(f"/proc/{inside.pid}/comm").read_text().strip() != "sleep":
            time.sleep(0.05)
        try:
            subprocess.run(["rm", "-rf", mesh.run.root], check=True)
            mesh("down")
            assert inside.wait(10) == -signal.SIGKILL
        finally:
            inside.kill()


# ---- the whole mesh, and its far end ---------------------------------------------------------------------------------------------------

CLIENT = """
import http.client, socket, ssl, subprocess, sys
trust = ssl.create_default_context(cafile=sys.argv[1])
class Kept(http.client.HTTPSConnection):  # to an address that it is told, with the name of the host
    def connect(self):
        self.sock = trust.wrap_socket(socket.create_connection((sys.argv[2], 443)), server_hostname=self.host)
kept = Kept("httpbin.org")
for line in sys.stdin:
    kept.request("GET", "/")
    print(kept.getresponse().read().decode().strip(), kept.sock.getsockname()[1], flush=True)
"""


def ask_dns(mesh: Mesh, name: str, kind: int = 1) -> tuple[int, int]:
    """(response code, answers) of the far end's DNS."""
    packet = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0" + struct.pack(">2H", kind, 1)
    code = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(5)\n"
    code += f"s.sendto(bytes.fromhex('{packet.hex()}'), ('{LINK_FAR}', 53)); print(s.recv(4096).hex())"
    answer = bytes.fromhex(mesh("exec", "python3", "-c", code))
    return answer[3] & 15, struct.unpack(">H", answer[6:8])[0]


def get(mesh: Mesh, url: str, *options: str) -> tuple[str, int, float]:
    """(body, HTTP status, seconds) of a request from the node to a host of the far end; the status is minus curl's exit code when there is none."""
    host = url.split("/")[2].partition(":")[0]
    address = next(line.split()[1] for line in mesh("farend", "hosts").splitlines() if line.split()[0] in (host, "*." + host.partition(".")[2]))
    resolve = [word for port in (80, 443) for word in ("--resolve", f"{host}:{port}:{address}")]
    words = ["exec", "curl", "-s", "-m", "4", "--cacert", str(mesh.run.cache.far_ca), *resolve, *options, "-w", "\n%{http_code} %{exitcode} %{time_total}", url]
    done = subprocess.run([MESH, "--name", mesh.run.name, *words], text=True, capture_output=True, check=False)
    body, _newline, figures = done.stdout.rpartition("\n")
    code, failure, seconds = figures.split()
    return body, int(code) or -int(failure), float(seconds)


def test_the_far_end(meshes: tuple[Mesh, Mesh]) -> None:
    mesh = meshes[0]
    mesh("up")
    address = "203.0.113.11"
    with subprocess.Popen(
        [MESH, "--name", "trial-1", "exec", "python3", "-c", CLIENT, str(mesh.run.cache.far_ca), address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as kept:
        assert kept.stdin
        assert kept.stdout
        kept.stdin.write("\n")
        kept.stdin.flush()
        body, _space, port = kept.stdout.readline().rpartition(" ")
        told = {"host": "httpbin.org", "scheme": "https", "client": "198.51.100.1", "sni": "httpbin.org", "port": "443", "address": address, "certificate": ""}
        assert json.loads(body) == told

        mesh("farend", "hosts", "add", "db.example=203.0.113.200", "*.bulk.example")
        mesh("farend", "hosts", "add", "--file", "-", stdin="\n".join(f"h{i}.many.example" for i in range(500)))
        assert ask_dns(mesh, "h499.many.example") == (0, 1)
        assert ask_dns(mesh, "any.bulk.example") == (0, 1)
        assert ask_dns(mesh, "h499.many.example", kind=28) == (0, 0)  # no IPv6
        assert ask_dns(mesh, "h500.many.example") == (3, 0)
        assert "A h500.many.example" in mesh("farend", "queries", "--since", "30")
        for host in ("h499.many.example", "any.bulk.example", "en.wikipedia.org"):
            body, status = get(mesh, f"https://{host}/")[:2]
            assert (status, json.loads(body)["sni"]) == (200, host)
        seen = json.loads(get(mesh, "http://httpbin.org/headers", "-H", "X-Envoy-Decorator-Operation: here")[0])
        assert seen["decorator"] == seen["headers"]["X-Envoy-Decorator-Operation"] == "here"
        assert json.loads(mesh("farend", "requests", "--since", "30").splitlines()[-1])["path"] == "/headers"

        assert get(mesh, "http://edition.cnn.com/politics", "-o", "/dev/null")[1] == 301
        assert get(mesh, "https://edition.cnn.com/politics")[1] == 200
        for words, expected in ((["--status", "502"], 502), (["--refuse"], -7), (["--drop"], -28), (["--reset"], -56), (["--redirect", "/x"], 200)):
            mesh("farend", "set", "h0.many.example", *words)
            assert get(mesh, "https://h0.many.example/x")[1] == expected, words
            assert get(mesh, "https://h1.many.example/x")[1] == 200
        mesh("farend", "set", "h0.many.example", "--delay", "1.5")
        assert get(mesh, "http://h0.many.example/")[2] > 1.5
        mesh("farend", "set", "--clear")
        assert get(mesh, "http://h0.many.example/")[2] < 1.5
        mesh("farend", "hosts", "remove", "h0.many.example")
        assert ask_dns(mesh, "h0.many.example")[0] == 3

        kept.stdin.write("\n")
        kept.stdin.flush()
        assert kept.stdout.readline().rpartition(" ")[2] == port  # the same connection, through all of this
        kept.stdin.close()

    echo = "import socket; f = socket.create_connection(('203.0.113.200', 5432)).makefile('rw')\n"
    echo += "print(f.readline(), end=''); f.write('hello\\n'); f.flush(); print(f.readline())"
    first, second = mesh("exec", "python3", "-c", echo).split("\n")[:2]
    assert (json.loads(first), second) == ({"client": "198.51.100.1", "address": "203.0.113.200", "port": 5432}, "hello")

    host_port = json.loads(mesh.run.kubeconfig.read_text())["clusters"][0]["cluster"]["server"].rpartition(":")[2]
    socket.create_connection(("127.0.0.1", int(host_port)), 5).close()
    pids = [*map(str, mesh.processes())]
    assert len(pids) > 12
    subprocess.run(["kill", "-9", *pids], check=False, capture_output=True)
    deadline = time.monotonic() + 30
    while machine.pid_of(mesh.run) and time.monotonic() < deadline:  # the first of them ends after all the others
        time.sleep(0.01)
    assert "processes are gone" in mesh("up")
    assert "coredns" in mesh.kubectl("get", "pods", "-n", "kube-system")
