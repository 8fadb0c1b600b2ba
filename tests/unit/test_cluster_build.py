"""What the build of the one-machine mesh makes and when it makes it again; what a machine is told that lacks something."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest

from cluster.onemachine import build, images, preflight
from cluster.onemachine.layout import Cache, MeshError, Run

Usage = namedtuple("Usage", "total used free")


def test_a_step_is_made_again_when_what_goes_in_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("go.mod", "go.sum"):
        (tmp_path / "tool").mkdir(exist_ok=True)
        (tmp_path / "tool" / file).write_text("one")
    monkeypatch.setattr(build, "TOOLS", tmp_path)
    step = build.GoStep("tool", "tool", ("example.org/tool/v3",))
    keys = [step.key(), build.GoStep("tool", "tool", step.packages, ldflags="-X a=b").key()]
    (tmp_path / "tool" / "go.sum").write_text("two")
    keys.append(step.key())
    assert len(set(keys)) == 3


def test_programs_are_named_as_go_names_them() -> None:
    by_name = {s.name: s.programs() for s in build.go_steps()}
    assert by_name["etcd"] == ["etcd"]
    assert by_name["istio"] == ["pilot-discovery", "pilot-agent", "istioctl"]


def test_the_api_server_alone_needs_no_node() -> None:
    assert [p for s in build.go_steps() if s.api for p in s.programs()] == ["etcd", "kube-apiserver", "kube-controller-manager"]


def test_only_what_is_missing_is_built(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    everything = build.pending(cache, api_only=True)
    assert [s.name for s in everything] == ["kubectl", "istio-files", "etcd", "kube-apiserver"]
    for step in everything:
        for made in step.made:
            made.parent.mkdir(exist_ok=True)
            made.touch()
    assert len(build.pending(cache, api_only=True)) == 4, "made, but from what?"
    cache.stamps.mkdir()
    for step in everything:
        (cache.stamps / f"{step.name}-{step.key}").touch()
    assert build.pending(cache, api_only=True) == []
    (cache.bin / "etcd").unlink()
    assert [s.name for s in build.pending(cache, api_only=True)] == ["etcd"]


def test_images_follow_the_far_ends_authority(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def keys() -> dict[str, str]:
        return {s.name: s.key for s in build.pending(cache, api_only=False)}

    before = keys()
    cache.far_ca.write_text("another")
    assert {name for name, key in keys().items() if key != before[name]} == {"rootfs", "images"}


def test_an_image_is_what_a_registry_would_serve(tmp_path: Path) -> None:
    registry = images.Registry(tmp_path / "registry")
    layer = registry.layer([images.Entry("etc/app", mode=0o777, uid=1337), images.Entry("etc/app/data", b"hello", 0o644)])
    registry.image("team/app", ["1", "latest"], [layer], {"User": "1337"})
    folder = tmp_path / "registry" / "manifests" / "team" / "app"
    manifest = (folder / "latest").read_bytes()
    assert (folder / ("sha256:" + hashlib.sha256(manifest).hexdigest())).read_bytes() == manifest
    document = json.loads(manifest)
    for part in (document["config"], *document["layers"]):
        data = (tmp_path / "registry" / "blobs" / part["digest"]).read_bytes()
        assert part["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
        assert part["size"] == len(data)
    with tarfile.open(tmp_path / "registry" / "blobs" / layer["digest"]) as tar:
        assert [(m.name, m.mode, m.uid, m.isdir()) for m in tar] == [("etc/app", 0o777, 1337, True), ("etc/app/data", 0o644, 0, False)]


def test_all_that_is_missing_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(build, "NODE_PACKAGES", {"nowhere": "/nowhere/bin/program"})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 10, 1 << 30))
    for needs_a_program in ("_namespaces", "_overlay"):
        monkeypatch.setattr(preflight, needs_a_program, lambda *a: [])
    with pytest.raises(MeshError) as told:
        preflight.check(Run(Cache(tmp_path), "unit"), api_only=False, starting=False)
    text = str(told.value)
    assert "no apt-get to install them: nowhere" in text
    assert "free wanted for" in text
    assert "nsenter" in text
    assert "nothing was started" in text


@pytest.mark.parametrize("cache", ["/" + "x" * 90, "/with space"])
def test_a_path_that_programs_would_not_take_is_told_before_anything_starts(cache: str) -> None:
    assert not preflight._paths(Run(Cache(Path("/c")), "unit"))
    assert "MESH_CACHE" in preflight._paths(Run(Cache(Path(cache)), "unit"))[0]


def test_without_root_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(MeshError, match=r"needs root.*sudo"):
        preflight.check(Run(Cache(tmp_path / "cache"), "unit"), api_only=True, starting=True)
    assert not (tmp_path / "cache").exists()
