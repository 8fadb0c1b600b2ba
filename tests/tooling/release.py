"""Builds the artifact, looks at what is in it, lets Galaxy's importer judge it, installs it into an empty environment, and runs playbooks from there.

The environment is what a user's execution environment would be: ansible-core, what meta/execution-environment.yml names, the artifact and nothing of the
checkout. kubernetes.core is the one that `setup` fetched, since Galaxy is often out of reach. Playbooks run against KUBECONFIG, in namespaces of their own.

    release.py                 builds, judges, installs, and runs the demo
    release.py --every         runs every playbook, twice, and cleanup, after which the cluster is what it was; then AWX's jobs
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from kubernetes.config import new_client_from_config
from kubernetes.dynamic import DynamicClient

import tree

sys.path.append(str(tree.CHECKOUT / "tests"))
from cluster.onemachine import pki
from cluster.onemachine.layout import Cache

OUTPUT = tree.CHECKOUT / "tests" / "output" / "release"
BIN = Path(sys.executable).parent
COLLECTION = "meshops.istio_egress"
MOST = 1_000_000
"""Bytes of an artifact; what is bigger holds something that no user asked for."""
FOR_USERS = {
    "CHANGELOG.rst", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md", "changelogs", "docs", "examples", "meta",
    "playbooks", "plugins", "roles",
}  # fmt: skip
WATCHED = {
    "networking.istio.io/v1": ("ServiceEntry", "Sidecar", "Gateway", "DestinationRule", "VirtualService"),
    "security.istio.io/v1": ("AuthorizationPolicy",), "networking.k8s.io/v1": ("NetworkPolicy",), "apps/v1": ("Deployment",),
    "v1": ("Namespace", "ConfigMap", "Secret", "Service", "ServiceAccount"),
}  # fmt: skip
OF_THE_CLUSTER = {"control-plane.alpha.kubernetes.io/leader", "deployment.kubernetes.io/revision"}
"""Annotations that controllers write."""
IMPORTER = "galaxy-importer>=0.4.30,<1"


def say(text: str) -> None:
    print(f"release: {text}", flush=True)


def run(*command: str | Path, **keywords: object) -> str:
    """The output of a command; when it fails, ends here with that output."""
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **keywords)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nrelease: {' '.join(map(str, command))} failed; its output is above.")
    return done.stdout


def build() -> Path:
    shutil.rmtree(OUTPUT, ignore_errors=True)
    run(BIN / "ansible-galaxy", "collection", "build", "--output-path", OUTPUT, tree.CHECKOUT)
    [artifact] = OUTPUT.glob("*.tar.gz")
    return artifact


def look_into(artifact: Path) -> None:
    """Everything in it is meant for users, and is in the repository: a build takes whatever lies in the directory."""
    with tarfile.open(artifact) as archive:
        held = {Path(member.name) for member in archive.getmembers() if member.isfile()}
    tracked = {Path(name) for name in run("git", "ls-files", "-z", cwd=tree.CHECKOUT).split("\0") if name}
    stray = sorted(str(path) for path in held if path.parts[0] not in FOR_USERS or path not in tracked | {Path("FILES.json"), Path("MANIFEST.json")})
    if stray:
        sys.exit(f"release: the artifact holds what is not for users or not in git: {', '.join(stray)}\nAdd it to build_ignore of galaxy.yml, or to git.")
    if artifact.stat().st_size > MOST:
        sys.exit(f"release: {artifact.name} has {artifact.stat().st_size:,} bytes, more than {MOST:,}; see what is in it with tar tzvf {artifact}")
    say(f"{artifact.name}: {len(held)} files, {artifact.stat().st_size:,} bytes")


def environment(place: Path, *requirements: str) -> Path:
    """The programs of a new virtual environment."""
    venv.create(place, with_pip=True)
    run(place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    return place / "bin"


def judge(artifact: Path, place: Path) -> None:
    """What Galaxy does with an upload, in an environment of its own: the importer pins old releases of what others use."""
    programs = environment(place, IMPORTER)
    # where Python looks for collections: the linter that the importer runs wants to see what the playbooks refer to, and gets no other path
    [site] = (place / "lib").glob("python*/site-packages")
    shutil.copytree(tree.FETCHED, site / "ansible_collections", dirs_exist_ok=True)
    with tarfile.open(artifact) as archive:
        archive.extractall(site / "ansible_collections" / COLLECTION.replace(".", "/"), filter="data")
    variables = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    told = run(programs / "python", "-m", "galaxy_importer.main", artifact, env=variables, cwd=place)
    if complaints := [line for line in told.splitlines() if re.match(r"(WARNING|ERROR)", line)]:
        sys.exit("\n".join([*complaints, "release: this is what Galaxy would say to an upload; see above."]))
    say("galaxy-importer has nothing to say")


def install(artifact: Path, place: Path) -> dict[str, str]:
    """The variables of a shell that has the artifact and not the checkout."""
    collections = place / "collections"
    with tarfile.open(artifact) as archive:
        needs = archive.extractfile("meta/ee-requirements.txt").read().decode()
    (place / "requirements.txt").write_text(needs, encoding="utf-8")
    programs = environment(place / "venv", "ansible-core>=2.18,<2.22", "--requirement", str(place / "requirements.txt"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON", "K8S_AUTH_"))}
    # without the path to the checkout, where the same version would count as installed
    run(programs / "ansible-galaxy", "collection", "install", artifact, "--no-deps", "--collections-path", collections, cwd=place, env=kept)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {
        **kept, "PATH": path, "ANSIBLE_COLLECTIONS_PATH": f"{collections}{os.pathsep}{tree.FETCHED.parent}", "K8S_AUTH_KUBECONFIG": os.environ["KUBECONFIG"],
        "ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false", "ANSIBLE_NOCOLOR": "1",
    }  # fmt: skip


def play(name: str, variables: dict[str, str], *options: str) -> str:
    return run("ansible-playbook", f"{COLLECTION}.{name}", *options, env=variables, cwd="/")


def demo(variables: dict[str, str]) -> None:
    told = play("demo", variables)
    print("\n".join(re.findall(r'^ +"(.*)",?$', told.rpartition("TASK [What was seen]")[2], re.MULTILINE)))
    play("demo", variables, "-e", "egress_undo=true")


def watched() -> dict[str, str]:
    """What stands in the cluster of KUBECONFIG of the kinds that playbooks write, as text: what its owner wrote, not what the cluster adds."""
    cluster = DynamicClient(new_client_from_config(config_file=os.environ["KUBECONFIG"]))
    found = {}
    for version, kinds in WATCHED.items():
        for kind in kinds:
            for obj in cluster.resources.get(api_version=version, kind=kind).get().to_dict()["items"]:
                metadata = obj["metadata"]
                annotations = {k: v for k, v in (metadata.get("annotations") or {}).items() if k not in OF_THE_CLUSTER}
                written = {"labels": metadata.get("labels"), "annotations": annotations, "spec": obj.get("spec"), "data": obj.get("data")}
                found[f"{kind} {metadata.get('namespace', '')}/{metadata['name']}"] = json.dumps(written, sort_keys=True)
    return found


def of_playbook(name: str, scratch: Path) -> list[str]:
    """Variables without which a playbook cannot run. The certificates are those of the one-machine mesh and its far end."""
    if name == "lock_down":
        return ["-e", "egress_watch_seconds=5", "-e", "egress_accept_unnamed=true"]
    if name != "mutual_tls_origination":
        return []
    pki.authority(scratch / "ca.crt", scratch / "ca.key", "clients")
    pki.leaf(scratch / "tls.crt", scratch / "tls.key", "/CN=client", (scratch / "ca.crt", scratch / "ca.key"))
    files = {"certificate": scratch / "tls.crt", "key": scratch / "tls.key", "ca": Cache.from_environment().far_ca}
    return [word for what, path in files.items() for word in ("-e", f"egress_{what}_file={path}")]


def every(variables: dict[str, str], scratch: Path) -> None:
    """Each playbook that sets something: it proves itself, changes nothing the second time, and cleanup takes back what it made."""
    before = watched()
    for path in sorted((tree.CHECKOUT / "playbooks").glob("*.yml")):
        if "egress_undo" not in path.read_text(encoding="utf-8") or path.stem == "demo":
            continue
        namespace = ("-e", f"egress_namespace=release-{path.stem.replace('_', '-')}")
        own = (*namespace, *of_playbook(path.stem, scratch))
        if path.stem == "lock_down":  # closes a namespace that is there, and learns from what was done in it
            play("passthrough", variables, *namespace)
        play(path.stem, variables, *own)
        again = play(path.stem, variables, *own)
        changed = re.search(r"changed=(\d+)", again)
        if not changed or changed[1] != "0":
            sys.exit(f"{again}\nrelease: {path.stem} changed something the second time; its output is above.")
        play("cleanup", variables, *namespace)
        after = watched()
        if different := sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
            sys.exit(f"release: {path.stem} and cleanup left the cluster otherwise than it was: {', '.join(different)}")
        say(f"{path.stem}: proves itself, changes nothing the second time, and cleanup leaves the cluster as it was")


def jobs(variables: dict[str, str]) -> None:
    """The example for AWX, run as a controller runs it, with what an execution environment holds."""
    run(BIN / "pytest", "tests/mesh/test_awx.py", env=variables, cwd=tree.CHECKOUT)
    say("the jobs of examples/awx run as they should")


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds and tries the artifact.")
    parser.add_argument("--every", action="store_true", help="run every playbook, not the demo alone")
    arguments = parser.parse_args()
    artifact = build()
    look_into(artifact)
    with tempfile.TemporaryDirectory() as scratch:
        judge(artifact, Path(scratch) / "importer")
        say("an empty virtual environment with ansible-core, the artifact and what it names")
        variables = install(artifact, Path(scratch))
        if arguments.every:
            every(variables, Path(scratch))
            jobs(variables)
        demo(variables)
    say(f"good: {artifact}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
