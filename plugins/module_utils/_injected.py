# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What Istio's injector puts into a pod, by the names of its templates (istio.io, Sidecar Injection; 1.27 to 1.31). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROXY = "istio-proxy"
"""The container of Envoy, in sidecars and in gateways."""

INIT = "istio-init"
"""The init container that sets the redirection up."""

VALIDATION = "istio-validation"
"""The init container that looks whether Istio's CNI plugin did so."""


def containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All of a pod's containers, those that run before the others last: a native sidecar is one of them."""
    return [*(pod["spec"].get("containers") or ()), *(pod["spec"].get("initContainers") or ())]


def has_proxy(pod: Mapping[str, Any]) -> bool:
    """Whether there is a proxy in the pod."""
    return any(container["name"] == PROXY for container in containers(pod))
