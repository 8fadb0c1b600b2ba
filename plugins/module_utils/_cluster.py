# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The Kubernetes edge: list, read, create, replace, patch, delete, exec, port-forward and log through the ``kubernetes`` client.

Objects go in and come out as plain dictionaries in the API's own spelling. This file knows how to reach an API server and what its
answers mean; it knows nothing of Istio's semantics and nothing of Ansible.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

FIELD_MANAGER = "istio-egress"
TRIES = 4
"""How often a request is sent in all when the server says that it is busy (429, 503) or the connection breaks before an answer."""

TIMEOUT = (10, 60)
"""Seconds to connect, and to wait for the next bytes of an answer."""


@dataclass(frozen=True)
class Kind:
    """Where a kind lives in the API."""

    name: str
    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection, an object, or a part of one."""
        parts = ["", "apis" if self.group else "api", self.api_version]
        parts += ["namespaces", namespace] if namespace else []
        return "/".join([*parts, self.plural, *(p for p in (name, subresource) if p)])


KINDS = {
    kind.name: kind
    for kind in (
        Kind("ServiceEntry", "networking.istio.io", "v1", "serviceentries"),
        Kind("Sidecar", "networking.istio.io", "v1", "sidecars"),
        Kind("Gateway", "networking.istio.io", "v1", "gateways"),
        Kind("DestinationRule", "networking.istio.io", "v1", "destinationrules"),
        Kind("VirtualService", "networking.istio.io", "v1", "virtualservices"),
        Kind("AuthorizationPolicy", "security.istio.io", "v1", "authorizationpolicies"),
        Kind("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies"),
        Kind("ConfigMap", "", "v1", "configmaps"),
        Kind("Pod", "", "v1", "pods"),
        Kind("Secret", "", "v1", "secrets"),
        Kind("Service", "", "v1", "services"),
        Kind("Deployment", "apps", "v1", "deployments"),
        Kind("ServiceAccount", "", "v1", "serviceaccounts"),
        Kind("Role", "rbac.authorization.k8s.io", "v1", "roles"),
        Kind("RoleBinding", "rbac.authorization.k8s.io", "v1", "rolebindings"),
        Kind("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets"),
        Kind("HorizontalPodAutoscaler", "autoscaling", "v2", "horizontalpodautoscalers"),
        Kind("EndpointSlice", "discovery.k8s.io", "v1", "endpointslices"),
        Kind("StatefulSet", "apps", "v1", "statefulsets"),
        Kind("DaemonSet", "apps", "v1", "daemonsets"),
    )
}
"""The kinds that this collection touches. A module that knows its kinds needs no discovery (which costs kubernetes.core up to 149 requests)."""


class ClusterError(Exception):
    """A request that the API server refused or that never reached it. `status` is the HTTP status, or 0 when there was no answer."""

    def __init__(self, status: int, reason: str, message: str, verb: str, kind: str, namespace: str | None = None, name: str | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.verb, self.kind, self.namespace, self.name = verb, kind, namespace, name

    @property
    def object(self) -> str:
        """``serviceentries "x" in namespace "demo"``, as kubectl words it."""
        plural = KINDS[self.kind].plural if self.kind in KINDS else self.kind
        named = f' "{self.name}"' if self.name else ""
        where = f' in namespace "{self.namespace}"' if self.namespace else " in the whole cluster"
        return f"{plural}{named}{where}"

    @property
    def is_conflict(self) -> bool:
        """Somebody else wrote the object since it was read, or deleted it (404): read again and plan again."""
        return self.status == 409 or (self.is_gone and self.verb in ("patch", "update"))

    @property
    def is_gone(self) -> bool:
        """There is no such object."""
        return self.status == 404

    def __str__(self) -> str:
        return f"Cannot {self.verb} {self.object}: {self.status or 'no answer'} {self.reason}: {self.message}"


class ClusterUnreachable(ClusterError):
    """No API server could be asked: no configuration, no connection, or no trust. `message` has the way out on its second line."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Unreachable", message, "reach", "")

    def __str__(self) -> str:
        return self.message


