"""The playbooks of gateways, by name, on real proxies: each proves itself and prints the path, and undo takes all of it back but the gateway.

All run in one namespace, in the order of this file; each takes the place of the one before. `make release RELEASE=--every` runs the others, which give
the same roles other hosts, and each of them twice.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.modules import ApiServer
from cluster.onemachine import farend, pki
from mesh.conftest import scope_of
from mesh.test_playbooks import CNN, HTTPBIN, Runner, log_since, runner_for, statuses, tls_clusters

GATEWAY = "istio-system/istio-egressgateway"
"""Named, since tests beside these deploy others, and a playbook that is told none takes any that is there (make release shows that)."""
CNN_TLS = "https://edition.cnn.com/"
HOPS = ("pod", "sidecar", "route", "cluster", "gateway", "gateway route", "host")


@pytest.fixture(scope="module")
def runner(kubeconfig: Path, api: ApiServer) -> Iterator[Runner]:
    with runner_for("by-gateway", kubeconfig, api) as runner:
        yield runner


def of_gateway(api: ApiServer, namespace: str) -> list[str]:
    """What stands for the namespace beside a gateway."""
    kinds = ("ServiceEntry", "VirtualService", "AuthorizationPolicy")
    return [f"{kind} {o['metadata']['name']}" for kind in kinds for o in api.list(kind) if scope_of(o) == namespace]


def hops(text: str, url: str) -> tuple[str, ...]:
    """The hops of the printed path of a URL."""
    path = text.partition(f'"{url}",')[2].partition("==>")[0]
    return tuple(m[1].strip() for m in re.finditer(r'" \|    (\w[\w ]{,13}?)  ', path))


def test_egress_gateway(runner: Runner, cluster) -> None:
    start = time.time()
    run = runner.play("egress_gateway", egress_gateway=GATEWAY)
    assert (run.code, run.results) == (0, {CNN: "301", CNN_TLS: "200", HTTPBIN: "502"}), run.text
    assert hops(run.text, "http://edition.cnn.com:80") == HOPS, run.text
    assert hops(run.text, "tls://edition.cnn.com:443") == tuple(h for h in HOPS if h != "route"), run.text
    assert "[VirtualService istio-system/istio-egressgateway." in run.text
    log = log_since(cluster, runner.namespace, start)
    assert statuses(log, "edition.cnn.com", "/politics") == ["301"]
    assert tls_clusters(log) == ["outbound|443|plain|istio-egressgateway.istio-system.svc.cluster.local"]


def credential(runner: Runner) -> str:
    return f"egress-client-{runner.namespace}"


@pytest.fixture(scope="module")
def files(own_mesh, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a client certificate."""
    place = tmp_path_factory.mktemp("client")
    pki.authority(place / "own-ca.crt", place / "own-ca.key", "clients")
    pki.leaf(place / "tls.crt", place / "tls.key", "/CN=client of cnn", (place / "own-ca.crt", place / "own-ca.key"))
    files = {"egress_certificate_file": place / "tls.crt", "egress_key_file": place / "tls.key", "egress_ca_file": own_mesh.cache.far_ca}
    return {name: str(path) for name, path in files.items()}


def test_a_secret_of_somebody_else_stays_and_a_check_ends_before_a_new_one(runner: Runner, api: ApiServer, files: dict[str, str], tmp_path: Path) -> None:
    namespace, name = GATEWAY.split("/")
    variables = {"egress_gateway_deploy_namespace": namespace, "egress_gateway_deploy_name": name, "egress_route_policy": "gateway", **files}
    variables["egress_credential"] = credential(runner)
    tried = runner.tasks("client_certificate", tmp_path, "--check", **variables)
    assert tried.code == 0 and "Check mode ends here" in tried.text, tried.text
    labels = {"app.kubernetes.io/managed-by": "istio-egress", "istio-egress.meshops.io/policy": "gateway", "istio-egress.meshops.io/scope": "another"}
    metadata = {"name": credential(runner), "namespace": namespace, "labels": labels}
    theirs = api.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})
    try:
        refused = runner.tasks("client_certificate", tmp_path, **variables)
        assert refused.code != 0
        assert f"Secret {namespace}/{credential(runner)} is not of policy gateway of namespace {runner.namespace}" in refused.text, refused.text
        assert api.read("Secret", namespace, credential(runner)) == theirs
    finally:
        api.delete("Secret", namespace, credential(runner))


def test_mutual_tls_origination(runner: Runner, cluster, own_mesh, files: dict[str, str]) -> None:
    start = time.time()
    run = runner.play("mutual_tls_origination", egress_gateway=GATEWAY, **files)
    assert (run.code, run.results) == (0, {CNN: "200", HTTPBIN: "502", "https://edition.cnn.com/politics": "exit 35"}), run.text
    at = {p["status"]["podIP"] for p in cluster.list("Pod", "istio-system", labels="istio=egressgateway")}
    seen = [r for r in map(json.loads, farend.requests(own_mesh, time.time() - start)) if r["host"] == "edition.cnn.com" and r["client"] in at]
    assert [(r["scheme"], r["certificate"]) for r in seen] == [("https", "CN=client of cnn")]


def test_undo_leaves_nothing(runner: Runner, api: ApiServer) -> None:
    assert of_gateway(api, runner.namespace)
    undo = runner.play("mutual_tls_origination", egress_undo="yes", egress_certificate_file="any")
    assert (undo.code, undo.changed > 0) == (0, True), undo.text
    assert of_gateway(api, runner.namespace) == []
    assert api.read("Namespace", None, runner.namespace) is None
    assert api.read("Secret", "istio-system", credential(runner)) is None
