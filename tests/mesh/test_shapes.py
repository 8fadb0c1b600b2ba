"""Host entries of every shape on a real mesh, under REGISTRY_ONLY: what the documentation says they let out, and near misses that they must not.

Each cell is a real request, and each answer must come from the right address of the far end.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from cluster.onemachine.farend import DEFAULT_HOSTS as ADDRESS

HOST, MODE = "istio_egress_host", "istio_outbound_mode"
REFUSED = {"http": "502", "https": "closed", "tcp": "closed"}
CNN, HTTPBIN, GOOGLE, OTHER = (ADDRESS[h] for h in ("edition.cnn.com", "httpbin.org", "www.google.com", "other.example.com"))
RANGE = "203.0.113.8/29"
"""Has the four, and does not have www.wikipedia.org."""


class To(NamedTuple):
    """A request to a URL, or to tcp://HOST:PORT; `at` dials the address of another host, `reaches` says whose address answers."""

    url: str
    at: str = ""
    reaches: str = ""


class Shape(NamedTuple):
    entries: list
    allowed: list
    refused: list


SHAPES = {
    "HTTP": Shape(
        ["httpbin.org:80"],
        ["http://httpbin.org/", To("http://httpbin.org/", at="www.cnn.com", reaches="httpbin.org")],
        ["http://other.example.com/", To("http://other.example.com/", at="httpbin.org"), "https://httpbin.org/", "tcp://httpbin.org:8080"],
    ),
    "TLS": Shape(
        ["www.google.com"],
        ["https://www.google.com/", To("https://www.google.com/", at="www.cnn.com", reaches="www.google.com")],
        ["https://other.example.com/", To("https://other.example.com/", at="www.google.com"), "http://www.google.com/", "https://www.google.com:8443/"],
    ),
    "HTTP and TLS": Shape(
        ["edition.cnn.com:80,443"],
        ["http://edition.cnn.com/", "https://edition.cnn.com/"],
        ["http://www.cnn.com/", "https://www.cnn.com/"],
    ),
    "other ports": Shape(
        [{"host": "www.cnn.com", "ports": ["http/8080", "tls/8443"]}],
        ["http://www.cnn.com:8080/", "https://www.cnn.com:8443/"],
        ["http://www.cnn.com/", "https://www.cnn.com/", "http://httpbin.org:8080/", "https://httpbin.org:8443/"],
    ),
    "wildcard": Shape(
        ["*.wikipedia.org:80,443"],
        ["http://en.wikipedia.org/", "https://en.wikipedia.org/", "https://de.wikipedia.org/"],
        [
            *("http://httpbin.org/", "https://httpbin.org/"),
            *(To("http://wikipedia.org/", at="www.wikipedia.org"), To("https://wikipedia.org/", at="www.wikipedia.org")),
        ],
    ),
    "wildcard looked up by name": Shape(
        [{"host": "*.wikipedia.org", "ports": [80, 443], "resolution": "dynamic_dns"}],
        [
            "http://en.wikipedia.org/",
            To("http://de.wikipedia.org/", at="httpbin.org", reaches="de.wikipedia.org"),
            To("https://de.wikipedia.org/", at="httpbin.org", reaches="de.wikipedia.org"),
        ],
        ["http://httpbin.org/", "https://httpbin.org/"],
    ),
    "round robin": Shape(
        [{"host": "httpbin.org", "ports": [80, 443], "resolution": "dns_round_robin"}],
        ["http://httpbin.org/", To("https://httpbin.org/", at="www.cnn.com", reaches="httpbin.org")],
        ["http://other.example.com/", "https://other.example.com/"],
    ),
    "addresses of HTTP and TLS hosts": Shape(
        [{"host": "httpbin.org", "ports": [80, 443], "addresses": [CNN]}, {"host": "www.google.com", "ports": [443], "addresses": [HTTPBIN]}],
        [
            To("http://httpbin.org/", reaches="edition.cnn.com"),
            To("https://httpbin.org/", reaches="edition.cnn.com"),
            To("https://www.google.com/", reaches="httpbin.org"),
        ],
        ["https://edition.cnn.com/", "http://edition.cnn.com/", "http://www.google.com/"],
    ),
    "range of a TLS host": Shape(
        [{"host": "httpbin.org", "ports": [443], "addresses": [RANGE]}],
        ["https://httpbin.org/", To("https://httpbin.org/", at="www.google.com", reaches="www.google.com")],
        ["https://www.google.com/", To("https://httpbin.org/", at="www.wikipedia.org")],
    ),
    "TCP": Shape(
        [
            {"host": "db.example.com", "ports": ["tcp/9000", "tcp/5432"], "addresses": [CNN]},
            {"host": "mq.example.com", "ports": ["tcp/9000"], "addresses": [HTTPBIN]},
        ],
        ["tcp://edition.cnn.com:9000", "tcp://edition.cnn.com:5432", "tcp://httpbin.org:9000"],
        ["tcp://httpbin.org:5432", "tcp://other.example.com:9000"],
    ),
    "TCP, HTTP and TLS of one host": Shape(
        [{"host": "edition.cnn.com", "ports": [80, 443, "tcp/9000"], "addresses": [CNN]}, "httpbin.org:80,443"],
        ["http://edition.cnn.com/", "https://edition.cnn.com/", "tcp://edition.cnn.com:9000", "http://httpbin.org/", "https://httpbin.org/"],
        ["http://www.cnn.com/", "https://www.cnn.com/", "tcp://httpbin.org:9000"],
    ),
    "range": Shape(
        [{"host": RANGE, "ports": ["tcp/9000"]}],
        ["tcp://edition.cnn.com:9000", "tcp://other.example.com:9000"],
        ["tcp://edition.cnn.com:5432", "tcp://www.wikipedia.org:9000"],
    ),
    "range beside hosts on the same ports": Shape(
        [{"host": f"{GOOGLE}/31", "ports": [80, 443]}, "httpbin.org:80,443"],
        ["http://other.example.com/", "https://www.google.com/", "http://httpbin.org/", "https://httpbin.org/"],
        ["http://edition.cnn.com/", "https://edition.cnn.com/"],
    ),
    "address": Shape(
        [{"host": OTHER, "ports": [80, 443]}],
        ["http://other.example.com/", "https://other.example.com/", f"http://{OTHER}/"],
        ["http://httpbin.org/", "https://httpbin.org/"],
    ),
    "address as HTTP": Shape(
        [{"host": OTHER, "ports": ["http/80"]}, "httpbin.org:80"],
        [f"http://{OTHER}/", "http://httpbin.org/"],
        ["http://other.example.com/", f"http://{HTTPBIN}/"],
    ),
    "whole port": Shape(
        [{"host": "edition.cnn.com", "ports": ["tcp/9000"], "capture_port": True}],
        ["tcp://edition.cnn.com:9000", To("tcp://httpbin.org:9000", reaches="edition.cnn.com")],
        ["tcp://edition.cnn.com:5432"],
    ),
}


