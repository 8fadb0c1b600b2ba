"""Which Sidecar resource a pod has, the mode that it sets, and the hosts that it lets the pod see. Tables; no cluster."""

from __future__ import annotations

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._sidecars import effective, imports, mode_of, selector_of

WEB = {"app": "web", "version": "v1"}


def sidecar(name, namespace="demo", created="2026-01-01T00:00:00Z", **spec):
    return {"kind": "Sidecar", "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created}, "spec": spec}


def selecting(**labels):
    return {"workloadSelector": {"labels": labels}}


DEFAULT = sidecar("default")
FOR_WEB = sidecar("web", **selecting(app="web"))
FOR_SHOP = sidecar("shop", **selecting(app="shop"))
FOR_WEB_V2 = sidecar("web-v2", **selecting(app="web", version="v2"))
ROOT = sidecar("root", namespace="istio-system")
ROOT_GATEWAY = sidecar("gateway", namespace="istio-system", **selecting(app="web"))
PROD = sidecar("prod", namespace="prod")

EFFECTIVE = [
    # resources, the one that a pod of demo with the labels of WEB has
    ([], None),
    ([DEFAULT], "default"),
    ([DEFAULT, FOR_WEB, ROOT], "web"),
    ([DEFAULT, FOR_SHOP, ROOT], "default"),
    ([FOR_SHOP, ROOT], "root"),
    ([FOR_WEB_V2, DEFAULT], "default"),
    ([ROOT_GATEWAY], None),
    ([PROD], None),
    ([sidecar("empty-selector", **selecting())], "empty-selector"),
    ([sidecar("b", created="2026-01-01T00:00:00Z"), sidecar("a", created="2026-01-02T00:00:00Z")], "b"),
    ([sidecar("b"), sidecar("a")], "a"),
    ([sidecar("young", created="2026-02-01T00:00:00Z", **selecting(app="web")), sidecar("old", **selecting(version="v1"))], "old"),
    ([sidecar("young", created="2026-02-01T00:00:00Z", **selecting(app="web")), DEFAULT], "young"),
]


@pytest.mark.parametrize(("resources", "expected"), EFFECTIVE, ids=[" ".join(r["metadata"]["name"] for r in row[0]) or "none" for row in EFFECTIVE])
def test_the_sidecar_of_a_pod(resources, expected):
    for order in (resources, resources[::-1]):
        chosen = effective(order, "demo", WEB, "istio-system")
        assert (chosen["metadata"]["name"] if chosen else None) == expected


def test_in_the_root_namespace_the_root_sidecar_is_that_of_the_namespace():
    assert effective([ROOT, ROOT_GATEWAY], "istio-system", WEB, "istio-system") is ROOT_GATEWAY
    assert effective([ROOT, ROOT_GATEWAY], "istio-system", {}, "istio-system") is ROOT


@pytest.mark.parametrize(
    ("resource", "labels"),
    [(FOR_WEB_V2, {"app": "web", "version": "v2"}), (DEFAULT, {}), ({"spec": None}, {}), ({"spec": {"workloadSelector": None}}, {}), ({}, {})],
    ids=str,
)
def test_the_selector(resource, labels):
    assert selector_of(resource) == labels


@pytest.mark.parametrize(
    ("resource", "mode"),
    [
        (None, None),
        (sidecar("x"), None),
        (sidecar("x", outboundTrafficPolicy=None), None),
        (sidecar("x", outboundTrafficPolicy={"mode": "ALLOW_ANY"}), "ALLOW_ANY"),
        (sidecar("x", outboundTrafficPolicy={"mode": "REGISTRY_ONLY"}), "REGISTRY_ONLY"),
        (sidecar("x", outboundTrafficPolicy={}), "REGISTRY_ONLY"),
        ({"metadata": {}, "spec": None}, None),
    ],
    ids=str,
)
def test_the_mode_that_a_sidecar_sets(resource, mode):
    """A policy without a mode means REGISTRY_ONLY, no policy means that of the mesh."""
    assert mode_of(resource) == mode


IMPORTS = [
    # hosts of the egress listeners, a host that is declared in demo, the namespaces whose pods see it with this Sidecar
    (None, "a.example.com", "demo prod"),
    ([["*/*"]], "a.example.com", "demo prod"),
    ([["./*"]], "a.example.com", "demo"),
    ([["demo/*"]], "a.example.com", "demo prod"),
    ([["istio-system/*"]], "a.example.com", ""),
    ([["istio-system/*", "./*"]], "a.example.com", "demo"),
    ([["istio-system/*"], ["./*"]], "a.example.com", "demo"),
    ([["istio-system/*", "prod/a.example.com"]], "a.example.com", ""),
    ([["./a.example.com"]], "a.example.com", "demo"),
    ([["demo/a.example.com"]], "b.example.com", ""),
    ([["*/*.example.com"]], "a.example.com", "demo prod"),
    ([["*/*.example.com"]], "a.b.example.com", "demo prod"),
    ([["*/*.example.com"]], "example.com", ""),
    ([["*/*.example.com"]], "badexample.com", ""),
    ([["*/*.example.com"]], "*.example.com", "demo prod"),
    ([["~/*"]], "a.example.com", ""),
    # "~namespace/host" takes away again (Istio 1.31).
    ([["*/*", "~*/a.example.com"]], "a.example.com", ""),
    ([["*/*", "~*/*.example.com"]], "a.example.com", ""),
    ([["*/*", "~./a.example.com"]], "a.example.com", "prod"),
    ([["*/*", "~demo/a.example.com"]], "b.example.com", "demo prod"),
    ([["*/*", "~demo/*"]], "a.example.com", ""),
    ([["*/*", "~prod/*"]], "a.example.com", "demo prod"),
]


@pytest.mark.parametrize(("listeners", "host", "seen_by"), IMPORTS, ids=str)
def test_what_a_sidecar_imports(listeners, host, seen_by):
    resource = sidecar("x", **({} if listeners is None else {"egress": [{"hosts": hosts} for hosts in listeners]}))
    assert [pods_of for pods_of in ("demo", "prod") if imports(resource, pods_of, host, "demo")] == seen_by.split()
