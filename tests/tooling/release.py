"""Makes the artifact (`artifact`), installs it into an empty environment, and runs playbooks from there.

The environment is what a user's execution environment would be: ansible-core, what meta/execution-environment.yml names, the artifact and nothing of the
checkout. It has the newest Python here, and so the newest ansible-core, while the development venv has the system's: proxies see both. kubernetes.core is
the one that `setup` fetched, since Galaxy is often out of reach. Playbooks run against KUBECONFIG, in namespaces of their own.

    release.py                 makes it, installs it, and runs the demo
    release.py --every         runs every playbook, twice, and cleanup, after which the cluster is what it was; then AWX's jobs
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tarfile
import tempfile
from pathlib import Path

from kubernetes.config import new_client_from_config
from kubernetes.dynamic import DynamicClient

import artifact
import pythons
import tree
from artifact import BIN, COLLECTION, environment, run

sys.path.append(str(tree.CHECKOUT / "tests"))
from cluster.onemachine import pki
from cluster.onemachine.layout import Cache

WATCHED = {
    "networking.istio.io/v1": ("ServiceEntry", "Sidecar", "Gateway", "DestinationRule", "VirtualService"),
    "security.istio.io/v1": ("AuthorizationPolicy",), "networking.k8s.io/v1": ("NetworkPolicy",), "apps/v1": ("Deployment",),
    "v1": ("Namespace", "ConfigMap", "Secret", "Service", "ServiceAccount"),
}  # fmt: skip
OF_THE_CLUSTER = {"control-plane.alpha.kubernetes.io/leader", "deployment.kubernetes.io/revision"}
"""Annotations that controllers write."""


def say(text: str) -> None:
    print(f"release: {text}", flush=True)


def install(made: Path, place: Path) -> dict[str, str]:
    """The variables of a shell that has the artifact and not the checkout."""
    collections = place / "collections"
    with tarfile.open(made) as archive:
        needs = archive.extractfile("meta/ee-requirements.txt").read().decode()
    (place / "requirements.txt").write_text(needs, encoding="utf-8")
    programs = environment(place / "venv", "ansible-core>=2.18,<2.22", "--requirement", str(place / "requirements.txt"), python=pythons.newest())
    say(run(programs / "ansible", "--version").splitlines()[0])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON", "K8S_AUTH_"))}
    # without the path to the checkout, where the same version would count as installed
    run(programs / "ansible-galaxy", "collection", "install", made, "--no-deps", "--collections-path", collections, cwd=place, env=kept)
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
    made = artifact.make(lint=True)
    with tempfile.TemporaryDirectory() as scratch:
        say("an empty virtual environment with ansible-core, the artifact and what it names")
        variables = install(made, Path(scratch))
        if arguments.every:
            every(variables, Path(scratch))
            jobs(variables)
        demo(variables)
    say(f"good: {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
