"""What goes through an egress gateway, and who may, under REGISTRY_ONLY: each row is a real request, and the far end says where it came from.

The mesh's own gateway carries the hosts of two namespaces that the tests made; whatever else it carries is left alone.
"""

from __future__ import annotations

import base64
import secrets
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.onemachine import pki
from mesh.conftest import IMAGE, scope_of

HOST, MODE, GATEWAY, CHECK, EXPLAIN = "istio_egress_host", "istio_outbound_mode", "istio_egress_gateway", "istio_egress_check", "istio_egress_explain"
CNN, BESIDE, UNLISTED = "www.cnn.com", "de.wikipedia.org", "other.example.com"
KINDS = ("ServiceEntry", "Gateway", "DestinationRule", "VirtualService", "AuthorizationPolicy")
ECHO = 5432
SNIS = {"cnn": "", "host": CNN, "made-up": "other.egress", "bare": ".egress", "team": "team.example.com"}
"""Names in the mesh's TLS on the way to a gateway, by subset: Istio's own for it, that of the host, such as TLS and TCP have there, and one of a team."""


@pytest.fixture(scope="module")
def place(api, cluster, namespace, start, run_module):
    """Two workloads in namespaces of their own, `mine` and `theirs`, that may reach nothing by themselves, and the addresses of the gateway's pods."""
    mine, theirs = start(namespace("gateway")), start(namespace("gateway-too"))
    for workload in (mine, theirs):
        run_module(MODE, namespace=workload.namespace, mode="REGISTRY_ONLY")
    pods = cluster.list("Pod", "istio-system", labels="istio=egressgateway")
    return SimpleNamespace(mine=mine, theirs=theirs, at=[p["status"]["podIP"] for p in pods], pods=[p["metadata"]["name"] for p in pods])


@pytest.fixture
def through(place, run_module, api):
    """`through(HOSTS, **options)`: sends hosts through the gateway for `mine`; taken back afterwards, when nothing of it may be left anywhere."""
    before = ours(api, place)

    def send(hosts, **options):
        return run_module(GATEWAY, namespace=place.mine.namespace, hosts=hosts, **options)

    yield send
    run_module(GATEWAY, namespace=place.mine.namespace, state="absent", purge=True)
    assert ours(api, place) == before


def ours(api, place):
    """Everything of the kinds concerned in the namespaces of the clients, and beside the gateway what is there for one of them."""
    names = {place.mine.namespace, place.theirs.namespace}
    found = {}
    for kind in KINDS:
        for obj in api.list(kind):
            if obj["metadata"]["namespace"] in names or scope_of(obj) in names:
                found[kind, obj["metadata"]["namespace"], obj["metadata"]["name"]] = obj["spec"]
    return found


def log_line(cluster, namespace, pod, text, since):
    """The last line of a proxy's access log that has the text; the proxy writes it a moment after the answer."""
    for _attempt in range(50):
        lines = [line for line in cluster.log(namespace, pod, "istio-proxy", since_seconds=int(time.time() - since) + 2).splitlines() if text in line]
        if lines:
            return lines[-1]
        time.sleep(0.1)
    raise AssertionError(f"no line with {text} in the log of {namespace}/{pod}")


def certificate(folder: Path, name: str) -> dict[str, bytes]:
    """A CA, and a key and certificate of it for `name`."""
    pki.authority(folder / "ca.crt", folder / "ca.key", f"CA of {name}")
    pki.leaf(folder / "own.crt", folder / "own.key", f"/CN={name}", (folder / "ca.crt", folder / "ca.key"), [f"DNS:{name}"])
    return {"ca.crt": (folder / "ca.crt").read_bytes(), "tls.crt": (folder / "own.crt").read_bytes(), "tls.key": (folder / "own.key").read_bytes()}


@pytest.fixture
def secret(api):
    """`secret(DATA)`: the name of a new Secret beside the gateway."""
    made = []

    def new(data):
        name = f"egress-test-{secrets.token_hex(3)}"
        values = {key: base64.b64encode(value).decode() for key, value in data.items()}
        api.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "istio-system"}, "data": values})
        made.append(name)
        return name

    yield new
    for name in made:
        api.delete("Secret", "istio-system", name)


