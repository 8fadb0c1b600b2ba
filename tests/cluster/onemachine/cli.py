"""The commands of `mesh`: what they take, what they print, and in which order they call the rest."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from . import build, control_plane, farend, health, istio, machine, network, node, preflight
from .layout import Cache, MeshError, Run


class Stages:
    """One line for each stage that is through, with its seconds."""

    def __init__(self) -> None:
        self.first = self.last = time.monotonic()

    def done(self, what: str) -> None:
        now = time.monotonic()
        print(f"  {what:<28} {now - self.last:5.1f} s", flush=True)
        self.last = now

    @property
    def total(self) -> float:
        return time.monotonic() - self.first


# ---- commands --------------------------------------------------------------------------------------------------------------------------


def build_command(run: Run, args: argparse.Namespace) -> None:
    preflight.check(run, api_only=args.api_only, starting=False)
    if not build.build(run.cache, api_only=args.api_only):
        print(f"everything is built: {run.cache.root}")


def up_command(run: Run, args: argparse.Namespace) -> None:
    with machine.lock(run.name):
        state = run.read_state()
        bad = health.troubles(run) if run.root.exists() else ["not started"]
        if not bad and state and state["api_only"] != args.api_only:
            raise MeshError(
                f"{run.name} is running as {'an API server alone' if state['api_only'] else 'a whole mesh'}: "
                f"take it down (mesh --name {run.name} down) or choose another --name"
            )
        if not bad:
            print(f"{run.name} is running: export KUBECONFIG={run.kubeconfig}")
        else:
            _start(run, args.api_only, bad if run.root.exists() else [])
    if args.istio:
        istio_command(run, args)


def _start(run: Run, api_only: bool, left: list[str]) -> None:
    preflight.check(run, api_only=api_only, starting=True)
    if build.build(run.cache, api_only=api_only):  # which may have installed what some checks need
        preflight.check(run, api_only=api_only, starting=True)
    stages = Stages()
    if left:
        print(f"{run.name} is left from before, but {'; '.join(left)}. It is started anew.")
    machine.end(run)
    with control_plane.listen_outside() as listener:
        machine.start(run, {"port": listener.getsockname()[1], "api_only": api_only})
        machine.inside(run, "up", str(listener.fileno()), pass_fds=(listener.fileno(),))
    run.write_state({**(run.read_state() or {}), "ready": True})
    print(f"{run.name} is up in {stages.total:.1f} s: export KUBECONFIG={run.kubeconfig}")


def istio_command(run: Run, args: argparse.Namespace) -> None:
    with machine.lock(run.name):
        state = _running(run)
        if state["api_only"]:
            raise MeshError(f"{run.name} is an API server alone, with Istio's CRDs: Istio needs a node, as mesh --name OTHER up gives")
        stages = Stages()
        if istio.installed(run):
            print(f"Istio is installed on {run.name}")
            return
        istio.install(run)
        stages.done("istiod, egress gateway")


def down_command(run: Run, args: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise MeshError("this needs root, as up did")
    with machine.lock(run.name):
        found = machine.end(run)
    print(f"{run.name} is down" if found else f"{run.name} is not there: nothing to take down")


def status_command(run: Run, args: argparse.Namespace) -> int:
    rows, well = health.report(run)
    for what, how in rows:
        print(f"{what:<12} {how}")
    return 0 if well else 1


def kubeconfig_command(run: Run, args: argparse.Namespace) -> None:
    _running(run)
    print(run.kubeconfig)


def exec_command(run: Run, args: argparse.Namespace) -> None:
    command = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not command:
        raise MeshError("exec: which command? For example: mesh exec kubectl get pods -A")
    _running(run)
    words = machine.enter(machine.pid_of(run) or 0, network_only=True) + command
    path = f"{run.cache.bin}:{os.environ.get('PATH', '')}"
    os.execvpe(words[0], words, {**os.environ, "PATH": path, "KUBECONFIG": str(run.kubeconfig), machine.MARK: str(run.root)})


def logs_command(run: Run, args: argparse.Namespace) -> None:
    there = sorted(f.stem for f in run.log.glob("*.log")) if run.log.is_dir() else []
    if not there:
        raise MeshError(f"{run.name} has no logs: it is not started (mesh --name {run.name} up)")
    unknown = [c for c in args.components if c not in there]
    if unknown:
        raise MeshError(f"no log of {', '.join(unknown)}; there are: {' '.join(there)}")
    files = [str(run.log / f"{c}.log") for c in args.components or there]
    os.execvp("tail", ["tail", "-n", str(args.lines), *(["-F"] if args.follow else []), *files])


def farend_command(run: Run, args: argparse.Namespace) -> None:
    if _running(run)["api_only"]:
        raise MeshError(f"{run.name} is an API server alone: it has no far end")
    if args.what == "queries" or args.what == "requests":
        for line in (farend.queries if args.what == "queries" else farend.requests)(run, args.since):
            print(line)
    elif args.what == "hosts" and args.action == "list":
        faults = farend.faults(run)
        for host, addresses in farend.hosts(run).items():
            print(f"{host:<32} {','.join(addresses):<16} {' '.join(f'{k}={v}' for k, v in faults.get(host, {}).items())}".rstrip())
    elif args.what == "hosts":
        words = list(args.hosts)
        if args.file:
            words += (sys.stdin.read() if args.file == "-" else Path(args.file).read_text()).split()
        if not words:
            raise MeshError(f"farend hosts {args.action}: which hosts? Name them, or give a file of them with --file")
        _change_far_end(run, {"do": args.action, "words": words})
    else:
        fault = {k: v for k, v in vars(args).items() if k in farend.FAULTS and v}
        if bool(fault) == args.clear or not (args.host or args.clear):
            raise MeshError("farend set: HOST and what it does wrong (--delay, --status, …), or --clear")
        _change_far_end(run, {"do": "set", "host": args.host, "fault": fault})


def _change_far_end(run: Run, change: dict) -> None:
    with machine.lock(run.name):
        machine.inside(run, "farend", stdin=json.dumps(change))


def _running(run: Run) -> dict:
    state = run.read_state()
    if not state or not state["ready"] or machine.pid_of(run) is None:
        raise MeshError(f"{run.name} is not running: mesh --name {run.name} up")
    return state


# ---- steps on the machine --------------------------------------------------------------------------------------------------------------


def on_machine_command(run: Run, args: argparse.Namespace) -> None:
    """What the commands above have run inside the machine's namespaces."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    step, *rest = args.step
    if step == "up":
        _up(run, listener_fd=int(rest[0]))
    elif step == "relay":
        control_plane.relay(listener_fd=int(rest[0]), port=int(rest[1]))
    elif step == "echo":
        farend.echo()
    elif step == "farend":
        farend.change(run, json.load(sys.stdin))


