"""Runs a module of the collection as Ansible does, as an account of its own, and tells from the audit log what the API server was asked.

Ansible hands a module its arguments as JSON on stdin and reads JSON from stdout (developing_modules_general, "Exercising module code locally";
ansible-core 2.18 to 2.21). That costs a second a call, nearly all of it the import of the Kubernetes client; so a server process imports
what modules import once, and forks for each call. `fresh` asks for an interpreter of its own, where that matters.
The audit log lies beside the kubeconfig, where the one-machine mesh writes it. This file knows nothing of what the modules do, and mocks nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import urllib3
import yaml

PACKAGE = "ansible_collections.meshops.istio_egress.plugins.modules"
WRITES = ("create", "update", "patch", "delete", "deletecollection")
LONGEST_CALL = 300
PLURALS = {
    "v1": {
        "Namespace": "namespaces", "ConfigMap": "configmaps", "Secret": "secrets", "ServiceAccount": "serviceaccounts",
        "Pod": "pods", "Service": "services",
    },
    "apps/v1": {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"},
    "networking.istio.io/v1": {
        "ServiceEntry": "serviceentries", "Sidecar": "sidecars",
        "Gateway": "gateways", "DestinationRule": "destinationrules", "VirtualService": "virtualservices",
    },
    "security.istio.io/v1": {"AuthorizationPolicy": "authorizationpolicies"},
    "rbac.authorization.k8s.io/v1": {
        "ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings", "Role": "roles", "RoleBinding": "rolebindings",
    },
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "flowcontrol.apiserver.k8s.io/v1": {"FlowSchema": "flowschemas"},
    "admissionregistration.k8s.io/v1": {
        "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
        "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
    },
}

Object = dict[str, Any]


class Refused(Exception):
    """The API server answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class ApiServer:
    """The API server of a kubeconfig, as its administrator: what tests prepare, change behind a module's back, and look at."""

    def __init__(self, path: Path | None = None) -> None:
        from kubernetes import config

        self.kubeconfig = path or Path(os.environ["KUBECONFIG"])
        self.audit_log = self.kubeconfig.with_name("audit.log")
        client = config.new_client_from_config(str(self.kubeconfig))
        self.url: str = client.configuration.host
        self.ca: str = client.configuration.ssl_ca_cert
        self._pool = client.rest_client.pool_manager
        self._login = {s["key"]: s["value"] for s in client.configuration.auth_settings().values() if s["in"] == "header"}

    def call(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Object:
        """One request; the answer as a dictionary. Raises Refused."""
        return json.loads(self.text(path, method, body, content_type))

    def text(self, path: str, method: str = "GET", body: object = None, content_type: str = "application/json") -> str:
        """One request; the answer as it comes. Raises Refused."""
        headers = {**self._login, "Accept": "application/json, text/plain", "Content-Type": content_type}
        answer = self._pool.request(method, self.url + path, body=None if body is None else json.dumps(body), headers=headers)
        if answer.status >= 400:
            raise Refused(answer.status, answer.data.decode())
        return answer.data.decode()

    def create(self, obj: Object) -> Object:
        return self.call("POST", path_of(obj["kind"], obj["metadata"].get("namespace")), obj)

    def replace(self, obj: Object) -> Object:
        return self.call("PUT", path_of(obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"]), obj)

    def patch(self, kind: str, namespace: str | None, name: str, change: Object) -> Object:
        return self.call("PATCH", path_of(kind, namespace, name), change, "application/merge-patch+json")

    def set_status(self, kind: str, namespace: str, name: str, status: Object) -> None:
        """Says what a controller or a kubelet would say of an object."""
        self.call("PATCH", f"{path_of(kind, namespace, name)}/status", {"status": status}, "application/merge-patch+json")

    def read(self, kind: str, namespace: str | None, name: str) -> Object | None:
        try:
            return self.call("GET", path_of(kind, namespace, name))
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: str, namespace: str | None = None) -> list[Object]:
        return self.call("GET", path_of(kind, namespace))["items"]

    def delete(self, kind: str, namespace: str | None, name: str) -> None:
        with contextlib.suppress(Refused):
            self.call("DELETE", path_of(kind, namespace, name))

    def allows(self, review: Object) -> bool:
        """Whether the API server would allow what a SubjectAccessReview asks about."""
        return self.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"]

    def everything(self, namespace: str) -> dict[str, Object]:
        """Each object of the namespace that a module could write, whole: equal only if nobody wrote any of them, not even the same bytes."""
        kinds = ("ServiceEntry", "Sidecar", "ConfigMap", "Deployment")
        found = {f"{kind}/{o['metadata']['name']}": o for kind in kinds for o in self.list(kind, namespace)}
        found.pop("ConfigMap/kube-root-ca.crt", None)  # comes by itself some time after the namespace
        return found


def path_of(kind: str, namespace: str | None = None, name: str | None = None) -> str:
    """The URL path of an object or, without `name`, of its collection."""
    [(version, plural)] = [(version, kinds[kind]) for version, kinds in PLURALS.items() if kind in kinds]
    root = f"/{'apis' if '/' in version else 'api'}/{version}"
    return root + (f"/namespaces/{namespace}" if namespace else "") + f"/{plural}" + (f"/{name}" if name else "")


@dataclass(frozen=True)
class Request:
    """One line of the audit log."""

    verb: str
    resource: str
    namespace: str
    name: str
    dry_run: bool
    code: int

    def __str__(self) -> str:
        return f"{self.verb}{' (dry run)' if self.dry_run else ''} {self.resource} {self.namespace}/{self.name} {self.code}"


class Result(dict):
    """What a module returned, and the requests that the API server got from it."""

    def __init__(self, values: Mapping[str, Any], requests: list[Request]) -> None:
        super().__init__(values)
        self.sent = requests

    def __missing__(self, key: str) -> Any:
        raise AssertionError(f"the module returned no {key}: {dict(self)}")

    @property
    def msg(self) -> str:
        return self.get("msg", "")

    @property
    def warnings(self) -> list[str]:
        """Warnings as text: up to ansible-core 2.18 a string each, later a dictionary."""
        return [w if isinstance(w, str) else w.get("msg") or w["event"]["msg"] for w in self.get("warnings", [])]

    @property
    def attempts(self) -> list[str]:
        """Requests that were meant to write, dry runs and refused ones too."""
        return [str(r) for r in self.sent if r.verb in WRITES]

    @property
    def writes(self) -> list[str]:
        """Requests that the API server accepted and whose effect it kept."""
        return [str(r) for r in self.sent if r.verb in WRITES and not r.dry_run and r.code < 400]


class Account:
    """A ServiceAccount, so that the audit log tells its requests from those of everybody else.

    Its rights are `rules` (None: all of them), in the namespace `within` or (None) in the whole cluster. A context: on leaving, it takes away
    what it made, and the namespaces that it was asked for.
    """

    def __init__(self, server: ApiServer | None = None, rules: list[Object] | None = None, within: str | None = None) -> None:
        self.server = server or ApiServer()
        self._rules, self._within = rules, within
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Account:
        if not self.server.audit_log.exists():
            raise FileNotFoundError(f"There is no audit log {self.server.audit_log}; an API server that `make api` or `make bench` starts has one.")
        with contextlib.ExitStack() as undo:
            undo.push(self._stack)  # also when only half of it could be made
            self._home = self.namespace("account")
            self.user = f"system:serviceaccount:{self._home}:tester"
            self.server.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "tester", "namespace": self._home}})
            self._grant()
            request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
            self.token: str = self.server.call("POST", path_of("ServiceAccount", self._home, "tester") + "/token", request)["status"]["token"]
            self.kubeconfig = Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "kubeconfig"
            self.kubeconfig.write_text(json.dumps(kubeconfig_for(self.server.url, self.server.ca, self.token)), encoding="utf-8")
            self._stack = undo.pop_all()
        return self

    def _grant(self) -> None:
        """Binds the ServiceAccount to its rules, and waits until the API server goes by them."""
        if self._rules is not None:
            self.create({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": self._home}, "rules": self._rules})
        self.bind(self._within)
        for rule in [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}] if self._rules is None else self._rules:
            asked = {"group": rule["apiGroups"][0], "resource": rule["resources"][0], "verb": rule["verbs"][0], "namespace": self._within or ""}
            review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": self.user, "resourceAttributes": asked}}
            wait_until(partial(self.server.allows, review), f"the right {asked}")

    def bind(self, namespace: str | None) -> None:
        """Gives the account its rights in one more namespace, or (None) in the whole cluster."""
        group, role = "rbac.authorization.k8s.io", "cluster-admin" if self._rules is None else self._home
        kind, metadata = ("RoleBinding", {"namespace": namespace}) if namespace else ("ClusterRoleBinding", {})
        self.create({
            "apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": self._home, **metadata},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "tester", "namespace": self._home}],
        })  # fmt: skip

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def create(self, obj: Object) -> Object:
        """Creates an object that goes when the account goes."""
        metadata = obj["metadata"]
        self._stack.callback(self.server.delete, obj["kind"], metadata.get("namespace"), metadata["name"])
        return self.server.create(obj)

    def namespace(self, purpose: str = "egress") -> str:
        """The name of a new namespace. It goes when the account goes."""
        name = f"{purpose}-{secrets.token_hex(4)}"
        self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return name

    def run(
        self, module: str, *, check: bool = False, diff: bool = False, fresh: bool = False, env: Mapping[str, str | None] | None = None, **arguments: Any
    ) -> Result:
        """Runs a module with this account's kubeconfig in K8S_AUTH_KUBECONFIG. `env` adds variables and (None) takes them away."""
        wanted = {**os.environ, "K8S_AUTH_KUBECONFIG": str(self.kubeconfig), **(env or {})}
        request = {
            "module": f"{PACKAGE}.{module}",
            "path": next(p for p in sys.path if (Path(p) / "ansible_collections" / "meshops" / "istio_egress").exists()),
            "arguments": {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_module_name": module, "_ansible_check_mode": check, "_ansible_diff": diff}},
            "environment": {name: value for name, value in wanted.items() if value is not None},
        }
        start = self.mark()
        answer = (_in_own_interpreter if fresh else _Forks.shared().run)(request)
        try:
            values = json.loads(answer["out"])
        except ValueError:
            raise AssertionError(f"{module} did not answer with JSON (code {answer['code']}):\n{answer['out']}\n{answer['err']}") from None
        return Result(values, self.requests_since(start))

    def mark(self) -> int:
        """Where the audit log ends now, in bytes."""
        return self.server.audit_log.stat().st_size

    def requests_since(self, mark: int) -> list[Request]:
        """What this account asked the API server since `mark`."""
        marker = secrets.token_hex(8)
        self.server.read("ConfigMap", self._home, marker)  # its line in the log says that what came before it is there too
        lines: list[str] = []

        def marked() -> bool:
            with self.server.audit_log.open("rb") as log:
                log.seek(mark)
                lines[:] = log.read().decode().splitlines()
            return any(marker in line for line in lines)

        wait_until(marked, f"{self.server.audit_log} to show a request that was answered")
        return [_request(event) for event in map(json.loads, lines) if event["user"].get("username") == self.user]


def documented_rights(section: str, where: str) -> list[Object]:
    """The first rules of a section of docs/rbac.md that are for a Role or ClusterRole `where` it says so."""
    text = (Path(__file__).parents[2] / "docs" / "rbac.md").read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return yaml.safe_load(next(block for block in text.split("```yaml\n")[1:] if block.startswith(f"# {where}")).split("```")[0])


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


class Relay:
    """Plain HTTP on loopback in front of an API server, so that something can happen between two requests of a module. A context; `url` is its address.

    `before` is called with the method and the path of each request and may use the API server itself, which is how a module gets to write what
    somebody else has written since it was read. A request for which it raises ConnectionError is not passed on: the connection breaks.
    """

    def __init__(self, server: ApiServer, before: Callable[[str, str], None]) -> None:
        pool = urllib3.PoolManager(ca_certs=server.ca)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    before(self.command, self.path)
                except ConnectionError:
                    self.close_connection = True
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
                answer = pool.request(self.command, server.url + self.path, body=body, headers=headers, timeout=LONGEST_CALL)
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers["Content-Type"])
                self.send_header("Content-Length", str(len(answer.data)))
                self.end_headers()
                self.wfile.write(answer.data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

            def log_message(self, *arguments: object) -> None:
                """Says nothing."""

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._listener.server_port}"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()