class Cluster:
    """One connection to one API server.

    `auth` has the keys of the ``kubernetes.core`` authentication options (None = not given). Raises ClusterUnreachable when no usable
    configuration can be made of it; the network is first touched by the first request.
    """

    def __init__(self, auth: Mapping[str, Any] | None = None) -> None:
        # Imported here: it is nearly the whole cost of a task, and argument errors must not pay it. For the same reason the typed API classes are not
        # used (CoreV1Api alone costs 1.6 s of CPU to load in release 37): the client gives configuration, credentials, TLS and the connection pool.
        import kubernetes
        import urllib3

        self._kubernetes, self._streams, self._urllib3 = kubernetes, kubernetes.stream.ws_client, urllib3
        self._auth = dict(auth or {})
        self._configuration = self._load()
        self._client = kubernetes.client.ApiClient(self._configuration)
        self._lock = threading.Lock()
        self.requests = 0
        """How many HTTP requests were sent, retries included; the measure of `tests/bench`."""
        self.writes = 0
        """How many of them changed something."""

    # -- objects ------------------------------------------------------------------------------------------------------------------

    def list(self, kind: str, namespace: str | None = None, labels: str | None = None, name: str | None = None) -> list[dict[str, Any]]:
        """All objects of a kind, in one namespace or (None) in all of them. One request for any number."""
        query = {"labelSelector": labels, "fieldSelector": name and f"metadata.name={name}"}
        answer = self._call("GET", "list", kind, namespace, None, {key: value for key, value in query.items() if value})
        for item in answer["items"]:  # a list names its kind once, for all of its items
            item.setdefault("kind", kind)
            item.setdefault("apiVersion", KINDS[kind].api_version)
        return answer["items"]

    def list_visible(self, kind: str, *namespaces: str) -> list[dict[str, Any]]:
        """All objects of a kind in the cluster, or, where that is forbidden, those of `namespaces`."""
        try:
            return self.list(kind)
        except ClusterError as error:
            if error.status == 403 and namespaces and "cannot impersonate" not in error.message:
                return [obj for namespace in namespaces for obj in self.list(kind, namespace)]
            raise

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """One object, or None when the server says that there is none."""
        try:
            return self._call("GET", "get", kind, namespace, name)
        except ClusterError as error:
            if error.is_gone:
                return None
            raise

    def create(self, obj: Mapping[str, Any], dry_run: bool = False) -> dict[str, Any]:
        """Creates `obj`. Unknown fields are an error, as ``kubectl --validate=strict`` has it."""
        kind, namespace, name = _where(obj)
        return self._call("POST", "create", kind, namespace, name, {**_write(dry_run), "fieldValidation": "Strict"}, obj)

    def replace(self, obj: Mapping[str, Any], dry_run: bool = False) -> dict[str, Any]:
        """Writes the whole object at the resourceVersion in its metadata; a newer one on the server is a conflict (409)."""
        return self._call("PUT", "update", *_where(obj), {**_write(dry_run), "fieldValidation": "Strict"}, obj)

    def patch(self, kind: str, namespace: str, name: str, patch: Mapping[str, Any], dry_run: bool = False) -> dict[str, Any]:
        """A merge patch (RFC 7386), so that nothing but what it names is written; at the resourceVersion in it, where it has one."""
        return self._call("PATCH", "patch", kind, namespace, name, _write(dry_run), patch)

    def delete(self, obj: Mapping[str, Any], dry_run: bool = False) -> None:
        """Deletes the object that was read: another one of the same name (other uid) is a conflict. One that is gone already is fine.

        The dry run stands in the body, since the server reads no query parameters of a DELETE that has one (k8s.io/apiserver, handlers/delete.go);
        the parameter is sent too, for the audit log.
        """
        uid = obj["metadata"].get("uid")
        body = {**({"preconditions": {"uid": uid}} if uid else {}), **({"dryRun": ["All"]} if dry_run else {})}
        try:
            self._call("DELETE", "delete", *_where(obj), {"dryRun": "All"} if dry_run else {}, body)
        except ClusterError as error:
            if not error.is_gone:
                raise

    # -- pods ---------------------------------------------------------------------------------------------------------------------

    def exec(self, namespace: str, pod: str, container: str, command: list[str], timeout: float = 30) -> tuple[int, str, str]:
        """Runs `command` in a container: (exit code, stdout, stderr). Safe to call from several threads."""
        import websocket  # what the client speaks it with; it lets the faults through

        query = [("container", container), ("stdout", "true"), ("stderr", "true"), *(("command", word) for word in command)]
        stream = self._websocket(self._streams.websocket_call, "exec into", namespace, pod, "exec", query)
        out: list[str] = []
        err: list[str] = []
        deadline = time.monotonic() + timeout
        try:
            while stream.is_open() and time.monotonic() < deadline:
                stream.update(timeout=1)
                if stream.peek_stdout():
                    out.append(stream.read_stdout())
                if stream.peek_stderr():
                    err.append(stream.read_stderr())
            if stream.is_open():
                raise ClusterError(0, "Timeout", f"the command did not end within {timeout:.0f} s", "exec into", "Pod", namespace, pod)
            out.append(stream.read_stdout(timeout=0) or "")
            err.append(stream.read_stderr(timeout=0) or "")
            end = json.loads(stream.read_channel(self._streams.ERROR_CHANNEL) or "{}")
        except (websocket.WebSocketException, OSError):
            end = {}
        finally:
            stream.close()
        if end.get("status") == "Success":
            return 0, "".join(out), "".join(err)
        if end.get("reason") == "NonZeroExitCode":
            return int(end["details"]["causes"][0]["message"]), "".join(out), "".join(err)
        reason, why = ("NotStarted", end.get("message")) if end else ("Disconnected", "the connection broke before the command ended")
        raise ClusterError(0, reason, _one_line(why), "run a command in", "Pod", namespace, pod)

    def fetch(self, namespace: str, pod: str, port: int, paths: Sequence[str], timeout: float = 30) -> list[str]:
        """What a port of a pod answers to GETs over HTTP, one after the other on one forwarded connection. Safe to call from several threads."""
        tunnel = self._websocket(self._streams.portforward_call, "forward a port of", namespace, pod, "portforward", [("ports", str(port))])
        connection = http.client.HTTPConnection("localhost", port)
        connection.sock, connection.auto_open = tunnel.socket(port), False
        connection.sock.settimeout(timeout)
        answers = []
        try:
            for path in paths:
                connection.request("GET", f"/{path}")
                answer = connection.getresponse()
                answers.append(answer.read().decode("utf-8", "replace"))
                if answer.status >= 400:
                    raise ClusterError(0, f"HTTP {answer.status}", _one_line(answers[-1]), f"get /{path} from port {port} of", "Pod", namespace, pod)
            return answers
        except (http.client.HTTPException, OSError) as error:
            why = _one_line(tunnel.error(port) or f"{type(error).__name__}: {error}")
            raise ClusterError(0, "Disconnected", why, f"read from port {port} of", "Pod", namespace, pod) from error
        finally:
            connection.close()

    def log(self, namespace: str, pod: str, container: str, since_seconds: int | None = None, tail_lines: int | None = None) -> str:
        """The container's log as text; `since_seconds` counts back from the server's clock."""
        query = {"container": container, "sinceSeconds": since_seconds, "tailLines": tail_lines}
        return self._send("GET", "read the log of", "Pod", namespace, pod, {k: v for k, v in query.items() if v is not None}, subresource="log")

    # -- the wire -----------------------------------------------------------------------------------------------------------------

    def _call(self, method: str, said: str, kind: str, namespace: str | None, name: str | None, query: Any = None, body: Any = None) -> dict[str, Any]:
        try:
            answer = json.loads(self._send(method, said, kind, namespace, name, query, body))
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or ("items" if said == "list" else "kind") not in answer:
            raise ClusterUnreachable(
                f"What answers at {self._configuration.host} is no API server.\n"
                "Check host, kubeconfig and context: the address of a console, or of a proxy that asks people to log in, is not that of the API."
            )
        return answer

    def _send(
        self, method: str, said: str, kind: str, namespace: str | None, name: str | None, query: Any = None, body: Any = None, subresource: str | None = None
    ) -> str:
        """Sends one request, again when the server is busy, and returns the body of the answer."""
        path = KINDS[kind].path(namespace, None if method == "POST" else name, subresource)
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        headers = self._urllib3.HTTPHeaderDict({"Accept": "application/json, */*", "User-Agent": FIELD_MANAGER, **self._login()})
        for header, value in self._impersonation():
            headers.add(header, value)  # one line for each group
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        arguments = {"headers": headers, "body": None if body is None else json.dumps(body), "timeout": self._urllib3.Timeout(*TIMEOUT)}
        for attempt in range(1, TRIES + 1):
            self._count()
            try:
                answer = self._client.rest_client.pool_manager.request(method, url, **arguments)
            except (self._urllib3.exceptions.HTTPError, OSError) as error:
                raise self._unreachable(error) from error
            text = answer.data.decode("utf-8", "replace")
            if answer.status < 400:
                self.writes += method != "GET" and "dryRun" not in (query or {})
                return text
            if answer.status not in (429, 503) or attempt == TRIES:
                raise _refused(answer, text, said, kind, namespace, name)
            time.sleep(_retry_after(answer.headers, attempt))
        raise AssertionError("unreachable")

    def _websocket(self, connect: Callable[..., Any], said: str, namespace: str, pod: str, subresource: str, query: list[tuple[str, str]]) -> Any:
        """What the client's `connect` makes of a connection to a part of a pod."""
        headers = {name.lower(): value for name, value in self._login().items()}
        # Of all headers the client sends these two over a websocket, so whom to act for travels in the second one's value, as lines of its own.
        acting = [f"{name}: {value}" for name, value in self._impersonation()]
        if acting:
            headers["sec-websocket-protocol"] = "\r\n".join(["v4.channel.k8s.io", *acting])
        url = self._configuration.host + KINDS["Pod"].path(namespace, pod, subresource)
        self._count()
        try:
            return connect(self._configuration, "GET", url, query_params=query, headers=headers, _preload_content=False)
        except self._kubernetes.client.ApiException as error:
            refused = re.match(r"Handshake status (\d+) (\w+)", error.reason or "")
            status, reason = (int(refused[1]), refused[2]) if refused else (0, "")
            body = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', error.reason or "")
            message = body[1].replace('\\"', '"') if body else _one_line(error.reason)
            raise ClusterError(status, reason, message, said, "Pod", namespace, pod) from error

    def _login(self) -> dict[str, str]:
        """The header that says who asks; tokens are renewed here, by the client's own hook."""
        settings = self._configuration.auth_settings().values()
        headers = {s["key"]: s["value"] for s in settings if s["in"] == "header" and s["value"]}
        if not headers and self._auth.get("username"):
            headers["authorization"] = self._configuration.get_basic_auth_token()
        return headers

    def _impersonation(self) -> list[tuple[str, str]]:
        user, groups = self._auth.get("impersonate_user"), self._auth.get("impersonate_groups") or []
        return [*([("Impersonate-User", user)] if user else []), *(("Impersonate-Group", group) for group in groups)]

    def _count(self) -> None:
        with self._lock:
            self.requests += 1

    def _unreachable(self, error: Exception) -> ClusterUnreachable:
        text, host = _one_line(error).rstrip(")'\" "), self._configuration.host
        reason = re.split("[('\"]", text)[-1].rpartition(": ")[2]  # urllib3 wraps the cause in the reprs of its own exceptions
        if "CA cert does not include key usage" in text or "Missing Authority Key Identifier" in text:
            return ClusterUnreachable(
                f"The certificate of {host} is refused by Python 3.13 and newer: {text.rpartition(': ')[2]}.\n"
                "Renew the cluster's CA with keyUsage and authority key identifiers, or set validate_certs=false for a cluster that you trust otherwise."
            )
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return ClusterUnreachable(
                f"The certificate of {host} is not signed by a CA that is trusted here: {text.rpartition('] ')[2]}.\n"
                "Give its CA in ca_cert (K8S_AUTH_SSL_CA_CERT) or in the kubeconfig."
            )
        if "NO_CERTIFICATE_OR_CRL_FOUND" in text:
            return ClusterUnreachable(
                f"{self._configuration.ssl_ca_cert} holds no certificate in PEM form.\nGive the CA of the cluster in ca_cert (K8S_AUTH_SSL_CA_CERT)."
            )
        return ClusterUnreachable(
            f"The API server at {host} does not answer: {reason}.\nCheck host, kubeconfig and context, and that this machine can reach it."
        )

    # -- configuration ------------------------------------------------------------------------------------------------------------

    def _load(self) -> Any:
        """A client configuration, with the precedence of ``kubernetes.core``: complete options, kubeconfig and context, in-cluster, default file."""
        auth, config = self._auth, self._kubernetes.config
        given = self._kubernetes.client.Configuration()
        complete = auth.get("host") and (
            auth.get("api_key") or (auth.get("username") and auth.get("password")) or (auth.get("client_cert") and auth.get("client_key"))
        )
        if not complete:
            options = {"context": auth.get("context"), "client_configuration": given, "persist_config": bool(auth.get("persist_config"))}
            kubeconfig = auth.get("kubeconfig")
            try:
                if isinstance(kubeconfig, Mapping):
                    config.load_kube_config_from_dict(config_dict=dict(kubeconfig), **options)
                elif kubeconfig or auth.get("context"):
                    config.load_kube_config(config_file=kubeconfig, **options)
                else:
                    try:
                        config.load_incluster_config(client_configuration=given)
                    except config.ConfigException:
                        config.load_kube_config(**options)
            except Exception as error:  # of a malformed file the client raises whatever its parser or its look-ups raise
                if not auth.get("host"):
                    read = "the kubeconfig given" if isinstance(kubeconfig, Mapping) else kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
                    raise ClusterUnreachable(
                        f"No way to a cluster was found in {read}: {_one_line(error)}\n"
                        "Set kubeconfig (or KUBECONFIG, K8S_AUTH_KUBECONFIG) and context, or host with api_key (K8S_AUTH_HOST, K8S_AUTH_API_KEY)."
                    ) from error
        for option in ("ca_cert", "client_cert", "client_key"):
            if auth.get(option) and not Path(auth[option]).is_file():
                raise ClusterUnreachable(f"There is no file {auth[option]}, which {option} names.\nCorrect the path; it is read where the module runs.")
        if auth.get("host") and "://" not in auth["host"]:
            raise ClusterUnreachable(f'host is "{auth["host"]}", without a scheme.\nWrite https://{auth["host"]}.')
        given.discard_unknown_keys = True
        for option, attribute in _PLAIN_OPTIONS.items():
            if auth.get(option) is not None:
                setattr(given, attribute, auth[option])
        if auth.get("api_key"):
            given.api_key = {"authorization": f"Bearer {auth['api_key']}"}
        if auth.get("proxy_headers"):
            given.proxy_headers = self._proxy_headers(auth["proxy_headers"])
        return given

    @staticmethod
    def _proxy_headers(options: Mapping[str, Any]) -> Any:
        from urllib3.util import make_headers

        return make_headers(**{name: value for name, value in options.items() if value})