def _up(run: Run, listener_fd: int) -> None:
    state, stages = run.read_state() or {}, Stages()
    port, api_only = state["port"], state["api_only"]
    network.make(api_only=api_only)
    control_plane.make_pki(run, port)
    stages.done("network, certificates")
    parts = control_plane.start_store_and_api(run, port, listener_fd)
    if not api_only:
        parts += [node.start_containerd(run), *farend.start(run)]
        node.prefetch_images(run)
    machine.wait_for("kube-apiserver", lambda: control_plane.ready(run), parts)
    stages.done("etcd, kube-apiserver")
    parts += control_plane.start_controllers(run, api_only=api_only)
    if api_only:
        control_plane.install_crds(run)
        stages.done("Istio's CRDs")
        return
    machine.wait_for("containerd", run.containerd_socket.exists, parts)
    parts += node.start_kubelet(run)
    node.install_dns(run)
    node.wait_for_node(run, parts)
    stages.done("node, far end")
    node.wait_for_dns(run, parts)
    stages.done("cluster DNS")


# ---- arguments -------------------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    name = argparse.ArgumentParser(add_help=False)
    name.add_argument("--name", default=argparse.SUPPRESS, help="which mesh; several can run side by side (default: mesh)")
    parser = argparse.ArgumentParser(
        prog="mesh",
        parents=[name],
        description="A Kubernetes cluster with Istio on this machine, with an internet of its own.",
        epilog="MESH_CACHE: where everything is kept (default ~/.cache/istio-egress-mesh)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(word: str, do, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(word, parents=[name], help=text, description=text)
        sub.set_defaults(do=do)
        return sub

    def api_only(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--api-only", action="store_true", help="etcd, API server and Istio's CRDs, without node, Istio and far end")

    api_only(command("build", build_command, "build what is missing, once for all meshes"))
    sub = command("up", up_command, "start a mesh, or say that it is running; builds what is missing")
    api_only(sub)
    sub.add_argument("--istio", action="store_true", help="install Istio, too")
    command("istio", istio_command, "install istiod and an egress gateway")
    command("down", down_command, "end a mesh and remove all it left")
    command("status", status_command, "one screen: what runs, and where")
    command("kubeconfig", kubeconfig_command, "print the path of the kubeconfig")
    sub = command("exec", exec_command, "run a command in the node's network, with PATH and KUBECONFIG set")
    sub.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    sub = command("logs", logs_command, "the end of the components' logs")
    sub.add_argument("components", nargs="*", metavar="COMPONENT")
    sub.add_argument("-n", "--lines", type=int, default=20)
    sub.add_argument("-f", "--follow", action="store_true")
    _farend_parser(command("farend", farend_command, "the internet: its hosts, what they do wrong on purpose, what reached them"), name)
    sub = commands.add_parser("on-machine", parents=[name])
    sub.add_argument("step", nargs="+")
    sub.set_defaults(do=on_machine_command)
    return parser


def _farend_parser(parser: argparse.ArgumentParser, name: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    sub = whats.add_parser("hosts", parents=[name], help="list, add or remove hosts: HOST, HOST=ADDRESS[,ADDRESS] or *.ZONE")
    sub.add_argument("action", nargs="?", choices=["list", "add", "remove"], default="list")
    sub.add_argument("hosts", nargs="*", metavar="HOST")
    sub.add_argument("--file", help="a file with more of them, - for standard input")
    sub = whats.add_parser("set", parents=[name], help="make HOST do wrong, replacing what it did before")
    sub.add_argument("host", nargs="?", metavar="HOST", help="with --clear it may be left out: all hosts")
    sub.add_argument("--delay", type=float, metavar="SECONDS", help="answer late")
    sub.add_argument("--status", type=int, metavar="CODE", help="answer with this HTTP status")
    sub.add_argument("--redirect", metavar="PREFIX", help="answer http with a redirect to https below this path")
    sub.add_argument("--reset", action="store_true", help="accept, read the request, and reset the connection")
    sub.add_argument("--refuse", action="store_true", help="refuse connections")
    sub.add_argument("--drop", action="store_true", help="never answer")
    sub.add_argument("--clear", action="store_true", help="do right again")
    for what, text in (("queries", "the DNS questions it was asked"), ("requests", "the HTTP requests it was sent, a JSON object a line")):
        sub = whats.add_parser(what, parents=[name], help=text)
        sub.add_argument("--since", type=float, default=600, metavar="SECONDS", help="how far back (default 600)")


def main() -> int:
    args = _parser().parse_args()
    try:
        return args.do(Run(Cache.from_environment(), getattr(args, "name", "mesh")), args) or 0
    except MeshError as failure:
        print(f"mesh: {failure}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failure:
        said = (failure.stderr or failure.stdout or b"").strip()
        text = said if isinstance(said, str) else said.decode(errors="replace")
        print(f"mesh: {' '.join(map(str, failure.cmd))[:200]} ended with code {failure.returncode}: {text or 'see above'}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as with `mesh status | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("mesh: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