@pytest.fixture(scope="module")
def refusing(workload, run_module, own_mesh):
    """The workload, under REGISTRY_ONLY."""
    run_module(MODE, namespace=workload.namespace, mode="REGISTRY_ONLY")
    return workload


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_entry_lets_out_what_it_names_and_no_more(refusing, run_module, shape):
    result = run_module(HOST, namespace=refusing.namespace, hosts=shape.entries, purge=True)
    assert result["verified"] and result["proxies"]["following"] == 1, result
    seen = {to: request(refusing, to) for to in map(as_request, [*shape.allowed, *shape.refused])}
    assert seen == {to: ADDRESS.get(to.reaches, to.reaches) for to in map(as_request, shape.allowed)} | {
        to: REFUSED[urlsplit(to.url).scheme] for to in map(as_request, shape.refused)
    }


def test_an_exported_host_is_let_out_where_it_is_exported_to_and_nowhere_else(refusing, run_module, namespace, start):
    with ThreadPoolExecutor() as pool:
        named, unnamed = pool.map(start, [namespace("named"), namespace("unnamed")])
    for each in (named, unnamed):
        run_module(MODE, namespace=each.namespace, mode="REGISTRY_ONLY")
    result = run_module(HOST, namespace=refusing.namespace, hosts=["httpbin.org:80"], export_to=[named.namespace], purge=True)
    assert result["verified"] and result["proxies"]["total"] == 1, result
    assert [each.curl("http://httpbin.org/").outcome for each in (named, unnamed, refusing)] == ["200", "502", "502"]
    result = run_module(HOST, namespace=refusing.namespace, hosts=["httpbin.org:80"], export_to=[".", named.namespace], purge=True)
    assert result["verified"] and result["proxies"]["total"] == 2, result
    assert [each.curl("http://httpbin.org/").outcome for each in (named, unnamed, refusing)] == ["200", "502", "200"]


def as_request(to: To | str) -> To:
    to = to if isinstance(to, To) else To(to)
    return to if to.reaches else to._replace(reaches=urlsplit(to.url).hostname)


def request(workload, to: To) -> str:
    """The address that answered, or how the request was refused."""
    parts = urlsplit(to.url)
    dialled = ADDRESS.get(to.at or parts.hostname, parts.hostname)
    if parts.scheme == "tcp":
        greeting = workload.greeting(dialled, parts.port)
        return greeting["address"] if greeting else "closed"
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    answer = workload.curl(to.url, "-k", *(["--connect-to", f"{parts.hostname}:{port}:{dialled}:{port}"] if to.at else []))
    return answer.body["address"] if answer.status == 200 else answer.outcome
