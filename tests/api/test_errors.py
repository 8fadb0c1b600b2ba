"""What a user reads when something is wrong: two lines that name the object, what was tried, why it failed, and the way out; and nothing written.

Every row goes to a real API server (or to none, where that is the fault).
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from api.modules import Account, ApiServer, Result, kubeconfig_for, wait_until

MODE, HOST = "istio_outbound_mode", "istio_egress_host"
MESH = Path(__file__).resolve().parents[1] / "cluster" / "mesh"
RAW = ["Traceback", "Caused by", "HTTPSConnectionPool", "HTTPConnectionPool", "pydantic", "object has no attribute", "NoneType", "{'", '{"kind"']
"""Words of libraries and servers that a user should not have to read."""


@pytest.fixture(scope="module", autouse=True)
def bare_server() -> Iterator[subprocess.Popen]:
    """A second API server, which loses Istio's CRDs later; it comes up while the other tests run."""
    name = f"bare-{secrets.token_hex(2)}"
    command = [MESH, "--name", name, "up", "--api-only"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
        up.name = name
        yield up
    subprocess.run([MESH, "--name", name, "down"], check=True, capture_output=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def namespace(account: Account) -> str:
    """One for all rows: none of them writes."""
    return account.namespace("errors")


def assert_tells(result: Result, *words: str) -> None:
    assert result.get("failed"), result
    assert result.msg.count("\n") <= 1, result.msg
    assert max(map(len, result.msg.split("\n"))) <= 320, result.msg
    missing = [word for word in words if word not in result.msg]
    assert not missing, f"{missing} not in: {result.msg}"
    raw = [word for word in RAW if word in result.msg]
    assert not raw, f"{raw} in: {result.msg}"
    assert not result.get("exception"), result["exception"]
    assert result.msg.lower().count("nothing was written") <= 1, result.msg
    assert result.writes == []


# -- what is asked for --------------------------------------------------------------------------------------------------------------


DEMO = {"namespace": "demo"}
ARGUMENTS = {
    "mode-typo": (MODE, {"mode": "REGISTRYONLY"}, ["mode", "ALLOW_ANY, REGISTRY_ONLY, ALLOW_ANY_DYNAMIC_DNS", "got: REGISTRYONLY"]),
    "mode-lower-case": (MODE, {"mode": "registry_only"}, ["ALLOW_ANY, REGISTRY_ONLY", "got: registry_only"]),
    "mode-empty-namespace": (MODE, {"mode": "REGISTRY_ONLY", "namespace": "", "istio_namespace": "nowhere"}, ["namespace is empty", "whole mesh"]),
    "mode-selector-alone": (MODE, {"mode": "REGISTRY_ONLY", "selector": {"app": "web"}}, ["selector", "namespace"]),
    "mode-not-for-a-namespace": (MODE, {**DEMO, "mode": "ALLOW_ANY_DYNAMIC_DNS"}, ["ALLOW_ANY_DYNAMIC_DNS", "whole mesh", "Leave out namespace"]),
    "no-namespace": (HOST, {"hosts": ["www.example.com"]}, ["namespace"]),
    "empty-namespace": (HOST, {"hosts": ["www.example.com"], "namespace": ""}, ["namespace is empty"]),
    "no-hosts": (HOST, DEMO, ["hosts"]),
    "absent-what": (HOST, {**DEMO, "state": "absent"}, ["absent", "hosts", "purge"]),
    "url": (HOST, {**DEMO, "hosts": ["https://www.example.com/politics"]}, ["https://www.example.com/politics", "host: www.example.com"]),
    "no-name": (HOST, {**DEMO, "hosts": ["www.exa_mple.com"]}, ["www.exa_mple.com", '"exa_mple" is not a DNS label', "api.example.com"]),
    "star": (HOST, {**DEMO, "hosts": ["*"]}, ['"*"', "istio_outbound_mode"]),
    "tcp": (HOST, {**DEMO, "hosts": [{"host": "db.example.com", "ports": ["tcp/5432"]}]}, ["db.example.com", "5432", "addresses", "capture_port"]),
    "key-typo": (HOST, {**DEMO, "hosts": [{"host": "db.example.com", "prots": [80]}]}, ["db.example.com", '"prots"', "ports"]),
    "no-protocol": (HOST, {**DEMO, "hosts": ["www.example.com:8080"]}, ["www.example.com", "8080", "http/8080"]),
    "policy": (HOST, {**DEMO, "hosts": ["www.example.com"], "policy": "Web Team"}, ["Web Team", "lower-case"]),
    "export-to": (HOST, {**DEMO, "hosts": ["www.example.com"], "export_to": ["*", "demo"]}, ["export_to", '"*"']),
}


@pytest.mark.parametrize(("module", "arguments", "words"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_are_refused_before_anything_is_asked(account: Account, module: str, arguments: dict[str, Any], words: list[str]) -> None:
    result = account.run(module, **arguments)
    assert_tells(result, *words)
    assert result.sent == []
    assert module == MODE or "leave the option out" not in result.msg, "the options that these rows lack or leave empty are required"


# -- the way to the API server ------------------------------------------------------------------------------------------------------


def arguments_for(module: str, namespace: str) -> dict[str, Any]:
    return {"namespace": namespace, "hosts": ["www.errors.test"]} if module == HOST else {"namespace": namespace, "mode": "REGISTRY_ONLY"}


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port on loopback that nobody listens on, and that nobody else takes meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("module", [MODE, HOST])
def test_nobody_listens(account: Account, namespace: str, dead_port: int, module: str) -> None:
    result = account.run(module, kubeconfig=kubeconfig_for(f"https://127.0.0.1:{dead_port}", None, account.token), **arguments_for(module, namespace))
    assert_tells(result, f"https://127.0.0.1:{dead_port} does not answer", "Connection refused.\n", "kubeconfig and context", "Nothing was written")


@pytest.mark.parametrize("module", [MODE, HOST])
def test_certificate_of_an_unknown_ca(account: Account, namespace: str, module: str) -> None:
    result = account.run(module, kubeconfig=kubeconfig_for(account.server.url, None, account.token), **arguments_for(module, namespace))
    assert_tells(result, f"certificate of {account.server.url}", "not signed by a CA that is trusted", "ca_cert", "K8S_AUTH_SSL_CA_CERT")


@pytest.mark.parametrize("module", [MODE, HOST])
def test_token_that_the_server_does_not_know(account: Account, namespace: str, module: str) -> None:
    result = account.run(module, kubeconfig=kubeconfig_for(account.server.url, account.server.ca, "no-such-token"), **arguments_for(module, namespace))
    assert_tells(result, "does not accept the credentials", "401", "Renew the token")


def test_host_that_is_not_in_dns(account: Account, namespace: str) -> None:
    result = account.run(HOST, host="https://api.errors.invalid", api_key=account.token, **arguments_for(HOST, namespace))
    assert_tells(result, "https://api.errors.invalid does not answer", "Check host")


def test_host_without_scheme(account: Account, namespace: str) -> None:
    address = account.server.url.removeprefix("https://")
    result = account.run(HOST, host=address, api_key=account.token, ca_cert=account.server.ca, **arguments_for(HOST, namespace))
    assert_tells(result, address, f"https://{address}")


def test_http_instead_of_https(account: Account, namespace: str) -> None:
    address = account.server.url.replace("https://", "http://")
    result = account.run(HOST, host=address, api_key=account.token, **arguments_for(HOST, namespace))
    assert_tells(result, "https://")


@pytest.mark.parametrize("answer", ["<html>Please log in</html>", "{}", '"ok"', ""], ids=["page", "object", "text", "nothing"])
def test_what_answers_is_no_api_server(account: Account, namespace: str, answer: str) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{listener.server_port}"
        for module, arguments in ((HOST, arguments_for(HOST, namespace)), (MODE, {"mode": "REGISTRY_ONLY"})):
            assert_tells(account.run(module, host=url, api_key=account.token, **arguments), f"What answers at {url} is no API server", "Check host")
        listener.shutdown()


@pytest.mark.parametrize("option", ["ca_cert", "client_cert"])
def test_file_of_an_option_is_missing(account: Account, namespace: str, option: str) -> None:
    files = {"ca_cert": account.server.ca, option: "/nowhere/file.crt"}
    result = account.run(HOST, host=account.server.url, api_key=account.token, **files, **arguments_for(HOST, namespace))
    assert_tells(result, "/nowhere/file.crt", option)


def test_ca_file_without_a_certificate(account: Account, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("not a certificate", encoding="utf-8")
    result = account.run(HOST, host=account.server.url, api_key=account.token, ca_cert=str(tmp_path / "ca.crt"), **arguments_for(HOST, namespace))
    assert_tells(result, str(tmp_path / "ca.crt"), "ca_cert")


@pytest.mark.parametrize("content", ["a: [", "just words", "", "[]", "users: 3\ncurrent-context: x\n"], ids=["broken", "text", "empty", "list", "odd"])
def test_kubeconfig_that_is_none(account: Account, namespace: str, tmp_path: Path, content: str) -> None:
    (tmp_path / "config").write_text(content, encoding="utf-8")
    result = account.run(HOST, kubeconfig=str(tmp_path / "config"), **arguments_for(HOST, namespace))
    assert_tells(result, "No way to a cluster was found", str(tmp_path / "config"), "K8S_AUTH_KUBECONFIG")


def test_kubeconfig_that_is_not_there(account: Account, namespace: str) -> None:
    result = account.run(HOST, kubeconfig="/nowhere/config", **arguments_for(HOST, namespace))
    assert_tells(result, "No way to a cluster was found", "/nowhere/config", "K8S_AUTH_KUBECONFIG")


def test_context_that_is_not_there(account: Account, namespace: str) -> None:
    result = account.run(MODE, context="production", **arguments_for(MODE, namespace))
    assert_tells(result, "No way to a cluster was found", "production", str(account.kubeconfig))


NOTHING_SET = {"K8S_AUTH_KUBECONFIG": None, "KUBECONFIG": None, "HOME": "/nowhere"}


@pytest.mark.parametrize(("env", "words"), [
    (NOTHING_SET, ["No way to a cluster was found", "kubeconfig", "K8S_AUTH_HOST"]),
    ({**NOTHING_SET, "KUBECONFIG": "/nowhere/config"}, ["No way to a cluster was found", "/nowhere/config"]),
], ids=["nothing", "KUBECONFIG"])  # fmt: skip
def test_no_kubeconfig_at_all(account: Account, namespace: str, env: dict[str, str | None], words: list[str]) -> None:
    assert_tells(account.run(HOST, fresh=True, env=env, **arguments_for(HOST, namespace)), *words)


# -- rights -------------------------------------------------------------------------------------------------------------------------


def may(resource: str, *verbs: str) -> dict[str, Any]:
    group = "networking.istio.io" if resource in ("serviceentries", "sidecars") else ""
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}


FOREIGN = {"hosts": ["./*", "istio-system/*"]}

RIGHTS = [
    # what is lacking, module, its arguments, the rights that are there, what the message names
    ("list", HOST, {"hosts": ["new.rights.test"]}, [], "serviceentries"),
    ("create", HOST, {"hosts": ["new.rights.test:80"]}, [may("serviceentries", "list")], 'serviceentries "egress-default-80-1"'),
    ("update", HOST, {"hosts": ["new.rights.test"]}, [may("serviceentries", "list", "create")], 'serviceentries "egress-default-443-1"'),
    ("delete", HOST, {"hosts": ["old.rights.test"], "state": "absent"}, [may("serviceentries", "list", "update")], 'serviceentries "egress-default-443-1"'),
    ("list", MODE, {"mode": "REGISTRY_ONLY"}, [], "sidecars"),
    ("create", MODE, {"mode": "REGISTRY_ONLY", "selector": {"app": "new"}}, [may("sidecars", "list")], 'sidecars "egress-mode-'),
    ("update", MODE, {"mode": "ALLOW_ANY"}, [may("sidecars", "list")], 'sidecars "egress-mode"'),
    ("delete", MODE, {"state": "absent"}, [may("sidecars", "list")], 'sidecars "egress-mode"'),
    ("patch", MODE, {"mode": "ALLOW_ANY", "selector": {"app": "web"}}, [may("sidecars", "list")], 'sidecars "of-web"'),
]


@pytest.fixture(scope="module")
def lived_in(account: Account) -> str:
    """A namespace with objects of ours and of somebody else."""
    namespace = account.namespace("rights")
    assert account.run(HOST, namespace=namespace, hosts=["old.rights.test"])["changed"]
    assert account.run(MODE, namespace=namespace, mode="REGISTRY_ONLY", istio_namespace=mesh_namespace(account))["changed"]
    account.server.create({
        "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "of-web", "namespace": namespace},
        "spec": {"workloadSelector": {"labels": {"app": "web"}}, "egress": [FOREIGN]},
    })  # fmt: skip
    return namespace


def mesh_namespace(account: Account) -> str:
    """A namespace with the ConfigMap of a control plane."""
    namespace = account.namespace("mesh")
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": namespace}, "data": {"mesh": "rootNamespace: x\n"}}
    account.server.create(config_map)
    return namespace


@pytest.mark.parametrize(("verb", "module", "arguments", "rules", "named"), RIGHTS, ids=[f"{row[1]}-{row[0]}" for row in RIGHTS])
def test_right_is_missing(account: Account, lived_in: str, verb: str, module: str, arguments: dict, rules: list, named: str) -> None:
    before = account.server.everything(lived_in)
    with Account(account.server, rules) as other:
        result = other.run(module, namespace=lived_in, **arguments)
        assert_tells(result, f"Not allowed to {verb} {named}", f'in namespace "{lived_in}"', "403", other.user, "docs/rbac.md", f"section {module}")
    assert account.server.everything(lived_in) == before


@pytest.mark.parametrize(("verb", "rules"), [("get", []), ("patch", [may("configmaps", "get")])], ids=["get", "patch"])
def test_right_to_the_mesh_config_is_missing(account: Account, verb: str, rules: list) -> None:
    istio = mesh_namespace(account)
    before = account.server.everything(istio)
    with Account(account.server, rules) as other:
        result = other.run(MODE, mode="REGISTRY_ONLY", istio_namespace=istio)
        assert_tells(result, f'Not allowed to {verb} configmaps "istio" in namespace "{istio}"', "403", other.user, f"section {MODE}")
    assert account.server.everything(istio) == before


def test_right_to_act_as_somebody_else_is_missing(account: Account, namespace: str) -> None:
    with Account(account.server, [may("serviceentries", "*")]) as other:
        result = other.run(HOST, impersonate_user="bob", **arguments_for(HOST, namespace))
        assert_tells(result, "Not allowed to impersonate", "bob", "403", other.user)


# -- what the cluster holds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [MODE, HOST])
@pytest.mark.parametrize("check", [False, True], ids=["apply", "check"])
def test_namespace_that_does_not_exist(account: Account, module: str, check: bool) -> None:
    arguments = {**arguments_for(module, "no-such-namespace"), **({"istio_namespace": mesh_namespace(account)} if module == MODE else {})}
    result = account.run(module, check=check, **arguments)
    assert_tells(result, 'there is no namespace "no-such-namespace"', "404", "Create the namespace", "Nothing was written")


def test_revision_that_does_not_exist(account: Account) -> None:
    istio = mesh_namespace(account)
    account.server.create(istiod(istio, "1.31.1"))
    result = account.run(MODE, mode="REGISTRY_ONLY", istio_namespace=istio, revision="canary")
    assert_tells(result, 'no ConfigMap "istio-canary"', f'namespace "{istio}"', 'revision "canary"', "Set istio_namespace", f"{istio} (revision default)")


def test_control_plane_in_another_namespace(account: Account, namespace: str) -> None:
    result = account.run(MODE, mode="REGISTRY_ONLY", istio_namespace=namespace)
    assert_tells(result, 'no ConfigMap "istio"', f'namespace "{namespace}"', "istio_namespace")


def istiod(namespace: str, version: str) -> dict[str, Any]:
    pod = {"metadata": {"labels": {"app": "istiod"}}, "spec": {"containers": [{"name": "discovery", "image": f"docker.io/istio/pilot:{version}"}]}}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "istiod", "namespace": namespace, "labels": {"app": "istiod", "istio.io/rev": "default"}},
        "spec": {"selector": {"matchLabels": {"app": "istiod"}}, "template": pod},
    }  # fmt: skip


@pytest.mark.parametrize(("port", "words"), [
    ({"number": 443, "name": "tls", "protocol": "TCP"}, ["on port 443 as TCP", 'policy "default" says TLS', "Remove port 443"]),
    ({"number": 80, "name": "http", "protocol": "HTTP"}, ["without port 443", "Ask its owner"]),
], ids=["other protocol", "other port"])  # fmt: skip
def test_somebody_else_declares_the_host(account: Account, port: dict[str, Any], words: list[str]) -> None:
    namespace = account.namespace("errors")
    host = f"{namespace}.errors.test"
    account.server.create({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "theirs", "namespace": namespace, "labels": {"team": "web"}},
        "spec": {"hosts": [host], "ports": [port], "resolution": "NONE", "location": "MESH_EXTERNAL", "exportTo": ["."]},
    })  # fmt: skip
    before = account.server.everything(namespace)
    result = account.run(HOST, namespace=namespace, hosts=["free.errors.test", host])
    assert_tells(result, f"ServiceEntry {namespace}/theirs", "owner: web", host, *words)
    assert account.server.everything(namespace) == before


# last, since the second API server needs its time to come up
def test_cluster_without_istio(account: Account, bare_server: subprocess.Popen) -> None:
    assert bare_server.wait() == 0, bare_server.stdout.read()
    config = account.server.kubeconfig.parents[1] / bare_server.name / "kubeconfig"
    bare = ApiServer(config)
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    bare.call("DELETE", crds)
    wait_until(lambda: bare.call("GET", crds)["items"] == [], "the CRDs to go")
    way = {"kubeconfig": json.loads(config.read_text(encoding="utf-8"))}
    assert_tells(account.run(HOST, **arguments_for(HOST, "default"), **way), "does not know serviceentries", "Istio", "not installed", "404", "context")
    assert_tells(account.run(MODE, **arguments_for(MODE, "default"), **way), "does not know sidecars", "Istio", "not installed", "404", "context")
    assert_tells(account.run(MODE, mode="REGISTRY_ONLY", **way), 'no ConfigMap "istio"', "No istiod was found", "install Istio")