def test_http_tls_and_tcp_come_from_the_gateway(through, place, cluster):
    start, address = time.time(), place.mine.curl(f"https://{UNLISTED}/", "-k").address
    result = through([{"host": CNN, "ports": [80, 443]}, {"host": UNLISTED, "ports": [f"tcp/{ECHO}"], "addresses": [address]}])
    assert result["changed"] and result["verified"]
    assert place.mine.curl(f"http://{CNN}/").body["client"] in place.at
    assert place.mine.curl(f"https://{CNN}/").body["client"] in place.at
    assert place.mine.greeting(address, ECHO)["client"] in place.at
    assert place.mine.curl(f"http://{UNLISTED}/").outcome == "502"
    assert [place.theirs.curl(f"{scheme}://{CNN}/").outcome for scheme in ("http", "https")] == ["502", "closed"]
    for seen, to in ((f'"{CNN}"', "|443|mutual|istio-egressgateway"), (f"{CNN} -", "|443|plain|istio-egressgateway")):
        assert to in log_line(cluster, place.mine.namespace, place.mine.pod, seen, start)
    assert f"outbound|80||{CNN}" in log_line(cluster, "istio-system", place.pods[0], f'"{CNN}"', start)
    again = through([{"host": CNN, "ports": [80, 443]}, {"host": UNLISTED, "ports": [f"tcp/{ECHO}"], "addresses": [address]}])
    assert not again["changed"] and again["verified"]


def test_a_name_that_the_gateway_cannot_look_up_is_told(through, place):
    result = through(["no-such-host.invalid:80", f"{CNN}:80"])
    assert (result["verified"], result["unresolved"]) == (True, ["no-such-host.invalid"])
    assert [w for w in result.warnings if w.startswith("no-such-host.invalid has no address") and f"istio-system/{place.pods[0]}" in w], result.warnings


def test_gateway_puts_tls_around_http(through, place, secret, tmp_path, own_mesh):
    through([f"{CNN}:80,443"], tls="simple")
    for url in (f"http://{CNN}/", f"https://{CNN}/"):
        answer = place.mine.curl(url)
        assert (answer.outcome, answer.body["scheme"], answer.body["certificate"]) == ("200", "https", ""), url
        assert answer.body["client"] in place.at

    data = certificate(tmp_path, "client.example.com")
    through([f"{CNN}:80"], tls="mutual", credential=secret({**data, "ca.crt": own_mesh.cache.far_ca.read_bytes()}))
    answer = place.mine.curl(f"http://{CNN}/")
    assert (answer.outcome, answer.body["scheme"], answer.body["certificate"]) == ("200", "https", "CN=client.example.com")
    assert answer.body["client"] in place.at


def test_gateway_believes_no_certificate_of_another_ca(through, place, secret, tmp_path):
    distrusting = secret({"ca.crt": certificate(tmp_path, "nobody.example.com")["ca.crt"]})
    through([f"{CNN}:80"], tls="simple", credential=distrusting)
    assert place.mine.curl(f"http://{CNN}/").outcome == "503"
    through([f"{CNN}:80"], tls="simple", tls_verify=False)
    assert place.mine.curl(f"http://{CNN}/").body["scheme"] == "https"


@pytest.mark.parametrize(
    ("data", "tls", "says"),
    [
        (None, "simple", 'There is no Secret "missing" in namespace "istio-system"'),
        ({"ca.crt": b"x"}, "mutual", "has no tls.crt and no tls.key, which tls mutual needs"),
        ({"tls.crt": b"x"}, "simple", "has no ca.crt, which tls simple needs"),
    ],
)
def test_secret_that_would_not_do_is_refused(run_module, place, secret, api, data, tls, says):
    before = ours(api, place)
    name = secret(data) if data else "missing"
    result = run_module(GATEWAY, fails=True, namespace=place.mine.namespace, hosts=[f"{CNN}:80"], tls=tls, credential=name)
    assert says in result.msg
    assert ours(api, place) == before


def outcomes(workload, address):
    return [*(workload.curl(f"{scheme}://{CNN}/").outcome for scheme in ("http", "https")), "200" if workload.echoed(address, ECHO) else "closed"]


def settled(workload, address, expected):
    """The outcomes once HTTP's is as expected several times in a row: each connection that the sidecar's threads kept to the gateway may carry one request
    more under what held before. TLS and TCP have a new connection each time."""
    in_a_row = 0
    for _attempt in range(60):
        in_a_row = in_a_row + 1 if workload.curl(f"http://{CNN}/").outcome == expected[0] else 0
        if in_a_row == 8:
            break
    return outcomes(workload, address)


