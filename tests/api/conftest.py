"""What tests against a real API server share: a connection, and a namespace of their own. Nothing here is mocked."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from ansible_collections.meshops.istio_egress.plugins.module_utils._cluster import Cluster
from api.modules import Account


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """The path of KUBECONFIG; tests that need it are skipped without."""
    path = os.environ.get("KUBECONFIG")
    if not path:
        pytest.skip("KUBECONFIG is not set. `make api` starts an API server and sets it; any cluster with Istio's CRDs will do.")
    return path


@pytest.fixture(scope="session")
def cluster(kubeconfig: str) -> Cluster:
    return Cluster({"kubeconfig": kubeconfig})


@pytest.fixture(scope="module")
def account(kubeconfig: str) -> Iterator[Account]:
    """An account with all rights, that goes after the tests of a file, and all that it made."""
    with Account() as account:
        yield account


@pytest.fixture(scope="module")
def namespace(kubeconfig: str) -> Iterator[str]:
    """A namespace for the tests of one file, deleted afterwards."""
    from kubernetes import client, config

    core = client.CoreV1Api(config.new_client_from_config(kubeconfig))
    name = f"egress-test-{secrets.token_hex(4)}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)
