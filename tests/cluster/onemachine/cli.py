"""The commands of `mesh`: what they take, what they print, in which order they call the rest."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from . import build, control_plane, farend, istio, machine, network, node
from .layout import Cache, MeshError, Run


class Stages:
    """One line for each stage that is through, with its seconds."""

    def __init__(self) -> None:
        self.first = self.last = time.monotonic()

    def done(self, what: str) -> None:
        now = time.monotonic()
        print(f"  {what:<44} {now - self.last:5.1f} s", flush=True)
        self.last = now

    @property
    def total(self) -> float:
        return time.monotonic() - self.first


def build_all(run: Run, args: argparse.Namespace) -> None:
    build.build(run.cache, api_only=args.api_only)


def up(run: Run, args: argparse.Namespace) -> None:
    stages = Stages()
    with machine.lock(run.name):
        machine.end(run)
        listener = control_plane.listen_outside()
        port = listener.getsockname()[1]
        machine.start(run, {"port": port, "api_only": args.api_only})
        machine.inside(run, "up", str(listener.fileno()), pass_fds=(listener.fileno(),))
        run.write_state({**run.read_state(), "ready": True})
        print(f"{run.name} is up in {stages.total:.1f} s: export KUBECONFIG={run.kubeconfig}")


def up_on_machine(run: Run, listener_fd: int) -> None:
    state, stages = run.read_state(), Stages()
    port, api_only = state["port"], state["api_only"]
    network.make(api_only=api_only)
    control_plane.make_pki(run, port)
    stages.done("network, certificates")
    parts = control_plane.start_store_and_api(run, port, listener_fd)
    if not api_only:
        parts += [node.start_containerd(run), *farend.start(run)]
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
    stages.done("containerd, kubelet, far end")
    node.wait_for_dns(run, parts)
    stages.done("cluster DNS")


def install_istio(run: Run, args: argparse.Namespace) -> None:
    stages = Stages()
    with machine.lock(run.name):
        if istio.installed(run):
            print(f"Istio is installed on {run.name}")
            return
        istio.install(run)
        stages.done("istiod, egress gateway")


def down(run: Run, args: argparse.Namespace) -> None:
    with machine.lock(run.name):
        found = machine.end(run)
    print(f"{run.name} is down" if found else f"{run.name}: nothing to take down")


def on_machine(run: Run, args: argparse.Namespace) -> None:
    if args.step[0] == "up":
        up_on_machine(run, int(args.step[1]))
    elif args.step[0] == "echo":
        farend.echo()
    elif args.step[0] == "relay":
        control_plane.relay(int(args.step[1]), int(args.step[2]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="mesh")
    parser.add_argument("--name", default="mesh")
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("build")
    p.add_argument("--api-only", action="store_true")
    p.set_defaults(do=build_all)
    p = commands.add_parser("istio")
    p.set_defaults(do=install_istio)
    p = commands.add_parser("up")
    p.add_argument("--api-only", action="store_true")
    p.set_defaults(do=up)
    p = commands.add_parser("down")
    p.set_defaults(do=down)
    p = commands.add_parser("on-machine")
    p.add_argument("step", nargs="+")
    p.set_defaults(do=on_machine)
    args = parser.parse_args()
    try:
        args.do(Run(Cache.from_environment(), args.name), args)
    except MeshError as failure:
        print(f"mesh: {failure}", file=sys.stderr)
        return 1
    return 0
