"""The role egress_enforce says what is so: that a policy is enforced when the network keeps to it, and that it is not when the network does not care.

The network of the one-machine mesh does not enforce NetworkPolicies. Where a test needs one that does, answers from outside get lost in the pod's own network
as soon as the policy is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.modules import Account, documented_rights, wait_until
from mesh.test_follow import answers_lost

POLICIES = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
PROBE = "https://edition.cnn.com/"


@pytest.fixture
def account(workload, api, own_mesh):
    """It has the rights of docs/rbac.md for the role, and no others."""
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    with Account(api, documented_rights("egress_enforce", "Role in the namespace"), within=workload.namespace) as account:
        for where, place in (("Role in default", "default"), ("Role in the gateway's namespace", "istio-system")):
            metadata = {"name": account.user.split(":")[2], "namespace": place}
            account.create({**rbac, "kind": "Role", "metadata": metadata, "rules": documented_rights("egress_enforce", where)})
            account.create({
                **rbac, "kind": "RoleBinding", "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": metadata["name"]},
                "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": account.user}],
            })  # fmt: skip
        yield account


@pytest.fixture
def enforce(workload, account):
    """`enforce(**variables)`: exit code and output of a run of the role for the workload's namespace."""

    def run(**variables):
        variables = {"egress_enforce_namespace": workload.namespace, "egress_enforce_probe": PROBE, **variables}
        named = {f"egress_enforce_{key}" if not key.startswith("egress_enforce_") else key: value for key, value in variables.items()}
        command = ["ansible", "localhost", "-m", "ansible.builtin.include_role", "-a", "name=meshops.istio_egress.egress_enforce", "-e", json.dumps(named)]
        environment = {**os.environ, "K8S_AUTH_KUBECONFIG": str(account.kubeconfig), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, cwd="/")
        return done.returncode, done.stdout + done.stderr

    return run


def test_it_is_enforced_where_the_network_keeps_to_it_and_a_warning_elsewhere(workload, enforce, api, own_mesh):
    policies, done = POLICIES.format(workload.namespace), threading.Event()
    ranges = ["192.0.2.1", "2001:db8::/64"]

    def keep_to_it():
        wait_until(lambda: api.call("GET", policies)["items"] or done.is_set(), "the policy", 300)
        with answers_lost(workload, "tcp", 443):
            done.wait(300)

    with ThreadPoolExecutor(1) as pool:
        network = pool.submit(keep_to_it)
        try:
            first, again = enforce(strict=True, cidrs="192.0.2.1\n2001:db8::/64\n"), enforce(strict=True, cidrs=ranges)
        finally:
            done.set()
        network.result()
    for (code, text), seen in ((first, "before the policy 200"), (again, "from the gateway 200")):
        assert code == 0 and "/egress-enforce: enforced" in text and f"{seen}, with the policy no answer" in text, text
    [policy] = api.call("GET", policies)["items"]
    assert policy["spec"]["policyTypes"] == ["Egress"] and policy["spec"]["egress"][:2] == [
        {"to": [{"namespaceSelector": {}}]},
        {"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}, {"ipBlock": {"cidr": "2001:db8::/64"}}]},
    ]

    code, text = enforce(cidrs=ranges)
    assert code == 0 and "WARNING: NOT enforced" in text and "with the policy 200" in text, text
    assert [p["metadata"]["resourceVersion"] for p in api.call("GET", policies)["items"]] == [policy["metadata"]["resourceVersion"]]

    code, text = enforce(gateway=f"{workload.namespace}/out")
    assert code != 0 and "would be cut off as well; nothing was written" in text

    assert enforce(state="absent", namespaces="one\ntwo\n")[0] == 0
    assert api.call("GET", policies)["items"] == []