_PLAIN_OPTIONS = {
    "host": "host", "username": "username", "password": "password", "client_cert": "cert_file", "client_key": "key_file",
    "ca_cert": "ssl_ca_cert", "validate_certs": "verify_ssl", "proxy": "proxy", "no_proxy": "no_proxy",
}  # fmt: skip


def if_allowed(read: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """What `read` returns, or None for an account that may not read it, where the rest does not depend on it."""
    try:
        return read(*arguments, **keywords)
    except ClusterError as error:
        if error.status == 403:
            return None
        raise


def _where(obj: Mapping[str, Any]) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


def _write(dry_run: bool) -> dict[str, Any]:
    return {"fieldManager": FIELD_MANAGER, **({"dryRun": "All"} if dry_run else {})}


def _refused(answer: Any, text: str, said: str, kind: str, namespace: str | None, name: str | None) -> ClusterError:
    """The error of an answer, in the words of its Status object where it has one."""
    try:
        status = json.loads(text)
        message, reason = status.get("message"), status.get("reason")
    except (ValueError, AttributeError):
        message, reason = text, None
    return ClusterError(answer.status, reason or answer.reason or "", _one_line(message or answer.reason), said, kind, namespace, name)


def _retry_after(headers: Mapping[str, str] | None, attempt: int) -> float:
    """Seconds to wait: what the server asked for (at most 10), else 0.5, 1, 2."""
    try:
        return min(10.0, float((headers or {}).get("Retry-After", "")))
    except ValueError:
        return 0.5 * 2 ** (attempt - 1)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
