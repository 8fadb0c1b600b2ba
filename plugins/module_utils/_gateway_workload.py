# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. An egress gateway as a workload: what a Service and its pods say they are for, and the objects of one that we deploy.

Pure: Services, Deployments and pods go in; a judgement, objects and a Plan come out. The objects are those of Istio's own chart ``gateway`` (1.31),
so that a gateway of ours is found and understood like any other.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils import _ownership
from ansible_collections.meshops.istio_egress.plugins.module_utils._gateway import HTTP_PORT, TLS_PORT, GatewayError, Route
from ansible_collections.meshops.istio_egress.plugins.module_utils._injected import PROXY
from ansible_collections.meshops.istio_egress.plugins.module_utils._objects import Object
from ansible_collections.meshops.istio_egress.plugins.module_utils._ownership import MANAGED_BY, MANAGED_BY_LABEL, owner_of
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan, Wait
from ansible_collections.meshops.istio_egress.plugins.module_utils._proxies import Proxy

DEFAULT_NAME = "istio-egressgateway"
GATEWAY_LABEL = "istio-egress.meshops.io/gateway"
"""On all objects of a gateway that we made, and its selector: ``NAMESPACE.NAME``. A Gateway resource selects pods in all namespaces, so one that is meant for
another gateway must not find these."""
DEFAULTS: dict[str, Any] = {
    "ports": (HTTP_PORT, TLS_PORT), "replicas": 2, "drain_timeout": 60, "read_secrets": True,
    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
}  # fmt: skip
"""What a new gateway gets where nothing is said. One that exists keeps what it has."""
MINIMUM_DRAIN = "5s"
"""How long an ending proxy takes connections at the least: until clients know that it goes."""

_RESERVED = {15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090}
"""Ports of the proxy itself (istio.io, "Ports used by Istio")."""


# -- what a gateway is for ----------------------------------------------------------------------------------------------------------

EGRESS, INGRESS, EAST_WEST, UNKNOWN = "egress", "ingress", "east-west", "unknown"

_WORDS = {EGRESS: re.compile("egress"), INGRESS: re.compile("ingress"), EAST_WEST: re.compile("east-?west")}
_COMPONENTS = {"EgressGateways": EGRESS, "IngressGateways": INGRESS}
_CLASS = "gateway.networking.k8s.io/gateway-class-name"
_GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
_NAMING = ("istio", "app", "app.kubernetes.io/name", "app.kubernetes.io/component", _GATEWAY_NAME)
"""Labels whose values name a gateway, by convention of Istio's charts, of Kubernetes, and of the Gateway API."""
_EAST_WEST_PORT = 15443


@dataclass(frozen=True)
class Found:
    """A Service with gateway proxies behind it, or with a Deployment that would run some.

    `purpose` is EGRESS, INGRESS, EAST_WEST or UNKNOWN, `reason` says what tells; `proxies` are those that run, ready or not.
    """

    service: Object
    deployment: Object | None
    proxies: tuple[Proxy, ...]
    purpose: str
    reason: str

    @property
    def place(self) -> tuple[str, str]:
        """Namespace and name of the Service."""
        return _place(self.service)

    @property
    def reference(self) -> str:
        return "/".join(self.place)

    @property
    def made_here(self) -> bool:
        return is_ours(self.service)

    @property
    def installed_by(self) -> str:
        return installed_by(self.service)

    @property
    def ready(self) -> int:
        return sum(proxy.ready for proxy in self.proxies)

    def describe(self) -> dict[str, Any]:
        """How the gateway appears in a list of what was found."""
        return {"gateway": self.reference, "purpose": self.purpose, "reason": self.reason, "installed_by": self.installed_by, "ready": self.ready}


def is_ours(obj: Mapping[str, Any]) -> bool:
    """Whether istio_egress_gateway_deploy made the object."""
    return _ownership.is_ours(obj) and GATEWAY_LABEL in obj["metadata"]["labels"]