def kubeconfig_for(url: str, ca: str | None, token: str) -> Object:
    """The content of a kubeconfig with one context, named ``test``."""
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, **({"certificate-authority": ca} if ca else {})}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }  # fmt: skip


def _request(event: Mapping[str, Any]) -> Request:
    target = event.get("objectRef") or {}
    query = parse_qs(urlsplit(event["requestURI"]).query)
    return Request(
        event["verb"], target.get("resource", ""), target.get("namespace", ""), target.get("name", ""), "dryRun" in query,
        (event.get("responseStatus") or {}).get("code", 0),
    )  # fmt: skip


# -- processes ----------------------------------------------------------------------------------------------------------------------


def _in_own_interpreter(request: Mapping[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", request["module"]], input=json.dumps(request["arguments"]), env={**request["environment"], "PYTHONPATH": request["path"]},
        check=False, capture_output=True, text=True, timeout=LONGEST_CALL, cwd="/",
    )  # fmt: skip
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


class _Forks:
    """The client of `serve`: one process for all calls of this test run; it ends when its stdin closes, that is, with us."""

    _instance: _Forks | None = None

    @classmethod
    def shared(cls) -> _Forks:
        cls._instance = cls._instance or cls()
        return cls._instance

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
        self._lock = threading.Lock()

    def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, "the process that runs modules died"
        return json.loads(line)


def serve() -> None:
    """Reads requests, one JSON object a line, and answers each with the output of a forked child that ran the module."""
    import ansible.module_utils.basic
    import kubernetes

    _imported = (ansible.module_utils.basic, kubernetes)  # for the children

    for line in sys.stdin:
        request = json.loads(line)
        if request["path"] not in sys.path:
            sys.path.insert(0, request["path"])
        importlib.import_module(request["module"])
        del sys.modules[request["module"]]  # what it imported stays; itself it runs as the main program
        given, out, err = (os.memfd_create(name) for name in ("stdin", "stdout", "stderr"))
        os.write(given, json.dumps(request["arguments"]).encode())
        os.lseek(given, 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            for ours, standard in ((given, 0), (out, 1), (err, 2)):
                os.dup2(ours, standard)
            signal.alarm(LONGEST_CALL)
            code = _main(request)
            atexit._run_exitfuncs()  # the client of kubernetes takes its temporary files with it
            os._exit(code)  # without taking apart what was imported, which would cost ten times as much as most calls
        _pid, status = os.waitpid(child, 0)
        output = {name: _content(descriptor) for name, descriptor in (("out", out), ("err", err))}
        os.close(given)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), **output}), flush=True)


def _main(request: Mapping[str, Any]) -> int:
    """Runs the module in this process, which a fork has just made; its exit code."""
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["module"]]
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - lives as long as the process
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _content(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, encoding="utf-8") as file:
        return file.read()


if __name__ == "__main__":
    serve()
