# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The Ansible edge: argument specs, the connection, and errors in plain words.

Every module is this class plus its own options. It knows Ansible and the errors of the layers below; it decides nothing about egress.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ansible.module_utils.basic import AnsibleModule, env_fallback, missing_required_lib

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError, ClusterUnreachable
from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError

try:
    import yaml
except ImportError:  # reported as a missing library when a module starts
    yaml = None


def _env(*names: str) -> tuple[Any, list[str]]:
    return (env_fallback, [f"K8S_AUTH_{name}" for name in names])


AUTH_OPTIONS: dict[str, dict[str, Any]] = {
    "host": {"type": "str", "fallback": _env("HOST")},
    "api_key": {"type": "str", "no_log": True, "fallback": _env("API_KEY")},
    "kubeconfig": {"type": "raw", "fallback": _env("KUBECONFIG")},
    "context": {"type": "str", "fallback": _env("CONTEXT")},
    "username": {"type": "str", "fallback": _env("USERNAME")},
    "password": {"type": "str", "no_log": True, "fallback": _env("PASSWORD")},
    "client_cert": {"type": "path", "aliases": ["cert_file"], "fallback": _env("CERT_FILE", "CLIENT_CERT")},
    "client_key": {"type": "path", "no_log": True, "aliases": ["key_file"], "fallback": _env("KEY_FILE", "CLIENT_KEY")},
    "ca_cert": {"type": "path", "aliases": ["ssl_ca_cert"], "fallback": _env("SSL_CA_CERT", "CA_CERT")},
    "validate_certs": {"type": "bool", "aliases": ["verify_ssl"], "fallback": _env("VERIFY_SSL", "VALIDATE_CERTS")},
    "proxy": {"type": "str", "fallback": _env("PROXY")},
    "no_proxy": {"type": "str", "fallback": _env("NO_PROXY")},
    "proxy_headers": {
        "type": "dict",
        "options": {
            "proxy_basic_auth": {"type": "str", "no_log": True, "fallback": _env("PROXY_HEADERS_PROXY_BASIC_AUTH")},
            "basic_auth": {"type": "str", "no_log": True, "fallback": _env("PROXY_HEADERS_BASIC_AUTH")},
            "user_agent": {"type": "str", "fallback": _env("PROXY_HEADERS_USER_AGENT")},
        },
    },
    "persist_config": {"type": "bool", "fallback": _env("PERSIST_CONFIG")},
    "impersonate_user": {"type": "str", "fallback": _env("IMPERSONATE_USER")},
    "impersonate_groups": {"type": "list", "elements": "str", "fallback": _env("IMPERSONATE_GROUPS")},
}
"""Names, aliases and environment variables of ``kubernetes.core``, so that one ``module_defaults`` and one credential serve both."""

ISTIO_OPTIONS: dict[str, dict[str, Any]] = {
    "istio_namespace": {"type": "str", "default": "istio-system"},
    "revision": {"type": "str", "default": "default"},
}

WAIT_OPTIONS: dict[str, dict[str, Any]] = {
    "wait": {"type": "bool", "default": True},
    "wait_timeout": {"type": "int", "default": 120},
}


