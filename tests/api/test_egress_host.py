"""istio_egress_host on a real API server: what it writes, how often, what it never touches, and what is left when somebody or something comes between.

Conflicts, refusals and broken connections are real: another writer, an admission policy, a relay that hangs up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from api.modules import Account, Object, Refused, Relay, Result, path_of, wait_until
from api.test_outbound_mode import made, pod, sidecar

MODULE = "istio_egress_host"
SERVICE_ENTRY = {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry"}
MANY = [f"host-{n:03}.many.test" for n in range(500)]


@pytest.fixture
def namespace(account: Account) -> str:
    return account.namespace("hosts")


@pytest.fixture
def task(account: Account, namespace: str) -> Callable[..., Result]:
    """Runs the module in the namespace of the test."""
    return partial(account.run, MODULE, namespace=namespace)


def declared(account: Account, namespace: str, policy: str | None = None) -> dict[str, list[str]]:
    """Ports by host, from the live objects; fails when a host stands in two of them."""
    found: dict[str, list[str]] = {}
    for obj in account.server.list("ServiceEntry", namespace):
        if policy in (None, obj["metadata"]["labels"].get("istio-egress.meshops.io/policy")):
            for host in obj["spec"]["hosts"]:
                assert host not in found, f"{host} is declared twice"
                found[host] = [f"{p['protocol']}/{p['number']}" for p in obj["spec"]["ports"]]
    return found


def specs(account: Account, namespace: str) -> dict[str, tuple[Any, ...]]:
    """What the objects say, without what any write changes."""
    objects = account.server.list("ServiceEntry", namespace)
    return {o["metadata"]["name"]: (o["spec"], o["metadata"].get("labels"), o["metadata"].get("annotations")) for o in objects}


def theirs(namespace: str, name: str, host: str, **metadata: Any) -> Object:
    spec = {"hosts": [host], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "DNS", "exportTo": ["."]}
    return {**SERVICE_ENTRY, "metadata": {"name": name, "namespace": namespace, **metadata}, "spec": spec}


# -- what is written ----------------------------------------------------------------------------------------------------------------


def test_hosts_come_change_and_go(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["a.hosts.test", {"host": "b.hosts.test", "ports": [80, 443]}, "*.wild.test"])
    assert declared(account, namespace) == {"a.hosts.test": ["TLS/443"], "b.hosts.test": ["HTTP/80", "TLS/443"], "*.wild.test": ["TLS/443"]}

    task(hosts=["c.hosts.test", "b.hosts.test:443"])  # what is not listed stays
    assert declared(account, namespace) == {
        "a.hosts.test": ["TLS/443"], "b.hosts.test": ["TLS/443"], "c.hosts.test": ["TLS/443"], "*.wild.test": ["TLS/443"],
    }  # fmt: skip

    task(state="absent", hosts=["a.hosts.test", "*.wild.test", "never.hosts.test"])
    assert declared(account, namespace) == {"b.hosts.test": ["TLS/443"], "c.hosts.test": ["TLS/443"]}

    task(hosts=["d.hosts.test"], purge=True)
    assert declared(account, namespace) == {"d.hosts.test": ["TLS/443"]}

    task(state="absent", purge=True)
    assert account.server.list("ServiceEntry", namespace) == []


def test_the_result_tells_what_was_chosen(task: Callable[..., Result]) -> None:
    result = task(hosts=["a.hosts.test:80", {"host": "203.0.113.0/24", "ports": [9000], "owner": "team-data"}])
    by_host = {entry["host"]: entry for entry in result["hosts"]}
    assert (by_host["a.hosts.test"]["ports"], by_host["a.hosts.test"]["resolution"]) == (["http/80"], "DNS")
    [network] = [entry for entry in result["hosts"] if entry["addresses"] == ["203.0.113.0/24"]]
    assert (network["ports"], network["resolution"], network["owner"]) == (["tcp/9000"], "NONE", "team-data")
    assert all(entry["chosen"] for entry in result["hosts"])
    assert {entry["object"] for entry in result["hosts"]} == {o["name"] for o in result["objects"]}


def test_labels_and_annotations_say_whose_and_why(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(policy="web", hosts=[{"host": "a.hosts.test", "owner": "team-web", "ticket": "NET-1", "reason": "news", "expires": "2099-01-31"}])
    [obj] = account.server.list("ServiceEntry", namespace)
    assert obj["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "istio-egress", "istio-egress.meshops.io/policy": "web"}
    assert all(word in obj["metadata"]["annotations"]["istio-egress.meshops.io/hosts"] for word in ("team-web", "NET-1", "news", "2099-01-31"))


def test_a_host_that_is_past_its_date_is_warned_about_and_stays(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    result = task(hosts=[{"host": "a.hosts.test", "expires": "2020-01-31"}])
    assert any("a.hosts.test" in warning and "2020-01-31" in warning for warning in result.warnings), result.warnings
    assert declared(account, namespace) == {"a.hosts.test": ["TLS/443"]}


def test_exported_to_the_namespace_itself_unless_said_otherwise(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["a.hosts.test"])
    [before] = account.server.list("ServiceEntry", namespace)
    assert before["spec"]["exportTo"] == ["."]
    task(hosts=["a.hosts.test"], export_to=[".", "istio-system"])
    [after] = account.server.list("ServiceEntry", namespace)
    assert sorted(after["spec"]["exportTo"]) == [".", "istio-system"]
    assert after["metadata"]["uid"] == before["metadata"]["uid"], "an object in use is never deleted and made again"


def test_a_host_that_moves_is_always_in_some_object(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["stays.hosts.test", "moves.hosts.test"])
    seen: list[dict[str, int]] = []

    def look(method: str, path: str) -> None:
        hosts = [host for o in account.server.list("ServiceEntry", namespace) for host in o["spec"]["hosts"]]
        seen.append({host: hosts.count(host) for host in hosts})

    with Relay(account.server, look) as relay:
        task(host=relay.url, api_key=account.token, hosts=[{"host": "moves.hosts.test", "ports": [80, 443]}])
    look("", "")
    assert declared(account, namespace) == {"stays.hosts.test": ["TLS/443"], "moves.hosts.test": ["HTTP/80", "TLS/443"]}
    assert all(moment.get("moves.hosts.test") and moment.get("stays.hosts.test") for moment in seen), seen
    assert any(moment["moves.hosts.test"] == 2 for moment in seen), "in the new place before it leaves the old one"


def test_a_policy_touches_nothing_of_others(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    server = account.server
    server.create(theirs(namespace, "by-hand", "a.other.test"))
    server.create(theirs(namespace, "egress-default-443-1", "b.other.test", labels={"app.kubernetes.io/managed-by": "Helm"}))
    server.create(theirs(namespace, "like-ours", "c.other.test", labels={"istio-egress.meshops.io/policy": "default"}))
    task(policy="other", hosts=["d.other.test"])
    before = server.everything(namespace)

    task(hosts=["a.hosts.test", "b.hosts.test:80"])
    task(hosts=["a.hosts.test"], purge=True)
    task(state="absent", purge=True)
    assert server.everything(namespace) == before


def test_labels_and_annotations_of_others_on_our_objects_stay(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["a.hosts.test"])
    [obj] = account.server.list("ServiceEntry", namespace)
    account.server.patch("ServiceEntry", namespace, obj["metadata"]["name"], {"metadata": {"labels": {"cost": "web"}, "annotations": {"seen": "yes"}}})
    assert task(hosts=["a.hosts.test"]).attempts == []
    task(hosts=[{"host": "b.hosts.test", "ticket": "NET-1"}])
    [obj] = account.server.list("ServiceEntry", namespace)
    assert (obj["metadata"]["labels"]["cost"], obj["metadata"]["annotations"]["seen"]) == ("web", "yes")


def test_what_somebody_changed_by_hand_is_put_right(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["a.hosts.test", "b.hosts.test"])
    [before] = specs(account, namespace).items()
    change = {"spec": {"resolution": "NONE", "exportTo": ["*"]}}
    account.server.patch("ServiceEntry", namespace, before[0], change)
    result = task(hosts=["a.hosts.test", "b.hosts.test"])
    assert (result["changed"], declared(account, namespace)) == (True, {"a.hosts.test": ["TLS/443"], "b.hosts.test": ["TLS/443"]})
    assert {spec["resolution"] for spec, _labels, _annotations in specs(account, namespace).values()} == {"DNS"}
    assert task(hosts=["a.hosts.test", "b.hosts.test"]).attempts == []


def test_defaults_that_a_server_may_fill_in_are_no_difference(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["*.wild.test", {"host": "203.0.113.0/24", "ports": [9000]}])
    for obj in account.server.list("ServiceEntry", namespace):
        spec = obj["spec"]
        spec["ports"] = [{**port, "targetPort": port["number"]} for port in spec["ports"]]
        del spec["location"], spec["resolution"]  # their values are the defaults MESH_EXTERNAL and NONE
        account.server.replace(obj)
    assert task(hosts=["*.wild.test", {"host": "203.0.113.0/24", "ports": [9000]}]).attempts == []


def test_a_role_in_the_namespace_is_enough(account: Account, namespace: str) -> None:
    rules = [{"apiGroups": ["networking.istio.io"], "resources": ["serviceentries"], "verbs": ["list", "create", "update", "delete"]}]
    with Account(account.server, rules, within=namespace) as runner:
        first = runner.run(MODULE, namespace=namespace, hosts=["a.hosts.test"])
        assert first["changed"], first
        assert (first["verified"], any("may not list pods" in warning for warning in first.warnings)) == (False, True)
        assert runner.run(MODULE, namespace=namespace, hosts=["a.hosts.test", "b.hosts.test"])["changed"]
        assert runner.run(MODULE, namespace=namespace, state="absent", purge=True)["changed"]
    assert account.server.list("ServiceEntry", namespace) == []


def test_the_sidecars_of_two_namespaces_need_rights_there_alone(account: Account, namespace: str) -> None:
    rules = [
        {"apiGroups": ["networking.istio.io"], "resources": ["serviceentries", "sidecars"], "verbs": ["list", "create"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ]
    other = account.namespace("hosts")
    with Account(account.server, rules, within=namespace) as runner:
        runner.bind(other)
        for place in (namespace, other):
            wait_until(partial(made, account, pod(place, "web")), "the service account that every pod needs")
        account.server.create(sidecar(other, "default", {"egress": [{"hosts": ["istio-system/*"]}]}))
        result = runner.run(MODULE, namespace=namespace, hosts=["a.hosts.test"], export_to=[".", other])
    assert (result.get("failed"), result["proxies"]["total"]) == (None, 2), result
    assert [w.partition(" into")[0] for w in result.warnings] == [f"Sidecar {other}/default does not import a.hosts.test"]


# -- how often ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(account: Account) -> str:
    """A namespace with 500 hosts, of which the tests add and remove others."""
    namespace = account.namespace("many")
    created = account.run(MODULE, namespace=namespace, hosts=MANY)
    assert (len(created.writes), created["requests"]) == (2, len(created.sent)), "256 hosts share an object"
    return namespace


@pytest.mark.parametrize("check", [False, True], ids=["apply", "check"])
def test_500_hosts_and_nothing_to_do(account: Account, many: str, check: bool) -> None:
    result = account.run(MODULE, namespace=many, hosts=MANY, check=check)
    assert (result["changed"], result.attempts) == (False, [])
    assert result["requests"] == len(result.sent) <= 3, result.sent


def test_one_host_among_500_is_one_write_in_and_one_out(account: Account, many: str) -> None:
    added = account.run(MODULE, namespace=many, hosts=[*MANY, "one.more.test"])
    assert len(added.attempts) == len(added.writes) == 1
    assert added["requests"] == len(added.sent) <= 3, added.sent
    assert len(declared(account, many)) == 501

    removed = account.run(MODULE, namespace=many, hosts=["one.more.test"], state="absent")
    assert len(removed.attempts) == len(removed.writes) == 1
    assert removed["requests"] == len(removed.sent) <= 3, removed.sent
    assert sorted(declared(account, many)) == MANY


def test_one_host_out_of_the_middle_moves_no_other(account: Account, many: str) -> None:
    before = specs(account, many)
    removed = account.run(MODULE, namespace=many, hosts=[h for h in MANY if h != MANY[100]], purge=True)
    assert len(removed.attempts) == 1
    back = account.run(MODULE, namespace=many, hosts=MANY)
    assert len(back.attempts) == 1
    assert specs(account, many) == before


# -- somebody else writes at the same time ------------------------------------------------------------------------------------------


class Interference:
    """Changes every ServiceEntry of a namespace just before one is updated, the first `times` times."""

    def __init__(self, account: Account, namespace: str, times: int) -> None:
        self._server, self._namespace, self._times = account.server, namespace, times
        self.count = 0

    def __call__(self, method: str, path: str) -> None:
        if method == "PUT" and self.count < self._times:
            self.count += 1
            for obj in self._server.list("ServiceEntry", self._namespace):
                self._server.patch("ServiceEntry", self._namespace, obj["metadata"]["name"], {"metadata": {"annotations": {"touched": str(self.count)}}})


def test_a_conflict_is_read_again_and_both_changes_are_kept(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["a.hosts.test"])
    other = Interference(account, namespace, times=2)
    with Relay(account.server, other) as relay:
        result = task(host=relay.url, api_key=account.token, hosts=["b.hosts.test"])
    assert (result["changed"], other.count) == (True, 2)
    assert [r.code for r in result.sent if r.verb == "update"] == [409, 409, 200]
    assert declared(account, namespace) == {"a.hosts.test": ["TLS/443"], "b.hosts.test": ["TLS/443"]}
    [obj] = account.server.list("ServiceEntry", namespace)
    assert obj["metadata"]["annotations"]["touched"] == "2"


def test_a_conflict_without_end_is_an_error(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["a.hosts.test"])
    with Relay(account.server, Interference(account, namespace, times=100)) as relay:
        result = task(host=relay.url, api_key=account.token, hosts=["b.hosts.test"])
    assert result["failed"], result
    assert all(word in result.msg for word in ("egress-default-443-1", "409", "somebody", "Nothing was written")), result.msg
    assert result.msg.count("\n") == 1
    assert declared(account, namespace) == {"a.hosts.test": ["TLS/443"]}


def test_a_status_written_between_two_writes_of_a_task_is_no_conflict(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    """istiod allots addresses to a ServiceEntry as soon as it sees it, which is between two steps of a task that changes it twice.

    The account has no other rights than docs/rbac.md says.
    """
    task(hosts=["a.hosts.test", "b.hosts.test"])
    written: list[str] = []

    def allot(method: str, path: str) -> None:
        if method == "PUT":
            written.append(path)
        if method == "PUT" and len(written) % 3:
            status = {"status": {"addresses": [{"value": f"240.240.0.{len(written)}", "host": "a.hosts.test"}]}}
            account.server.call("PATCH", f"{path.partition('?')[0]}/status", status, "application/merge-patch+json")

    rules = [{"apiGroups": ["networking.istio.io"], "resources": ["serviceentries"], "verbs": ["list", "create", "update", "delete"]}]
    with Account(account.server, rules, within=namespace) as runner, Relay(account.server, allot) as relay:
        result = runner.run(MODULE, namespace=namespace, host=relay.url, api_key=runner.token, hosts=["a.hosts.test:80,443"])
    codes = [r.code for r in result.sent if r.verb == "update"]
    assert result["changed"] and codes and codes == [409, 409, 200] * (len(codes) // 3)
    assert [r.code for r in result.sent if (r.verb, r.resource, r.name) == ("list", "serviceentries", "")] == [403, 200], "the plan was made anew"
    assert declared(account, namespace) == {"a.hosts.test": ["HTTP/80", "TLS/443"], "b.hosts.test": ["TLS/443"]}


def test_an_object_that_was_made_anew_meanwhile_is_not_deleted(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["a.hosts.test"])
    replaced: list[str] = []

    def make_anew(method: str, path: str) -> None:
        if method == "DELETE" and not replaced:
            [old] = account.server.list("ServiceEntry", namespace)
            account.server.delete("ServiceEntry", namespace, old["metadata"]["name"])
            fresh = theirs(namespace, old["metadata"]["name"], "theirs.hosts.test")
            replaced.append(account.server.create(fresh)["metadata"]["uid"])

    with Relay(account.server, make_anew) as relay:
        result = task(host=relay.url, api_key=account.token, state="absent", purge=True)
    [left] = account.server.list("ServiceEntry", namespace)
    assert [left["metadata"]["uid"]] == replaced, result


# -- half-way -----------------------------------------------------------------------------------------------------------------------


def refuse(account: Account, namespace: str, operation: str, host: str) -> str:
    """A ValidatingAdmissionPolicy that refuses an operation on ServiceEntries with `host`; returns when it is in force. The name of it."""
    name = f"{namespace}-{operation.lower()}"
    api = {"apiVersion": "admissionregistration.k8s.io/v1"}
    obj = "oldObject" if operation == "DELETE" else "object"
    where = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    rule = {"apiGroups": ["networking.istio.io"], "apiVersions": ["*"], "operations": [operation], "resources": ["serviceentries"]}
    account.create({
        **api, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail", "matchConstraints": {"namespaceSelector": where, "resourceRules": [rule]},
            "validations": [{"expression": f"!{obj}.spec.hosts.exists(h, h == '{host}')", "message": f"{host} is not for this team"}],
        },
    })  # fmt: skip
    account.create({
        **api, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": where}},
    })  # fmt: skip
    wait_until(partial(refuses, account, namespace, operation, host), f"policy {name} to be in force")
    return name


def refuses(account: Account, namespace: str, operation: str, host: str) -> bool:
    name = "probe"
    if operation == "DELETE":
        [name] = [o["metadata"]["name"] for o in account.server.list("ServiceEntry", namespace) if host in o["spec"]["hosts"]]
    try:
        if operation == "DELETE":
            account.server.call("DELETE", path_of("ServiceEntry", namespace, name) + "?dryRun=All")
        else:
            account.server.call("POST", path_of("ServiceEntry", namespace) + "?dryRun=All", theirs(namespace, name, host))
    except Refused:
        return True
    return False


def lift(account: Account, policy: str) -> None:
    account.server.delete("ValidatingAdmissionPolicyBinding", None, policy)
    account.server.delete("ValidatingAdmissionPolicy", None, policy)


def plain(objects: dict[str, Object]) -> dict[str, Object]:
    """Objects as they were said, without what a write, or a deletion and a creation, changes."""
    result = copy.deepcopy(objects)
    for obj in result.values():
        for noise in ("resourceVersion", "generation", "managedFields", "uid", "creationTimestamp"):
            obj["metadata"].pop(noise, None)
    return result


def test_a_refusal_half_way_leaves_everything_as_it_was(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["a.hosts.test", {"host": "z.hosts.test", "ports": ["tls/8443"]}])
    before = plain(account.server.everything(namespace))
    policy = refuse(account, namespace, "CREATE", "denied.hosts.test")
    wanted = {"hosts": ["b.hosts.test", "denied.hosts.test:80", {"host": "y.hosts.test", "ports": ["tls/8443"]}]}

    result = task(**wanted)
    assert result["failed"], result
    assert result.msg.count("\n") == 1
    assert all(word in result.msg for word in ("create", "egress-default-80-1", namespace, "denied.hosts.test is not for this team")), result.msg
    assert "1 earlier change" in result.msg and "as it was before" in result.msg, result.msg
    assert len(result.writes) == 2, "the update before it, and that undone"
    assert plain(account.server.everything(namespace)) == before

    lift(account, policy)
    wait_until(lambda: not refuses(account, namespace, "CREATE", "denied.hosts.test"), "the policy to be gone")
    assert len(task(**wanted).writes) == 3
    assert sorted(declared(account, namespace)) == ["a.hosts.test", "b.hosts.test", "denied.hosts.test", "y.hosts.test", "z.hosts.test"]


def test_check_mode_tells_what_would_be_refused(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    refuse(account, namespace, "CREATE", "denied.hosts.test")
    result = task(hosts=["a.hosts.test:80", "denied.hosts.test"], check=True)
    assert result["failed"], result
    assert "denied.hosts.test is not for this team" in result.msg
    assert account.server.list("ServiceEntry", namespace) == []


def test_a_deletion_that_is_refused_brings_back_what_was_deleted_before(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    task(hosts=["a.hosts.test", {"host": "kept.hosts.test", "ports": [80], "ticket": "NET-1"}, {"host": "z.hosts.test", "ports": ["tls/8443"]}])
    before = plain(account.server.everything(namespace))
    policy = refuse(account, namespace, "DELETE", "kept.hosts.test")

    result = task(state="absent", purge=True)
    assert result["failed"], result
    assert all(word in result.msg for word in ("delete", "egress-default-80-1", "kept.hosts.test is not for this team", "as it was before")), result.msg
    assert plain(account.server.everything(namespace)) == before

    lift(account, policy)
    wait_until(lambda: not refuses(account, namespace, "DELETE", "kept.hosts.test"), "the policy to be gone")
    assert len(task(state="absent", purge=True).writes) == 3
    assert account.server.list("ServiceEntry", namespace) == []


def test_a_connection_that_breaks_half_way_is_told_and_the_next_run_finishes(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    created: list[str] = []

    def hang_up(method: str, path: str) -> None:
        if method == "POST":
            created.append(path)
        if len(created) > 1:
            raise ConnectionError

    wanted = {"hosts": ["a.hosts.test", "b.hosts.test:80", {"host": "c.hosts.test", "ports": ["tls/8443"]}]}
    with Relay(account.server, hang_up) as relay:
        result = task(host=relay.url, api_key=account.token, **wanted)
        assert result["failed"], result
        assert relay.url in result.msg and "does not answer" in result.msg
    assert "nothing was written" not in result.msg.lower(), "one object was written, and could not be taken back"
    assert "run the task again" in result.msg
    assert sorted(declared(account, namespace)) == ["a.hosts.test"]
    task(**wanted)
    assert sorted(declared(account, namespace)) == ["a.hosts.test", "b.hosts.test", "c.hosts.test"]


def test_a_connection_that_breaks_while_it_waits_does_not_hide_what_was_written(account: Account, namespace: str, task: Callable[..., Result]) -> None:
    def hang_up(method: str, path: str) -> None:
        if "/pods" in path:
            raise ConnectionError

    with Relay(account.server, hang_up) as relay:
        result = task(host=relay.url, api_key=account.token, hosts=["a.hosts.test"])
    assert result["failed"], result
    assert result.msg.count("\n") == 1 and relay.url in result.msg and "does not answer" in result.msg and "Caused by" not in result.msg, result.msg
    assert "nothing was written" not in result.msg.lower() and "written" in result.msg, result.msg
    assert declared(account, namespace) == {"a.hosts.test": ["TLS/443"]}