@pytest.fixture
def under_other_names(place, api):
    """`under_other_names()`: what `theirs` gets of CNN under each of SNIS, by a way to the gateway that its namespace wrote for itself.

    The last of the names has a server of its own at the gateway, a tunnel for TCP.
    """
    to = "istio-egressgateway.istio-system.svc.cluster.local"
    subsets, ways = [], []
    for name, sni in SNIS.items():
        policy = {"tls": {"mode": "ISTIO_MUTUAL", **({"sni": sni} if sni else {})}, "connectionPool": {"http": {"maxRequestsPerConnection": 1}}}
        subsets.append({"name": name, "trafficPolicy": policy})
        route = [{"destination": {"host": to, "subset": name, "port": {"number": 443}}}]
        ways.append({"match": [{"uri": {"prefix": f"/{name}"}}], "rewrite": {"authority": CNN}, "route": route})
    rule = {"host": to, "exportTo": ["."], "subsets": subsets}
    service = {"hosts": [UNLISTED], "gateways": ["mesh"], "exportTo": ["."], "http": ways}
    port = {"number": 443, "name": "tls", "protocol": "TLS"}
    tunnel = {"selector": {"istio": "egressgateway"}, "servers": [{"port": port, "hosts": [SNIS["team"]], "tls": {"mode": "ISTIO_MUTUAL"}}]}
    out = [{"match": [{"port": 443}], "route": [{"destination": {"host": CNN, "port": {"number": 80}}}]}]
    leg = {"hosts": [SNIS["team"]], "gateways": ["tunnel"], "exportTo": ["."], "tcp": out}
    made = [("Gateway", "tunnel", tunnel), ("VirtualService", "tunnel", leg), ("DestinationRule", "own-way", rule), ("VirtualService", "own-way", service)]
    for kind, name, spec in made:
        metadata = {"name": name, "namespace": place.theirs.namespace}
        api.create({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec})
    yield lambda: {name: place.theirs.curl(f"http://{UNLISTED}/{name}").outcome for name in SNIS}
    for kind, name, _spec in reversed(made):
        api.delete(kind, place.theirs.namespace, name)


def test_a_name_that_a_client_makes_up_leads_nobody_around_who_may(through, place, run_module, under_other_names):
    both = [".", place.theirs.namespace]
    through([f"{CNN}:80"], export_to=both)
    assert under_other_names() == {"cnn": "200", "host": "200", "made-up": "404", "bare": "404", "team": "200"}
    through([f"{CNN}:80"], export_to=both, allow_from=[f"{place.mine.namespace}/default"])
    assert under_other_names() == {"cnn": "403", "host": "403", "made-up": "404", "bare": "404", "team": "200"}
    told = run_module(EXPLAIN, namespace=place.theirs.namespace, urls=[f"http://{UNLISTED}/cnn"])["explanations"]
    assert [(e["verdict"], "egress-istio-egressgateway-from-" in e["reason"]) for e in told] == [("blocked", True)], told
    assert place.mine.curl(f"http://{CNN}/").outcome == "200"


def test_identity_decides_for_http_tls_and_tcp(through, place):
    address = place.mine.curl(f"https://{UNLISTED}/", "-k").address
    hosts = [{"host": CNN, "ports": [80, 443]}, {"host": UNLISTED, "ports": [f"tcp/{ECHO}"], "addresses": [address]}, f"{BESIDE}:80"]
    both, all_open = [".", place.theirs.namespace], ["200"] * 3
    mine = f"{place.mine.namespace}/default"
    through(hosts[2:], export_to=both)
    through(hosts[:2], export_to=both, allow_from=[mine])
    assert outcomes(place.theirs, address) == ["403", "closed", "closed"]  # at once: it was never open to them
    assert outcomes(place.mine, address) == all_open
    assert place.theirs.curl(f"http://{BESIDE}/").outcome == "200"  # a host beside them, without allow_from

    through(hosts[:2], export_to=both, allow_from=[mine], allow_from_mode="shadow")
    assert [settled(w, address, all_open) for w in (place.theirs, place.mine)] == [all_open] * 2
    shadow = through(hosts[:2], export_to=both, allow_from=[mine], allow_from_mode="shadow")
    assert not shadow["changed"]
    assert [outcomes(w, address) for w in (place.theirs, place.mine)] == [all_open] * 2
    counted = through(hosts[:2], export_to=both, allow_from=[mine], allow_from_mode="shadow")
    assert counted["shadow_denied"] - shadow["shadow_denied"] == 3  # those of `theirs`, and none of `mine`

    through(hosts[:2], export_to=both, allow_from=[place.theirs.namespace])
    denied = ["403", "closed", "closed"]
    assert settled(place.mine, address, denied) == denied
    assert outcomes(place.theirs, address) == all_open