def installed_by(service: Mapping[str, Any]) -> str:
    """Who installed the gateway of a Service, told by the marks that installers leave."""
    labels, annotations = service["metadata"].get("labels") or {}, service["metadata"].get("annotations") or {}
    if is_ours(service):
        return "istio_egress_gateway_deploy"
    if "gateway.istio.io/managed" in labels or _CLASS in labels:
        return f"Gateway API (Gateway {labels.get(_GATEWAY_NAME, 'of unknown name')})"
    if "install.operator.istio.io/owning-resource" in labels or "operator.istio.io/managed" in labels:
        return "istioctl"
    if annotations.get("meta.helm.sh/release-name"):
        return f"Helm (release {annotations['meta.helm.sh/release-name']})"
    if "helm.sh/chart" in labels:
        return f"Helm (chart {labels['helm.sh/chart']}, rendered)"
    return f"hand ({owner_of(service)})"


def is_gateway_template(workload: Mapping[str, Any]) -> bool:
    """Whether the pods of a Deployment are gateways: their proxy runs as ``router``, or comes from the injection template ``gateway``."""
    template = workload["spec"]["template"]
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    templates = re.split(r"[\s,]+", annotations.get("inject.istio.io/templates") or "")
    return "gateway" in templates or any(c["name"] == PROXY and "router" in (c.get("args") or ()) for c in template["spec"].get("containers") or ())


def find(services: Iterable[Object], deployments: Iterable[Object], proxies: Iterable[Proxy], virtual_services: Iterable[Mapping[str, Any]]) -> list[Found]:
    """The gateways among `services`, by what runs or would run behind them. `proxies` are those that run as ``router``."""
    templates = [d for d in deployments if is_gateway_template(d)]
    routers, clients = list(proxies), list(virtual_services)
    result = []
    for service in services:
        namespace, selector = service["metadata"]["namespace"], service["spec"].get("selector") or {}
        if not selector:
            continue
        behind = tuple(p for p in routers if p.namespace == namespace and _selects(selector, p.labels))
        owner = next((d for d in templates if d["metadata"]["namespace"] == namespace and _selects(selector, _template_labels(d))), None)
        if behind or owner:
            labels = {**(_template_labels(owner) if owner else {}), **(behind[0].labels if behind else {})}
            result.append(Found(service, owner, behind, *purpose(service, labels, clients)))
    return sorted(result, key=lambda f: f.reference)


def purpose(service: Mapping[str, Any], pod_labels: Mapping[str, str], virtual_services: Iterable[Mapping[str, Any]] = ()) -> tuple[str, str]:
    """What a gateway is for, and what tells: the first sign that is not contradicted by another of the same kind.

    The proxies of all kinds of gateways are alike, so it is told by what people write on them, else by who sends there, else by the Service's type.
    """
    metadata, spec = service["metadata"], service["spec"]
    labels = {**pod_labels, **(metadata.get("labels") or {})}
    if is_ours(service):
        return EGRESS, f"label {MANAGED_BY_LABEL}: {MANAGED_BY}"
    if labels.get(_CLASS) == "istio-east-west" or any(p["port"] == _EAST_WEST_PORT for p in spec.get("ports") or ()):
        return EAST_WEST, f"label {_CLASS}" if labels.get(_CLASS) == "istio-east-west" else f"port {_EAST_WEST_PORT}"
    if labels.get("operator.istio.io/component") in _COMPONENTS:
        return _COMPONENTS[labels["operator.istio.io/component"]], f"label operator.istio.io/component: {labels['operator.istio.io/component']}"
    named = {f"label {key}": value for key, value in {**labels, **(spec.get("selector") or {})}.items() if key in _NAMING}
    for texts in (named, {"the Service's name": metadata["name"]}, {"the namespace's name": metadata["namespace"]}):
        says = {word: f"{where}: {text}" for where, text in texts.items() for word, pattern in _WORDS.items() if pattern.search(text.lower())}
        if len(says) == 1:
            return next(iter(says.items()))
    sender = next((v for v in virtual_services if leads_to(v, metadata["namespace"], metadata["name"])), None)
    if sender:
        return EGRESS, f"VirtualService {sender['metadata']['namespace']}/{sender['metadata']['name']} sends clients of the mesh there"
    if spec.get("type") in ("LoadBalancer", "NodePort") or spec.get("externalIPs"):
        return INGRESS, f"a Service of type {spec.get('type') or 'ClusterIP with externalIPs'}"
    return UNKNOWN, "neither a name, nor a label, nor a VirtualService says what it is for"


