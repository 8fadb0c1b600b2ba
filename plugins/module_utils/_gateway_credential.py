# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Sees that the Secret is there that an egress gateway shall speak TLS with, before anybody depends on it.

Istio itself accepts the name of a Secret that does not exist, and the gateway then answers 503 to every request.
"""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster, ClusterError
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway import GatewayError, Route

_KEYS = {"simple": (("ca.crt", "cacert"),), "mutual": (("tls.crt", "cert"), ("tls.key", "key"))}
"""For each mode the keys that must be in the Secret, in their two spellings (istio/istio security/pkg/credentials/kube)."""


def check_credentials(cluster: Cluster, routes: Iterable[Route]) -> list[str]:
    """Warnings about Secrets that may not be looked at. Raises GatewayError for one that does not exist or lacks a key."""
    warnings = []
    for namespace, name, mode in sorted({(r.gateway.partition("/")[0], r.origination.credential, r.origination.mode) for r in routes if r.origination}):
        if not name:
            continue
        try:
            secret = cluster.get("Secret", namespace, name)
        except ClusterError as error:
            if error.status != 403:
                raise
            warnings.append(f"Secret {namespace}/{name} could not be looked at (403); without it, or without its keys, the gateway answers 503.")
            continue
        keys = " and ".join(spellings[0] for spellings in _KEYS[mode])
        if secret is None:
            raise GatewayError(
                f'There is no Secret "{name}" in namespace "{namespace}", where the gateway looks for it; nothing was written.\n'
                f"Create it there with {keys}, or correct the option credential."
            )
        missing = [spellings[0] for spellings in _KEYS[mode] if not set(spellings) & set(secret.get("data") or {})]
        if missing:
            raise GatewayError(
                f"Secret {namespace}/{name} has no {' and no '.join(missing)}, which tls {mode} needs; nothing was written.\nAdd it to the Secret."
            )
    return warnings