def test_a_check_asks_for_what_is_declared_as_somebody_who_may_not(through, place, run_module, api):
    address = place.mine.curl(f"https://{UNLISTED}/", "-k").address
    hosts = [{"host": CNN, "ports": [80, 443]}, {"host": UNLISTED, "ports": [f"tcp/{ECHO}"], "addresses": [address]}]
    through(hosts, export_to=[".", place.theirs.namespace], allow_from=[f"{place.mine.namespace}/default"])
    asked, silent = [f"http://{CNN}/", f"https://{CNN}/"], f"tcp://{address}:{ECHO}"
    result = run_module(CHECK, namespace=place.mine.namespace, image=IMAGE, insecure=True, retries=3, refuse_others=False)
    assert sorted((r["url"], r["verdict"], r["via"]) for r in result["checks"] if r["expect"] == "allowed") == [
        (url, "allowed", "gateway") for url in (*asked, silent)
    ]
    strangers = [r for r in result["checks"] if r["rule"] == "an identity that may not"]
    assert sorted((r["url"], r["by"], r["met"]) for r in strangers) == [(url, "gateway policy", True) for url in asked]
    assert any(f"plain TCP to {UNLISTED}" in note for note in result["notes"]), result["notes"]
    left = [o["metadata"]["name"] for kind in ("Pod", "ServiceAccount") for o in api.list(kind, place.mine.namespace)]
    assert [name for name in left if name.startswith("egress-check-")] == []

    theirs = run_module(CHECK, namespace=place.theirs.namespace, insecure=True, retries=3, refuse_others=False)
    own = [r for r in theirs["checks"] if r["rule"] == "an identity that may not"]
    assert sorted((r["url"], r["by"], r["met"]) for r in own) == [(url, "gateway policy", True) for url in asked]


def test_two_namespaces_send_one_host_through_one_gateway_each_with_ports_of_its_own(through, place, run_module):
    def seen(workload):
        return [workload.curl(url, "-k").outcome for url in (f"http://{CNN}/", f"https://{CNN}/")]

    try:
        through([f"{CNN}:443"])
        run_module(GATEWAY, namespace=place.theirs.namespace, hosts=[f"{CNN}:80,443"])
        assert [seen(place.mine), seen(place.theirs)] == [["502", "200"], ["200", "200"]]
        assert place.theirs.curl(f"http://{CNN}/").body["client"] in place.at
        run_module(GATEWAY, namespace=place.theirs.namespace, hosts=[f"{CNN}:80"])
        assert [seen(place.mine), seen(place.theirs)] == [["502", "200"], ["200", "closed"]]
        through([CNN], state="absent")
        assert [seen(place.mine), seen(place.theirs)] == [["502", "closed"], ["200", "closed"]]
    finally:
        run_module(GATEWAY, namespace=place.theirs.namespace, state="absent", purge=True)


def test_wildcard_goes_to_the_backend_that_serves_it(through, place):
    wildcard = {"host": "*.wikipedia.org", "ports": [80, 443], "backend": "www.wikipedia.org"}
    through([wildcard])
    for scheme in ("http", "https"):
        answer = place.mine.curl(f"{scheme}://en.wikipedia.org/")
        assert answer.body["client"] in place.at
        assert answer.body["address"] == place.mine.curl(f"{scheme}://www.wikipedia.org/").body["address"]
        assert answer.body["host"] == "en.wikipedia.org"
    through([{**wildcard, "allow_from": [f"{place.mine.namespace}/default"]}], export_to=[".", place.theirs.namespace])
    as_named = {
        host: [w.curl("http://de.wikipedia.org/", "-H", f"Host: {host}").outcome for w in (place.mine, place.theirs)]
        for host in ("de.wikipedia.org", "DE.wikipedia.org:80", "de.wikipedia.org:8080")
    }
    assert as_named == {"de.wikipedia.org": ["200", "403"], "DE.wikipedia.org:80": ["200", "403"], "de.wikipedia.org:8080": ["404", "404"]}
    assert place.mine.curl(f"http://{CNN}/").outcome == "502"


def test_everything_goes_to_the_gateway_which_lets_out_what_is_listed(through, place, api):
    through(["everything"])
    assert [place.mine.curl(f"{scheme}://{CNN}/").outcome for scheme in ("http", "https")] == ["404", "closed"]
    known = {key: spec for key, spec in ours(api, place).items() if key[1] == place.mine.namespace}
    result = through([f"{CNN}:80,443", f"{BESIDE}:80"])
    assert result["everything"]["domains"] == ["com", "dev", "io", "net", "org"]
    for url in (f"http://{CNN}/", f"https://{CNN}/", f"http://{BESIDE}/"):
        assert place.mine.curl(url).body["client"] in place.at, url
    assert [place.mine.curl(f"{scheme}://{UNLISTED}/").outcome for scheme in ("http", "https")] == ["404", "closed"]
    assert {key: spec for key, spec in ours(api, place).items() if key[1] == place.mine.namespace} == known  # the clients learn of no host
    through(["everything"], state="absent")
    assert place.mine.curl(f"http://{CNN}/").body["client"] in place.at
    assert place.mine.curl(f"http://{UNLISTED}/").outcome == "502"
