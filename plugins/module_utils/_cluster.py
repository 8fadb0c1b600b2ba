# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The Kubernetes edge: list, read, create, replace, patch, delete, exec and log through the ``kubernetes`` client.

Objects go in and come out as plain dictionaries in the API's own spelling. This file knows how to reach an API server and what its
answers mean; it knows nothing of Istio's semantics and nothing of Ansible.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELD_MANAGER = "istio-egress"
TRIES = 4
"""How often a request is sent in all when the server says that it is busy (429, 503) or the connection breaks before an answer."""

TIMEOUT = (10, 60)
"""Seconds to connect, and to wait for the next bytes of an answer."""


@dataclass(frozen=True)
class Kind:
    """Where a kind lives in the API, and which typed class of the client serves it (``CustomObjectsApi`` when `api` is empty)."""

    name: str
    group: str
    version: str
    plural: str
    api: str = ""
    snake: str = ""


KINDS = {
    k.name: k
    for k in (
        Kind("ServiceEntry", "networking.istio.io", "v1", "serviceentries"),
        Kind("Sidecar", "networking.istio.io", "v1", "sidecars"),
        Kind("Gateway", "networking.istio.io", "v1", "gateways"),
        Kind("DestinationRule", "networking.istio.io", "v1", "destinationrules"),
        Kind("VirtualService", "networking.istio.io", "v1", "virtualservices"),
        Kind("Service", "", "v1", "services", "CoreV1Api", "service"),
        Kind("ConfigMap", "", "v1", "configmaps", "CoreV1Api", "config_map"),
        Kind("Pod", "", "v1", "pods", "CoreV1Api", "pod"),
        Kind("Deployment", "apps", "v1", "deployments", "AppsV1Api", "deployment"),
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
        """Somebody else wrote the object since it was read: read again and plan again."""
        return self.status == 409

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
        import kubernetes  # imported here: it is the whole cost of a task, and argument errors must not pay it
        import urllib3

        self._kubernetes, self._http_error = kubernetes, urllib3.exceptions.HTTPError
        self._auth = dict(auth or {})
        self._configuration = self._load()
        self._client = self._new_client()
        self._patcher = self._new_client()
        self._patcher.set_default_header("Content-Type", "application/json-patch+json")  # for custom objects the client only knows merge-patch
        self._apis: dict[tuple[str, bool], Any] = {}
        self._lock = threading.Lock()
        self.requests = 0
        """How many HTTP requests were sent, retries included; the measure of `tests/bench`."""

    # -- objects ------------------------------------------------------------------------------------------------------------------

    def list(self, kind: str, namespace: str | None = None, labels: str | None = None) -> list[dict[str, Any]]:
        """All objects of a kind, in one namespace or (None) in all of them. One request for any number that the server has in its cache."""
        selector = {"label_selector": labels} if labels else {}
        verb = "list_namespaced" if namespace else "list"
        return self._call(verb, kind, "list", namespace, None, **selector).get("items") or []

    def list_visible(self, kind: str, namespace: str) -> list[dict[str, Any]]:
        """All objects of a kind in the cluster, or, where that is forbidden, those of `namespace`."""
        try:
            return self.list(kind)
        except ClusterError as error:
            if error.status == 403 and "cannot impersonate" not in error.message:
                return self.list(kind, namespace)
            raise

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """One object, or None when the server says that there is none."""
        try:
            return self._call("get_namespaced", kind, "get", namespace, name)
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def create(self, obj: Mapping[str, Any], dry_run: bool = False) -> dict[str, Any]:
        """Creates `obj`. Unknown fields are an error, as ``kubectl --validate=strict`` has it."""
        return self._call("create_namespaced", obj["kind"], "create", *_where(obj), body=dict(obj), **_write(dry_run), field_validation="Strict")

    def replace(self, obj: Mapping[str, Any], dry_run: bool = False) -> dict[str, Any]:
        """Writes the whole object at the resourceVersion in its metadata; a newer one on the server is a conflict (409)."""
        return self._call("replace_namespaced", obj["kind"], "update", *_where(obj), body=dict(obj), **_write(dry_run), field_validation="Strict")

    def patch(self, kind: str, namespace: str, name: str, operations: list[dict[str, Any]], dry_run: bool = False) -> dict[str, Any]:
        """A JSON patch (RFC 6902), so that nothing but the paths named is written."""
        return self._call("patch_namespaced", kind, "patch", namespace, name, body=operations, **_write(dry_run))

    def delete(self, obj: Mapping[str, Any], dry_run: bool = False) -> None:
        """Deletes the object that was read: another one of the same name (other uid) is a conflict. One that is gone already is fine.

        The dry run stands in the body, since the server reads no query parameters of a DELETE that has one (k8s.io/apiserver, handlers/delete.go);
        the parameter is sent too, for the audit log.
        """
        uid = obj["metadata"].get("uid")
        body: Any = {"preconditions": {"uid": uid}} if uid else {}
        arguments: dict[str, Any] = {}
        if dry_run:
            body["dryRun"] = ["All"]
            arguments["dry_run"] = "All"
        try:
            self._call("delete_namespaced", obj["kind"], "delete", *_where(obj), body=body, **arguments)
        except ClusterError as error:
            if error.status != 404:
                raise

    # -- pods ---------------------------------------------------------------------------------------------------------------------

    def exec(self, namespace: str, pod: str, container: str, command: list[str], timeout: float = 30) -> tuple[int, str, str]:
        """Runs `command` in a container: (exit code, stdout, stderr). Safe to call from several threads.

        Each call makes a client of its own: until release 37 ``kubernetes.stream`` swaps a method of the client while it runs.
        """
        core = self._kubernetes.client.CoreV1Api(self._new_client())
        self._count()
        try:
            stream = self._kubernetes.stream.stream(
                core.connect_get_namespaced_pod_exec, pod, namespace, container=container, command=command,
                stdin=False, stdout=True, stderr=True, tty=False, _preload_content=False,
            )  # fmt: skip
        except self._kubernetes.client.ApiException as error:
            raise self._error(error, "exec into", "Pod", namespace, pod) from error
        except Exception as error:
            raise ClusterError(0, type(error).__name__, _one_line(error), "exec into", "Pod", namespace, pod) from error
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
            return stream.returncode or 0, "".join(out), "".join(err)
        finally:
            stream.close()

    def log(self, namespace: str, pod: str, container: str, since_seconds: int | None = None, tail_lines: int | None = None) -> str:
        """The container's log as text; `since_seconds` counts back from the server's clock."""
        arguments = {k: v for k, v in (("since_seconds", since_seconds), ("tail_lines", tail_lines)) if v is not None}
        return self._raw("CoreV1Api", "read_namespaced_pod_log", "read the log of", "Pod", namespace, pod, container=container, **arguments)

    # -- the wire -----------------------------------------------------------------------------------------------------------------

    def _call(self, verb: str, kind: str, said: str, namespace: str | None, name: str | None, **arguments: Any) -> dict[str, Any]:
        """One API call as a dictionary. `verb` is that of CustomObjectsApi; typed classes name their methods after the kind."""
        k = KINDS[kind]
        if k.api:
            method = {"list": f"list_{k.snake}_for_all_namespaces", "get_namespaced": f"read_namespaced_{k.snake}"}.get(verb, f"{verb}_{k.snake}")
            api = k.api
        else:
            method = "list_cluster_custom_object" if verb == "list" else f"{verb}_custom_object"
            arguments.update(group=k.group, version=k.version, plural=k.plural)
            api = "CustomObjectsApi"
        text = self._raw(api, method, said, kind, namespace, name, **arguments)
        answer = json.loads(text)
        if "items" in answer:  # a list names its kind once, for all of its items
            for item in answer["items"]:
                item.setdefault("kind", kind)
                item.setdefault("apiVersion", f"{k.group}/{k.version}".lstrip("/"))
        return answer

    def _raw(self, api: str, method: str, said: str, kind: str, namespace: str | None, name: str | None, **arguments: Any) -> str:
        """Sends one request, again when the server is busy, and returns the body undecoded: models would cost time and drop unknown fields."""
        if namespace:
            arguments["namespace"] = namespace
        if name and not method.startswith("create_"):  # the body names a new object, the path does not
            arguments["name"] = name
        arguments.update(_preload_content=False, _request_timeout=TIMEOUT)
        patches = method.startswith("patch_")
        if (api, patches) not in self._apis:
            self._apis[api, patches] = getattr(self._kubernetes.client, api)(self._patcher if patches else self._client)
        call = getattr(self._apis[api, patches], method)
        for attempt in range(1, TRIES + 1):
            self._count()
            try:
                return call(**arguments).data.decode("utf-8")
            except self._kubernetes.client.ApiException as error:
                if error.status in (429, 503) and attempt < TRIES:
                    time.sleep(_retry_after(error.headers, attempt))
                    continue
                raise self._error(error, said, kind, namespace, name) from error
            except (self._http_error, OSError) as error:
                raise self._unreachable(error) from error
        raise AssertionError("unreachable")

    def _count(self) -> None:
        with self._lock:
            self.requests += 1

    @staticmethod
    def _error(error: Any, said: str, kind: str, namespace: str | None, name: str | None) -> ClusterError:
        body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else (error.body or "")
        try:
            status = json.loads(body)
            message, reason = status.get("message") or "", status.get("reason") or error.reason
        except (ValueError, AttributeError):
            message, reason = body, error.reason
        return ClusterError(error.status or 0, reason or "", _one_line(message or error.reason or error), said, kind, namespace, name)

    def _unreachable(self, error: Exception) -> ClusterUnreachable:
        text, host = _one_line(error).rstrip(")'\" "), self._configuration.host
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
            f"The API server at {host} does not answer: {text.rpartition(': ')[2]}.\nCheck host, kubeconfig and context, and that this machine can reach it."
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

    def _new_client(self) -> Any:
        client = self._kubernetes.client.ApiClient(self._configuration)
        if self._auth.get("username") and not self._auth.get("api_key"):
            client.set_default_header("Authorization", self._configuration.get_basic_auth_token())
        if self._auth.get("impersonate_user"):
            client.set_default_header("Impersonate-User", self._auth["impersonate_user"])
        groups = self._auth.get("impersonate_groups") or []
        if groups:
            _send_groups(client, groups)
        return client


_PLAIN_OPTIONS = {
    "host": "host", "username": "username", "password": "password", "client_cert": "cert_file", "client_key": "key_file",
    "ca_cert": "ssl_ca_cert", "validate_certs": "verify_ssl", "proxy": "proxy", "no_proxy": "no_proxy",
}  # fmt: skip


def _send_groups(client: Any, groups: list[str]) -> None:
    """Sends one ``Impersonate-Group`` header per group.

    The client's headers are a dictionary, which can hold one; urllib3's HTTPHeaderDict holds several of one name, so the last stage
    before the wire (`rest_client.pool_manager.request`) is given one of those.
    """
    from urllib3 import HTTPHeaderDict

    manager = client.rest_client.pool_manager
    request = manager.request

    def with_groups(method: str, url: str, **arguments: Any) -> Any:
        headers = HTTPHeaderDict(arguments.pop("headers", None) or {})
        for group in groups:
            headers.add("Impersonate-Group", group)
        return request(method, url, headers=headers, **arguments)

    manager.request = with_groups


def _where(obj: Mapping[str, Any]) -> tuple[str, str | None]:
    return obj["metadata"]["namespace"], obj["metadata"].get("name")


def _write(dry_run: bool) -> dict[str, Any]:
    return {"field_manager": FIELD_MANAGER, **({"dry_run": "All"} if dry_run else {})}


def _retry_after(headers: Mapping[str, str] | None, attempt: int) -> float:
    """Seconds to wait: what the server asked for (at most 10), else 0.5, 1, 2."""
    try:
        return min(10.0, float((headers or {}).get("Retry-After", "")))
    except ValueError:
        return 0.5 * 2 ** (attempt - 1)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