class EgressModule(AnsibleModule):
    """An AnsibleModule with the authentication options.

    Takes the options of the module beside the common ones, and any keyword of AnsibleModule.
    """

    def __init__(self, options: Mapping[str, Any], **keywords: Any) -> None:
        super().__init__(argument_spec={**AUTH_OPTIONS, **options}, supports_check_mode=True, **keywords)
        self._cluster: Cluster | None = None
        self._mask_kubeconfig()
        self._refuse_empty()
        if yaml is None:
            self.fail_json(msg=missing_required_lib("PyYAML"))

    def cluster(self, **instead: Any) -> Cluster:
        """A connection made of the authentication options, or what stands `instead` of some. Ends the module when the client library is missing."""
        try:
            self._cluster = Cluster({**{name: self.params.get(name) for name in AUTH_OPTIONS}, **instead})
            return self._cluster
        except ImportError as error:
            self.fail_json(msg=f"{missing_required_lib('kubernetes>=29.0.0')} ({error})")
            raise

    @contextmanager
    def errors_in_plain_words(self) -> Iterator[None]:
        """Turns what the layers below raise into a failed task: what happened to which object, and the way out, in two lines."""
        try:
            yield
        except EgressError as error:
            self.fail_json(msg=str(error), **error.result)
        except ClusterError as error:
            self.fail_json(msg=f"{self._explain(error)} {self._written()}")

    def warn_all(self, warnings: list[str]) -> None:
        for warning in dict.fromkeys(warnings):
            self.warn(warning)

    def _explain(self, error: ClusterError) -> str:
        name = (self._name or "").rsplit(".", 1)[-1]
        if isinstance(error, ClusterUnreachable):
            return str(error)
        if error.status == 401:
            return (
                f"The API server does not accept the credentials (401, while trying to {error.verb} {error.object}).\n"
                "Renew the token or certificate, or choose another kubeconfig or context."
            )
        if error.status == 403 and "cannot impersonate" in error.message:
            return (
                f"Not allowed to impersonate (403): {error.message}.\n"
                "Leave impersonate_user and impersonate_groups out, or give the account the right to impersonate."
            )
        if error.status == 403 and "is forbidden: User" in error.message:
            user = re.search(r'User "([^"]*)"', error.message)
            return (
                f'Not allowed to {error.verb} {error.object} (403, user "{user.group(1) if user else "?"}").\n'
                f"Give it the rights of docs/rbac.md, section {name}."
            )
        if error.status == 404 and error.name is None and error.verb == "list":
            return (
                f"The cluster does not know {error.object.split(' ')[0]}: Istio, or at least its CRDs, is not installed there (404).\n"
                "Install Istio, or choose the kubeconfig and context of the cluster that has it."
            )
        if error.status == 404 and "namespaces" in error.message:
            return f'Cannot {error.verb} {error.object}: there is no namespace "{error.namespace}" (404).\nCreate the namespace first, or correct the option.'
        if error.status == 400 and "HTTP request to an HTTPS server" in error.message:
            return f"Cannot {error.verb} {error.object}: the API server speaks https only (400).\nWrite host with https:// in front."
        if error.is_conflict and not error.is_gone:
            return (
                f"Cannot {error.verb} {error.object}: somebody keeps changing it at the same time (409): {error.message}\n"
                "Find the other writer, or run the task again."
            )
        if not error.status:
            return f"Cannot {error.verb} {error.object}: {error.message}.\nSee that the pod runs and the way to the API server holds; then run the task again."
        return f"Cannot {error.verb} {error.object}: {error.message} ({error.status} {error.reason}).\nCorrect what the server refused and run the task again."

    def _written(self) -> str:
        writes = self._cluster.writes if self._cluster else 0
        return f"What was written before ({writes} writes) stays; run the task again to finish." if writes else "Nothing was written."

    def _refuse_empty(self) -> None:
        """A namespace that came out empty is a mistake in the playbook, and must not mean the whole mesh."""
        for name in ("namespace", "istio_namespace", "revision"):
            if self.params.get(name) == "":
                self.fail_json(
                    msg=f"{name} is empty: perhaps a variable of the playbook has no value.\nGive it a value: an empty one never means the whole mesh."
                )

    def _mask_kubeconfig(self) -> None:
        """Keeps secrets of a kubeconfig given as a dictionary out of logs."""
        kubeconfig = self.params.get("kubeconfig")
        if not isinstance(kubeconfig, Mapping):
            return
        for user in kubeconfig.get("users") or []:
            for key in ("token", "password", "client-key-data"):
                if (user.get("user") or {}).get(key):
                    self.no_log_values.add(user["user"][key])
