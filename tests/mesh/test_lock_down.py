"""The playbook lock_down on a workload that works: what it uses is learned while it does, and closing the namespace shuts it out of nothing, or is undone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from api.modules import ApiServer
from mesh.conftest import StartWorkload, Workload
from mesh.test_awx import TEMPLATES
from mesh.test_discover import discovered
from mesh.test_playbooks import Runner, runner_for

HTTPBIN, GOOGLE, OTHER = "http://httpbin.org/", "https://www.google.com/", "http://other.example.com/"
NEW = "http://edition.cnn.com/politics"
ANSWERS = {question["variable"]: question["default"] for question in TEMPLATES["Close a namespace"]["survey_spec"]["spec"] if "default" in question}
"""What a controller's survey hands on: strings, and whole numbers."""
LEARNED = [{"host": "httpbin.org", "ports": [80]}, {"host": "www.google.com", "ports": [443]}]


@pytest.fixture(scope="module")
def runner(kubeconfig: Path, api: ApiServer) -> Iterator[Runner]:
    with runner_for("lock-down", kubeconfig, api) as runner:
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": runner.namespace, "labels": {"istio-injection": "enabled"}}})
        yield runner


@pytest.fixture(scope="module")
def web(runner: Runner, start: StartWorkload, own_mesh) -> Workload:
    return start(runner.namespace, "web")


@contextmanager
def at_work(workload: Workload, *urls: str, every: float = 1, and_then: Callable[[], object] = tuple) -> Iterator[list[str]]:
    """The workload asks for the URLs, and does `and_then`, again and again. What came of each request: 200, or what and for which URL."""
    outcomes: list[str] = []
    done = threading.Event()

    def work() -> None:
        while not done.wait(every):
            and_then()
            for url in urls:
                answer = workload.curl(url)
                outcomes.append("200" if answer.status == 200 else f"{url} {answer.outcome}, exit {answer.exit}")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield outcomes
    finally:
        done.set()
        thread.join()


def mode(api: ApiServer, namespace: str) -> str | None:
    return next((o["spec"]["outboundTrafficPolicy"]["mode"] for o in api.list("Sidecar", namespace)), None)


def declared(api: ApiServer, namespace: str) -> set[str]:
    return {host for obj in api.list("ServiceEntry", namespace) for host in obj["spec"]["hosts"]}


def test_an_address_without_a_name_stops_it_before_anything_is_written(runner: Runner, web: Workload, api: ApiServer, run_module, tmp_path: Path) -> None:
    web.curl(GOOGLE)
    web.curl(HTTPBIN)
    discovered(run_module, 2, namespace=runner.namespace)
    check = runner.play("lock_down", "--check", egress_file=str(tmp_path / "learned"))
    assert (check.code, check.results) == (0, {"hosts": LEARNED[:1], "unused": []}), check.text
    assert yaml.safe_load((tmp_path / "learned").read_text(encoding="utf-8")) == {"egress_hosts": LEARNED[:1]}
    run = runner.play("lock_down")
    assert run.code != 0
    assert "Used without a name" in run.text and "egress_learn_seconds=600" in run.text, run.text
    assert (run.writes, mode(api, runner.namespace), declared(api, runner.namespace)) == ([], None, set())


def test_what_is_learned_stays_open_and_the_rest_is_closed(runner: Runner, web: Workload, api: ApiServer, tmp_path: Path) -> None:
    answers = {**ANSWERS, "egress_hosts": "de.wikipedia.org:80\nen.wikipedia.org", "egress_learn_seconds": 5, "egress_watch_seconds": 4}
    with at_work(web, HTTPBIN, GOOGLE) as outcomes:
        run = runner.play("lock_down", egress_workload="deployment/web", egress_svg=str(tmp_path / "ways"), **answers)
    assert (run.code, run.results) == (0, {"hosts": LEARNED, "unused": []}), run.text
    assert set(outcomes) == {"200"}, "closing it shut the workload out"
    assert "httpbin.org" in (tmp_path / "ways").read_text(encoding="utf-8")
    assert declared(api, runner.namespace) == {"httpbin.org", "www.google.com", "de.wikipedia.org", "en.wikipedia.org"}
    assert mode(api, runner.namespace) == "REGISTRY_ONLY"
    assert web.curl(OTHER).outcome == "502"

    again = runner.play("lock_down", egress_watch_seconds=0)
    assert (again.code, again.changed, again.writes, again.results["hosts"]) == (0, 0, [], []), again.text


def test_undo_opens_it_unless_another_policy_is_there(runner: Runner, web: Workload, api: ApiServer, run_module) -> None:
    theirs = {"namespace": runner.namespace, "policy": "theirs", "hosts": ["en.wikipedia.org"]}
    run_module("istio_egress_host", **theirs)
    run = runner.play("lock_down", **{**ANSWERS, "egress_undo": "true"})
    assert run.code == 0 and "so its mode stays: ServiceEntry egress-theirs-" in run.text, run.text
    assert (mode(api, runner.namespace), declared(api, runner.namespace)) == ("REGISTRY_ONLY", {"en.wikipedia.org"})

    run_module("istio_egress_host", **theirs, state="absent")
    run = runner.play("lock_down", **{**ANSWERS, "egress_undo": "true"})
    assert run.code == 0 and "its mode stays" not in run.text, run.text
    assert (mode(api, runner.namespace), declared(api, runner.namespace)) == (None, set())
    assert web.curl(OTHER).outcome == "200"


def test_one_refusal_opens_it_again_although_it_was_before_the_watch_began(runner: Runner, web: Workload, api: ApiServer) -> None:
    refused = []

    def once() -> None:
        if not refused and mode(api, runner.namespace) == "REGISTRY_ONLY" and web.curl(NEW).outcome == "502":
            refused.append(NEW)

    with at_work(web, every=0.1, and_then=once):
        run = runner.play("lock_down", egress_watch_seconds=10, egress_accept_unnamed="true")
    assert run.code != 0 and refused, run.text
    assert "edition.cnn.com:80, HTTP, " in run.text and "by deployment/web" in run.text and "as before" in run.text, run.text
    assert mode(api, runner.namespace) is None
    assert web.curl(NEW).outcome == "301"


def test_a_host_without_an_address_is_taken_away_and_it_stays_open(runner: Runner, web: Workload, api: ApiServer) -> None:
    web.curl(HTTPBIN)
    run = runner.play("lock_down", egress_hosts="no-such-host.invalid", egress_accept_unnamed="true")
    assert run.code != 0
    assert "find no address for no-such-host.invalid, so it was left open" in run.text, run.text
    assert "httpbin.org" in declared(api, runner.namespace) and "no-such-host.invalid" not in declared(api, runner.namespace)
    assert mode(api, runner.namespace) is None