def leads_to(virtual_service: Mapping[str, Any], namespace: str, name: str) -> bool:
    """Whether a VirtualService sends clients of the mesh to a Service."""
    spec = virtual_service["spec"]
    if "mesh" not in (spec.get("gateways") or ["mesh"]):
        return False
    here = virtual_service["metadata"]["namespace"]
    names = {f"{name}.{namespace}.svc.cluster.local", f"{name}.{namespace}.svc", f"{name}.{namespace}", *([name] if here == namespace else [])}
    rules = [rule for kind in ("http", "tls", "tcp") for rule in spec.get(kind) or ()]
    return any(to["destination"]["host"] in names for rule in rules for to in rule.get("route") or () if "destination" in to)


def choose(found: Iterable[Found], istio_namespace: str) -> Found | None:
    """The gateway to use when none was named: one for egress; of several one that serves, one of ours, one beside the control plane."""
    candidates = [f for f in found if f.purpose == EGRESS]
    return min(candidates, key=lambda f: (not f.ready, not f.made_here, f.service["metadata"]["namespace"] != istio_namespace, f.reference), default=None)


def _place(obj: Mapping[str, Any]) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _template_labels(deployment: Mapping[str, Any]) -> dict[str, str]:
    return (deployment["spec"]["template"].get("metadata") or {}).get("labels") or {}


def _selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


# -- what is wanted -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Autoscale:
    """Limits and target of a HorizontalPodAutoscaler; `cpu` is in percent of what is requested."""

    minimum: int
    maximum: int
    cpu: int


@dataclass(frozen=True)
class Settings:
    """An egress gateway as it shall be. None means: as it is, or for a new one as DEFAULTS have it."""

    ports: tuple[int, ...] | None = None
    replicas: int | None = None
    autoscale: Autoscale | None = None
    resources: Mapping[str, Any] | None = None
    drain_timeout: int | None = None
    read_secrets: bool | None = None
    revision: str | None = None
    istio_namespace: str = "istio-system"


_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_UNITS = {None: Decimal(1), "m": Decimal("0.001")} | {
    f"{unit}{binary}": Decimal(1024 if binary else 1000) ** power for power, unit in enumerate("kMGTPE", 1) for binary in ("", "i")
}
_UNITS["Ki"] = _UNITS["ki"]


def parse(params: Mapping[str, Any]) -> Settings:
    """Settings from a module's options. Raises GatewayError for what could never work, before anything is written."""
    if params["name"] is not None and not _NAME.fullmatch(params["name"]):
        raise GatewayError(f'name is "{params["name"]}", which no Service can have.\nUse at most 63 lower case letters, digits and hyphens, a letter first.')
    for option, least in (("replicas", 1), ("drain_timeout", 5)):
        if params[option] is not None and params[option] < least:
            hint = "To take a gateway away, use state=absent." if option == "replicas" else "Clients need these seconds to learn that a pod goes."
            raise GatewayError(f"{option} is {params[option]}, less than {least}.\n{hint}")
    return Settings(
        ports=_ports(params["ports"]),
        replicas=params["replicas"],
        autoscale=_autoscale(params["autoscale"], params["resources"]),
        resources=_resources(params["resources"]),
        drain_timeout=params["drain_timeout"],
        read_secrets=params["read_secrets"],
        revision=params["revision"],
        istio_namespace=params["istio_namespace"],
    )


