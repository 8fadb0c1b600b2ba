"""Names, addresses and paths: the one place that says where things are.

Knows nothing of how anything is built or started.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENTRY = HERE.parent  # what Python runs: tests/cluster
TOOLS = HERE.parent / "tools"
MANIFESTS = HERE / "manifests"

ISTIO = "1.31.1"

# Every mesh has network namespaces of its own, so all of them use the same addresses (documentation and benchmarking ranges).
NODE_IP = "192.0.2.10"
NODE_NET = "192.0.2.0/24"
LINK_NODE, LINK_FAR, LINK_BITS = "198.51.100.1", "198.51.100.2", 30
FAR_NETS = ("203.0.113.0/24", "198.18.0.0/15")
POD_NET, SERVICE_NET, API_SERVICE, DNS_SERVICE = "10.244.0.0/16", "10.96.0.0/16", "10.96.0.1", "10.96.0.10"
FIRST_API_PORT, LAST_API_PORT = 16443, 16499
REGISTRY_PORT = 5000
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

UNIX_PATH_MAX = 107
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")


def manifest(name: str, values: dict[str, object]) -> str:
    """The text of a file in manifests/, with each __NAME__ replaced by its value."""
    text = (MANIFESTS / name).read_text()
    for key, value in values.items():
        text = text.replace(f"__{key}__", str(value))
    return text


class MeshError(Exception):
    """Something went wrong that the user can act upon; the text is what the user reads."""


@dataclass(frozen=True)
class Cache:
    """What is built once and shared by all meshes of this machine."""

    root: Path

    @classmethod
    def from_environment(cls) -> Cache:
        return cls(Path(os.environ.get("MESH_CACHE") or Path.home() / ".cache" / "istio-egress-mesh").absolute())

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def stamps(self) -> Path:
        return self.root / "stamps"

    @property
    def wheels(self) -> Path:
        """A virtual environment for programs that come as Python wheels."""
        return self.root / "wheels"

    @property
    def rootfs(self) -> Path:
        return self.root / "rootfs"

    @property
    def registry(self) -> Path:
        """The images, laid out so that a web server of static files is a registry."""
        return self.root / "registry"

    @property
    def crds(self) -> Path:
        return self.root / "istio-crds.yaml"

    @property
    def bootstrap(self) -> Path:
        return self.root / "envoy_bootstrap.json"

    @property
    def far_ca(self) -> Path:
        return self.root / "farend-ca.crt"

    @property
    def far_ca_key(self) -> Path:
        return self.root / "farend-ca.key"


@dataclass(frozen=True)
class Run:
    """One mesh by name; everything it writes lies under `root`, and goes with it."""

    cache: Cache
    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise MeshError(f"--name {self.name!r}: use up to 20 lower-case letters, digits and dashes, such as 'mesh-2'")

    @property
    def root(self) -> Path:
        return self.cache.root / "run" / self.name

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def pids(self) -> Path:
        return self.root / "pids"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def audit_log(self) -> Path:
        return self.root / "audit.log"

    @property
    def containerd_socket(self) -> Path:
        return self.root / "containerd.sock"

    @property
    def far(self) -> Path:
        return self.root / "farend"

    @property
    def cgroup(self) -> str:
        return f"mesh-{self.name}"

    def read_state(self) -> dict | None:
        """What `up` wrote: {"pid", "started", "boot", "port", "api_only", "ready"}; None when there is no (readable) run."""
        try:
            return json.loads((self.root / "state.json").read_text())
        except (OSError, ValueError):
            return None

    def write_state(self, state: dict) -> None:
        new = self.root / "state.json.new"
        new.write_text(json.dumps(state))
        new.rename(self.root / "state.json")


def runs(cache: Cache) -> list[str]:
    """The names of all meshes that have left something here."""
    root = cache.root / "run"
    return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
