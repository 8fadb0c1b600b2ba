# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Finds egress gateways in a cluster, by what runs behind their Service, however they were installed."""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway import HTTP_PORT, TLS_PORT, Gateway, GatewayError
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import routers


def find_gateways(cluster: Cluster, references: Iterable[str], required: str | None) -> dict[str, Gateway]:
    """The gateways of the references (namespace/service), by reference.

    Raises GatewayError when the `required` one has no Service, lacks a port, or has no proxy that is ready. Of the others, those that are gone
    are made up from their name, so that what leads to them can be removed.
    """
    return {reference: _find(cluster, reference, reference == required) for reference in sorted(references)}


def _find(cluster: Cluster, reference: str, required: bool) -> Gateway:
    namespace, _sep, name = reference.partition("/")
    if not namespace or not name or "/" in name:
        raise GatewayError(f'gateway is "{reference}".\nWrite namespace/name of the Service of the egress gateway, such as istio-system/istio-egressgateway.')
    service = cluster.get("Service", namespace, name)
    if service is None:
        if required:
            raise GatewayError(
                f"There is no egress gateway {reference}: no Service of that name. Nobody was sent there.\n"
                "Deploy one (role egress_gateway_deploy, or istioctl with an egress gateway), or correct the option gateway."
            )
        return Gateway(namespace, name, (("istio", "egressgateway"),))
    selector = service["spec"].get("selector") or {}
    ports = {p["port"]: p.get("targetPort", p["port"]) for p in service["spec"].get("ports") or ()}
    if required:
        missing = [str(p) for p in (HTTP_PORT, TLS_PORT) if p not in ports]
        if missing:
            raise GatewayError(
                f"Service {reference} has no port {' and '.join(missing)}, which the way through the gateway needs.\n"
                f"Add to its spec.ports: {', '.join(f'{{name: port-{p}, port: {p}, targetPort: 8{int(p):03d}}}' for p in missing)}."
            )
        labels = ",".join(f"{k}={v}" for k, v in sorted(selector.items()))
        found = routers(cluster.list("Pod", namespace, labels=labels)) if selector else []
        if not any(proxy.ready for proxy in found):
            raise GatewayError(
                f"Egress gateway {reference} has no proxy that is ready ({len(found)} pods). Nobody was sent there.\n"
                "Bring its Deployment up (kubectl get pods shows why it is not), then run the task again."
            )
    target = ports.get(TLS_PORT, 8443)
    return Gateway(namespace, name, tuple(sorted(selector.items())), target if isinstance(target, int) else 8443)