def _ports(given: Sequence[int] | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    targets: dict[int, int] = {}
    for port in given:
        if not 0 < port < 65536:
            raise GatewayError(f"ports: {port} is not a port.\nUse numbers from 1 to 65535.")
        if port in _RESERVED or target_port(port) in _RESERVED:
            raise GatewayError(f"ports: {port} is a port of the proxy itself.\nChoose another one; Istio keeps {', '.join(map(str, sorted(_RESERVED)))}.")
        other = targets.setdefault(target_port(port), port)
        if other != port:
            raise GatewayError(f"ports: {other} and {port} would both lead to port {target_port(port)} of the pods.\nLeave one of them out.")
    if not given:
        raise GatewayError("ports is empty, and a Service needs one.\nLeave the option out for 80 and 443.")
    return tuple(dict.fromkeys(given))


def _autoscale(given: Mapping[str, Any] | None, resources: Mapping[str, Any] | None) -> Autoscale | None:
    if given is None:
        return None
    if not 1 <= given["min"] <= given["max"] or given["cpu"] < 1:
        raise GatewayError(
            f"autoscale: from {given['min']} to {given['max']} pods at {given['cpu']} % cannot be.\nGive 1 <= min <= max, and cpu in percent of the request."
        )
    if resources is not None and not any("cpu" in (resources.get(kind) or {}) for kind in ("requests", "limits")):
        raise GatewayError("autoscale goes by the CPU that pods request, and resources requests none.\nAdd requests.cpu to resources.")
    return Autoscale(given["min"], given["max"], given["cpu"])


def _resources(given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Quantities as text, as the API wants them."""
    if given is None:
        return None
    unknown = sorted(set(given) - {"requests", "limits"})
    if unknown:
        raise GatewayError(f"resources has no key {unknown[0]}.\nKeys are requests and limits, each a dictionary such as {{cpu: 100m, memory: 128Mi}}.")
    result: dict[str, dict[str, str]] = {}
    for kind, amounts in given.items():
        for name, amount in (amounts or {}).items():
            if not _QUANTITY.fullmatch(str(amount)):
                raise GatewayError(f"resources: {kind}.{name} is {amount!r}, which is not a quantity.\nWrite 2, 500m or 0.5 for CPU, 256Mi or 1Gi for memory.")
            result.setdefault(kind, {})[name] = str(amount)
    return result


def target_port(port: int) -> int:
    """Where a port of the Service leads in the pod: not to a privileged port, which a proxy without rights may not open; 80 → 8080, as istioctl has it."""
    return port + 8000 if port < 1024 else port


# -- objects of a gateway that we deploy --------------------------------------------------------------------------------------------


def workload_objects(namespace: str, name: str, settings: Settings, live: Mapping[str, Object | None]) -> list[Object]:
    """The objects of a gateway, in the order in which they are made. A value of None in one says that the key shall not be there.

    `live` has what exists under these names, by kind: what the settings do not say stays as it is there.
    """
    identity = f"{namespace}.{name}"
    value = identity if len(identity) <= 63 else f"{name[:50].rstrip('-')}.{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
    selector, labels = {GATEWAY_LABEL: value}, {GATEWAY_LABEL: value, "app": name, MANAGED_BY_LABEL: MANAGED_BY}
    if (namespace, name) == (settings.istio_namespace, DEFAULT_NAME):
        labels["istio"] = "egressgateway"  # it stands where istioctl puts one, so what was written for that one finds it

    def new(kind: str, **rest: Any) -> Object:
        return {"apiVersion": _API_VERSIONS[kind], "kind": kind, "metadata": {"name": _name_of(kind, name), "namespace": namespace, "labels": labels}, **rest}

    result = [new("ServiceAccount")]
    if _reads_secrets(settings, live):
        # istiod hands a Secret to a gateway only when the gateway's own account may list Secrets (pilot/pkg/credentials/kube, ``Authorize``)
        result.append(new("Role", rules=[{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "watch", "list"]}]))
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": _name_of("Role", name)}
        result.append(new("RoleBinding", roleRef=role, subjects=[{"kind": "ServiceAccount", "name": name, "namespace": namespace}]))
    ports = [_service_port(p) for p in settings.ports or (() if live.get("Service") else DEFAULTS["ports"])]
    result.append(new("Deployment", spec=_deployment(name, selector, labels, ports, settings, live.get("Deployment"))))
    result.append(new("Service", spec={"type": "ClusterIP", "selector": selector, **({"ports": ports} if ports else {})}))
    result.append(new("PodDisruptionBudget", spec={"maxUnavailable": 1, "selector": {"matchLabels": selector}}))
    if settings.autoscale:
        target = {"type": "Utilization", "averageUtilization": settings.autoscale.cpu}
        spec = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": settings.autoscale.minimum,
            "maxReplicas": settings.autoscale.maximum,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        }
        result.append(new("HorizontalPodAutoscaler", spec=spec))
    return result


def _reads_secrets(settings: Settings, live: Mapping[str, Object | None]) -> bool:
    if settings.read_secrets is not None:
        return settings.read_secrets
    before = [kind for kind in ("Role", "RoleBinding") if live.get(kind) and is_ours(live[kind])]
    return bool(before) if live.get("Deployment") else DEFAULTS["read_secrets"]


_API_VERSIONS = {
    "ServiceAccount": "v1", "Role": "rbac.authorization.k8s.io/v1", "RoleBinding": "rbac.authorization.k8s.io/v1", "Deployment": "apps/v1",
    "Service": "v1", "PodDisruptionBudget": "policy/v1", "HorizontalPodAutoscaler": "autoscaling/v2",
}  # fmt: skip
KINDS = tuple(_API_VERSIONS)
"""In the order in which they are made; they are removed the other way round."""


def _name_of(kind: str, name: str) -> str:
    return f"{name}-sds" if kind in ("Role", "RoleBinding") else name


def names_of(name: str) -> dict[str, str]:
    """The name of each kind of object of a gateway."""
    return {kind: _name_of(kind, name) for kind in KINDS}


def _service_port(port: int) -> Object:
    name = {HTTP_PORT: "http2", TLS_PORT: "https"}.get(port, f"tcp-{port}")  # as istioctl names them: the name sets the protocol that clients speak
    return {"name": name, "port": port, "targetPort": target_port(port), "protocol": "TCP"}


def _deployment(
    name: str, selector: Mapping[str, str], labels: Mapping[str, str], ports: Sequence[Object], settings: Settings, before: Object | None
) -> Object:
    container: Object = {
        "name": PROXY,
        "image": "auto",  # the injector puts the proxy's in its place
        "env": [{"name": "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "value": "true"}, {"name": "MINIMUM_DRAIN_DURATION", "value": MINIMUM_DRAIN}],
        "securityContext": {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "privileged": False,
            "readOnlyRootFilesystem": True, "runAsNonRoot": True, "runAsUser": 1337, "runAsGroup": 1337,
        },
    }  # fmt: skip
    if ports:
        container["ports"] = [{"containerPort": p["targetPort"], "protocol": "TCP"} for p in ports]
    pod: Object = {
        "serviceAccountName": name,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": dict(selector)},
            }
        ],
    }  # fmt: skip
    if settings.resources is not None or before is None:
        container["resources"] = settings.resources if settings.resources is not None else DEFAULTS["resources"]
    if settings.drain_timeout or before is None:
        pod["terminationGracePeriodSeconds"] = settings.drain_timeout or DEFAULTS["drain_timeout"]
    revision = {} if settings.revision is None else {"istio.io/rev": None if settings.revision == "default" else settings.revision}
    spec: Object = {
        "selector": {"matchLabels": dict(selector)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
        "template": {
            "metadata": {
                "labels": {**labels, "sidecar.istio.io/inject": "true", **revision},
                "annotations": {
                    "inject.istio.io/templates": "gateway",
                    "prometheus.io/scrape": "true",
                    "prometheus.io/port": "15020",
                    "prometheus.io/path": "/stats/prometheus",
                },
            },
            "spec": pod,
        },
    }
    if settings.replicas:
        spec["replicas"] = settings.replicas
    elif before is None:
        spec["replicas"] = settings.autoscale.minimum if settings.autoscale else DEFAULTS["replicas"]
    return spec


# -- the order of change ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Serving(Wait):
    """The gateway (namespace/name) serves: its rollout is done, each proxy is ready, and the Service leads to them."""

    gateway: str = ""

    def __str__(self) -> str:
        return f"  wait           gateway {self.gateway} serves"


def serving(reference: str) -> Serving:
    return Serving((reference.partition("/")[0],), gateway=reference)


def plan_present(namespace: str, name: str, settings: Settings, live: Mapping[str, Object | None]) -> Plan:
    """Steps to the gateway as it shall be; only what differs is written. Raises GatewayError where an object of somebody else is in the way."""
    changes: list[Change] = []
    scaler = live.get("HorizontalPodAutoscaler")
    if scaler and is_ours(scaler) and settings.replicas:
        changes.append(Change(scaler, None, f"for {settings.replicas} replicas"))  # first, or it would scale back
    for wanted in workload_objects(namespace, name, settings, live):
        old = live.get(wanted["kind"])
        if old is None:
            changes.append(Change(None, _without_none(wanted), _note(wanted)))
            continue
        if not is_ours(old):
            raise GatewayError(
                f"{wanted['kind']} {namespace}/{wanted['metadata']['name']} ({owner_of(old)}) is in the way: it is not of this module, and no egress gateway."
                "\nGive another name or namespace; nothing was written."
            )
        new = _over(old, wanted)
        if not _same(old, new):
            changes.append(Change(old, new, _difference(old, new)))
    if settings.read_secrets is False:
        changes += [Change(live[kind], None, "reads no Secrets") for kind in ("RoleBinding", "Role") if live.get(kind) and is_ours(live[kind])]
    return Plan((*changes, serving(f"{namespace}/{name}")))


def plan_absent(live: Mapping[str, Object | None]) -> Plan:
    """Removes what is ours of a gateway. Raises GatewayError for one of somebody else."""
    service = live.get("Service")
    if service and not is_ours(service):
        raise GatewayError(
            f"Service {service['metadata']['namespace']}/{service['metadata']['name']} was installed by {installed_by(service)}, so it is not removed here.\n"
            "Remove it where it was installed, or correct namespace and name; nothing was written."
        )
    return Plan(tuple(Change(live[kind], None) for kind in reversed(KINDS) if live.get(kind) and is_ours(live[kind])))


def check_unused(namespace: str, name: str, routes: Iterable[Route], virtual_services: Iterable[Mapping[str, Any]]) -> None:
    """Raises GatewayError while hosts are sent through a gateway, by this collection or by anybody's VirtualService."""
    ours = [f'{r.entry.host} (policy "{r.policy}" of namespace {r.namespace})' for r in routes if r.gateway == f"{namespace}/{name}"]
    leading = [v for v in virtual_services if leads_to(v, namespace, name)]
    others = [f"{', '.join(v['spec'].get('hosts') or ['a delegate'])} (VirtualService {'/'.join(_place(v))})" for v in leading]
    if ours or others:
        used = ours or others
        raise GatewayError(
            f"Hosts still go through egress gateway {namespace}/{name}: {'; '.join(used[:3])}{f' and {len(used) - 3} more' if len(used) > 3 else ''}.\n"
            "Take them off it first (istio_egress_gateway with state=absent), then run the task again; nothing was removed."
        )


def describe(service: Mapping[str, Any], deployment: Mapping[str, Any] | None) -> dict[str, Any]:
    """The gateway as a module returns it."""
    return {
        "gateway": "/".join(_place(service)),
        "made_here": is_ours(service),
        "installed_by": installed_by(service),
        "ports": [{"port": p["port"], "target_port": p.get("targetPort", p["port"]), "name": p.get("name")} for p in service["spec"]["ports"]],
        "replicas": deployment["spec"].get("replicas", 1) if deployment else None,
    }


def doubts(found: Iterable[Found], place: tuple[str, str]) -> list[str]:
    """Warnings about gateways beside which a new one was deployed, although they may have been meant."""
    return [
        f"Gateway {f.reference} may be for egress, but {f.reason}, so {'/'.join(place)} was deployed. To use that one, give its namespace and name."
        for f in found
        if f.purpose == UNKNOWN
    ]


def unmet(found: Found, settings: Settings) -> str:
    """What was asked for and somebody else's gateway does not have, in words; empty where it will do."""
    has = {p["port"] for p in found.service["spec"].get("ports") or ()}
    replicas = found.deployment["spec"].get("replicas", 1) if found.deployment else len(found.proxies)
    missing = [str(p) for p in settings.ports or () if p not in has]
    lacking = [
        *([f"port {' and '.join(missing)}"] if missing else []),
        *([f"replicas {settings.replicas} (it has {replicas})"] if settings.replicas not in (None, replicas) else []),
        *(option for option in ("autoscale", "resources", "drain_timeout") if getattr(settings, option) is not None),
    ]
    says = f"Egress gateway {found.reference} was installed by {found.installed_by} and is not changed here; not as asked: {', '.join(lacking)}."
    return says if lacking else ""


def _over(live: Any, wanted: Any, key: str = "") -> Any:
    """`live` with what is wanted put over it. What others added stays; resources are taken as a whole, for what is left out there has a meaning."""
    if isinstance(live, Mapping) and isinstance(wanted, Mapping) and key != "resources":
        result = {k: v for k, v in live.items() if k not in wanted or wanted[k] is not None}
        result.update({k: _over(live.get(k), v, k) for k, v in wanted.items() if v is not None})
        return result
    if isinstance(live, list) and isinstance(wanted, list):
        by = next((k for k in _LIST_KEYS if wanted and all(isinstance(i, Mapping) and k in i for i in wanted)), None)
        if by:
            items = {i.get(by): i for i in live}
            items.update({i[by]: _over(items.get(i[by]), i) for i in wanted})
            return list(items.values())
    return copy.deepcopy(_without_none(wanted))


_LIST_KEYS = ("containerPort", "port", "topologyKey", "name")
"""What tells the items of a list apart, where the API merges lists (``patchMergeKey``)."""


def _without_none(value: Any) -> Any:
    return {k: _without_none(v) for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value


def _same(live: Any, new: Any, key: str = "") -> bool:
    if isinstance(live, Mapping) and isinstance(new, Mapping):
        return live.keys() == new.keys() and all(_same(live[k], new[k], "amount" if key in ("requests", "limits") else k) for k in live)
    if isinstance(live, list) and isinstance(new, list):
        return len(live) == len(new) and all(_same(a, b) for a, b in zip(live, new, strict=True))
    return live == new or (key == "amount" and _amount(live) == _amount(new))


def _amount(text: Any) -> Decimal | None:
    """A quantity as a number: the API server writes ``1000m`` as ``1``."""
    match = _QUANTITY.fullmatch(str(text))
    return Decimal(match[1]) * _UNITS[match[2]] if match else None


def _note(obj: Mapping[str, Any]) -> str:
    spec = obj.get("spec") or {}
    if obj["kind"] == "Deployment":
        return f"{spec['replicas']} replicas"
    if obj["kind"] == "Service":
        return f"ports {', '.join(str(p['port']) for p in spec['ports'])}"
    if obj["kind"] == "HorizontalPodAutoscaler":
        return f"{spec['minReplicas']} to {spec['maxReplicas']} replicas"
    return ""


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What changes, by the parts of the spec; the replicas with their numbers."""
    was, now = (o.get("spec") or o for o in (old, new))
    if was.get("replicas") != now.get("replicas"):
        return f"replicas {was.get('replicas')} → {now.get('replicas')}"
    return ", ".join(k for k in now if k != "metadata" and not _same(was.get(k), now[k])) or "labels"
