"""The container images, laid out as a registry of static files: blobs/sha256:…, and manifests/REPOSITORY/TAG beside manifests/REPOSITORY/sha256:….

Assembled from a Debian root file system and the built programs; nothing is pulled. Knows nothing of how those were made.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_IN_IMAGE = ("./proc/", "./sys/", "./dev/", "./var/cache/", "./var/lib/apt/lists/", "./usr/share/doc/", "./usr/share/man/", "./usr/share/locale/")


@dataclass(frozen=True)
class Entry:
    """A file (from `source`, a path or bytes) or a folder (no source) of a layer."""

    path: str
    source: Path | bytes | None = None
    mode: int = 0o755
    uid: int = 0


class Registry:
    """Writes images below `root`, which must be an empty folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True)

    def _blob(self, data: bytes) -> dict:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        (self.root / "blobs" / digest).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    def _layer_blob(self, fill) -> dict:
        new = self.root / "blobs" / "new"
        with tarfile.open(new, "w") as tar:
            fill(tar)
        with new.open("rb") as file:
            digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        new.rename(self.root / "blobs" / digest)
        return {"digest": digest, "size": (self.root / "blobs" / digest).stat().st_size}

    def tree(self, folder: Path) -> dict:
        """A layer of a whole root file system, but for what no container needs."""

        def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
            name = info.name + "/"
            info.mtime = 0
            return None if name.startswith(_NOT_IN_IMAGE) and name not in _NOT_IN_IMAGE else info

        return self._layer_blob(lambda tar: tar.add(folder, ".", filter=wanted))

    def layer(self, entries: Iterable[Entry]) -> dict:
        def fill(tar: tarfile.TarFile) -> None:
            for entry in entries:
                info = tarfile.TarInfo(entry.path)
                info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.uid
                if entry.source is None:
                    info.type = tarfile.DIRTYPE
                    tar.addfile(info)
                elif isinstance(entry.source, bytes):
                    info.size = len(entry.source)
                    tar.addfile(info, BytesIO(entry.source))
                else:
                    with entry.source.open("rb") as file:
                        info.size = os.fstat(file.fileno()).st_size
                        tar.addfile(info, file)

        return self._layer_blob(fill)

    def image(self, repository: str, tags: Iterable[str], layers: list[dict], config: dict) -> None:
        """`repository` without its registry's host: every host is served from here."""
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        image = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": [PATH], **config},
            "rootfs": {"type": "layers", "diff_ids": [x["digest"] for x in layers]},
        }
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **self._blob(json.dumps(image).encode())},
                "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", **x} for x in layers],
            }
        ).encode()
        folder = self.root / "manifests" / repository
        folder.mkdir(parents=True, exist_ok=True)
        for reference in (*tags, "sha256:" + hashlib.sha256(manifest).hexdigest()):
            (folder / reference).write_bytes(manifest)


def build(root: Path, rootfs: Path, programs: Path, envoy: Path, bootstrap: Path, istio: str) -> None:
    """All images of the mesh below `root`, replacing what is there."""
    new = root.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    registry = Registry(new)
    debian = registry.tree(rootfs)
    registry.image(
        "pause", ["1"], [registry.layer([Entry("bin"), Entry("bin/busybox", Path("/bin/busybox"))])], {"Entrypoint": ["/bin/busybox", "sleep", "2147483647"]}
    )
    registry.image("coredns", ["1"], [registry.layer([Entry("coredns", programs / "coredns")])], {"Entrypoint": ["/coredns"]})
    registry.image(
        "istio/pilot",
        [istio],
        [debian, registry.layer([Entry("usr/local/bin/pilot-discovery", programs / "pilot-discovery")])],
        {"Entrypoint": ["/usr/local/bin/pilot-discovery"], "User": "1337:1337"},
    )
    registry.image(
        "istio/proxyv2",
        [istio],
        [
            debian,
            registry.layer(
                [
                    Entry("usr/local/bin/pilot-agent", programs / "pilot-agent"),
                    Entry("usr/local/bin/envoy", envoy),
                    Entry("var/lib/istio", uid=1337),
                    Entry("var/lib/istio/envoy", mode=0o777, uid=1337),
                    Entry("var/lib/istio/envoy/envoy_bootstrap_tmpl.json", bootstrap, 0o644),
                    Entry("etc/istio", mode=0o777, uid=1337),
                    Entry("etc/istio/proxy", mode=0o777, uid=1337),
                ]
            ),
        ],
        {"Entrypoint": ["/usr/local/bin/pilot-agent"], "User": "1337:1337", "WorkingDir": "/", "Env": [PATH, f"ISTIO_META_ISTIO_VERSION={istio}"]},
    )
    registry.image("curlimages/curl", ["8.16.0", "latest"], [debian], {"Cmd": ["curl"], "User": "100:101"})
    registry.image("library/debian", ["bookworm", "bookworm-slim", "latest"], [debian], {"Cmd": ["bash"]})
    shutil.rmtree(root, ignore_errors=True)
    new.rename(root)
