"""What host entries mean, what is refused before anything is written, and in which words. Tables; no objects, no cluster."""

from __future__ import annotations

import ipaddress
from datetime import date

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.meshops.istio_egress.plugins.module_utils._policy import (
    METADATA,
    RESOLUTIONS,
    PolicyError,
    expired,
    export_to,
    parse_hosts,
    parse_names,
    policy_name,
)

IP_DOMAIN = ".ip.istio-egress.meshops.io"


def short(entry):
    """A parsed entry as a row of a table: host, ports, resolution, addresses."""
    return entry.host, " ".join(f"{p.protocol.lower()}/{p.number}" for p in entry.ports), entry.resolution, " ".join(entry.addresses)


def refusal(call, *arguments) -> tuple[str, str]:
    """What is wrong, and the way out: the two lines of the error."""
    with pytest.raises(PolicyError) as raised:
        call(*arguments)
    what, way_out = str(raised.value).split("\n")
    assert what and way_out
    return what, way_out


# -- what an entry means ------------------------------------------------------------------------------------------------------------

UNDERSTOOD = [
    # entry, host, ports, resolution, addresses
    ("www.google.com", "www.google.com", "tls/443", "DNS", ""),
    ("httpbin.org:80", "httpbin.org", "http/80", "DNS", ""),
    ("edition.cnn.com:443,80", "edition.cnn.com", "http/80 tls/443", "DNS", ""),
    ("api.example.com:http/8080", "api.example.com", "http/8080", "DNS", ""),
    ({"host": "WWW.Google.COM."}, "www.google.com", "tls/443", "DNS", ""),
    ({"host": " www.google.com "}, "www.google.com", "tls/443", "DNS", ""),
    ({"host": "a.example.com", "ports": []}, "a.example.com", "tls/443", "DNS", ""),
    ({"host": "a.example.com", "ports": None, "addresses": None, "resolution": None}, "a.example.com", "tls/443", "DNS", ""),
    ("a.example.com:443,", "a.example.com", "tls/443", "DNS", ""),
    ({"host": "a.example.com", "ports": 80}, "a.example.com", "http/80", "DNS", ""),
    ({"host": "a.example.com", "ports": "80, tls/8443"}, "a.example.com", "http/80 tls/8443", "DNS", ""),
    ({"host": "a.example.com", "ports": {"number": 5432, "protocol": "TLS"}}, "a.example.com", "tls/5432", "DNS", ""),
    ({"host": "a.example.com", "ports": ["443", "80"]}, "a.example.com", "http/80 tls/443", "DNS", ""),
    ({"host": "a.example.com", "ports": [{"number": 8443, "protocol": "https"}]}, "a.example.com", "https/8443", "DNS", ""),
    ({"host": "a.example.com", "ports": [{"number": "443"}]}, "a.example.com", "tls/443", "DNS", ""),
    ({"host": "a.example.com", "ports": ["GRPC/50051", "http2/8080"]}, "a.example.com", "http2/8080 grpc/50051", "DNS", ""),
    ({"host": "a.example.com", "ports": ["https/443"]}, "a.example.com", "https/443", "DNS", ""),
    ({"host": "a.example.com", "ports": [443, "tls/443"]}, "a.example.com", "tls/443", "DNS", ""),
    ({"host": "a.example.com", "resolution": "dns_round_robin"}, "a.example.com", "tls/443", "DNS_ROUND_ROBIN", ""),
    ({"host": "a.example.com", "resolution": "none"}, "a.example.com", "tls/443", "NONE", ""),
    # Wildcards: the name on the wire decides, nobody can look them up.
    ("*.wikipedia.org", "*.wikipedia.org", "tls/443", "NONE", ""),
    ({"host": "*.wikipedia.org", "ports": [80, 443], "resolution": "dynamic_dns"}, "*.wikipedia.org", "http/80 tls/443", "DYNAMIC_DNS", ""),
    ("*.com", "*.com", "tls/443", "NONE", ""),
    # HTTP and TLS with addresses: these are the far end.
    ({"host": "a.example.com", "addresses": ["192.0.2.1"]}, "a.example.com", "tls/443", "STATIC", "192.0.2.1"),
    ({"host": "a.example.com", "addresses": ["192.0.2.1/32"]}, "a.example.com", "tls/443", "STATIC", "192.0.2.1"),
    ({"host": "a.example.com", "addresses": ["192.0.2.0/24"]}, "a.example.com", "tls/443", "NONE", "192.0.2.0/24"),
    ({"host": "a.example.com", "addresses": ["2001:DB8:0::1"]}, "a.example.com", "tls/443", "STATIC", "2001:db8::1"),
    ({"host": "a.example.com", "addresses": "192.0.2.1, 192.0.2.2\n192.0.2.1"}, "a.example.com", "tls/443", "STATIC", "192.0.2.1 192.0.2.2"),
    # TCP: nothing but the address tells hosts apart, and the connection goes where the client dialled.
    ({"host": "db.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.1"]}, "db.example.com", "tcp/5432", "NONE", "192.0.2.1"),
    ({"host": "db.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.77/24"]}, "db.example.com", "tcp/5432", "NONE", "192.0.2.0/24"),
    ({"host": "db.example.com", "ports": ["mongo/1"], "addresses": ["192.0.2.1"], "resolution": "static"}, "db.example.com", "mongo/1", "STATIC", "192.0.2.1"),
    ({"host": "db.example.com", "ports": ["tcp/5432"], "addresses": ["192.0.2.1"], "resolution": "dns"}, "db.example.com", "tcp/5432", "DNS", "192.0.2.1"),
    ({"host": "db.example.com", "ports": ["tcp/5432"], "capture_port": True}, "db.example.com", "tcp/5432", "DNS", ""),
    ({"host": "db.example.com", "ports": ["tcp/5432"], "capture_port": "yes"}, "db.example.com", "tcp/5432", "DNS", ""),
    # Addresses alone: Istio wants a host, so they get a name; ports are TCP, since no name is on the wire.
    ("192.0.2.10", "192-0-2-10" + IP_DOMAIN, "tcp/443", "NONE", "192.0.2.10"),
    ("192.0.2.10:443", "192-0-2-10" + IP_DOMAIN, "tcp/443", "NONE", "192.0.2.10"),
    ({"host": "198.51.100.0/24", "ports": [80, "tcp/9000"]}, "198-51-100-0-slash-24" + IP_DOMAIN, "tcp/80 tcp/9000", "NONE", "198.51.100.0/24"),
    ({"host": "198.51.100.7/24"}, "198-51-100-0-slash-24" + IP_DOMAIN, "tcp/443", "NONE", "198.51.100.0/24"),
]


@pytest.mark.parametrize(("entry", "host", "ports", "resolution", "addresses"), UNDERSTOOD, ids=[str(row[0]) for row in UNDERSTOOD])
def test_an_entry_means(entry, host, ports, resolution, addresses):
    assert [short(e) for e in parse_hosts([entry])] == [(host, ports, resolution, addresses)]


def test_one_text_may_hold_several_entries_as_a_survey_gives_them():
    survey = parse_hosts(["www.google.com\nhttpbin.org:80  *.wikipedia.org\n"])
    assert [short(e)[:2] for e in survey] == [("*.wikipedia.org", "tls/443"), ("httpbin.org", "http/80"), ("www.google.com", "tls/443")]


def test_nothing_listed_is_nothing_wanted():
    assert parse_hosts([]) == parse_hosts([""]) == parse_hosts([" \n "]) == ()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("a.example.com", ["port 443 is TLS", "resolution DNS: "]),
        ("a.example.com:80,tls/8443", ["port 80 is HTTP", "resolution DNS: "]),
        ({"host": "a.example.com", "ports": ["tls/443"], "resolution": "dns"}, []),
        ({"host": "192.0.2.10"}, [f"named 192-0-2-10{IP_DOMAIN}", "port 443 is TCP", "resolution NONE: "]),
        ({"host": "*.example.com", "ports": ["tls/443"]}, ["resolution NONE: "]),
        ({"host": "a.example.com", "ports": ["tls/443"], "addresses": ["192.0.2.1"]}, ["resolution STATIC: "]),
        (["a.example.com:80", "a.example.com:443"], ["port 80 is HTTP", "port 443 is TLS", "resolution DNS: "]),
    ],
    ids=str,
)  # fmt: skip
def test_what_was_decided_for_the_user_is_said_and_nothing_else(entry, said):
    [parsed] = parse_hosts(entry if isinstance(entry, list) else [entry])
    chosen = sorted(parsed.chosen)
    assert len(chosen) == len(said) and all(words.startswith(start) for words, start in zip(chosen, sorted(said), strict=True))


# -- several entries ----------------------------------------------------------------------------------------------------------------


def test_entries_come_sorted_whatever_the_order_they_are_listed_in():
    listed = ["c.example.com", "*.example.com", "a.example.com", "192.0.2.1"]
    assert [e.host for e in parse_hosts(listed)] == [e.host for e in parse_hosts(listed[::-1])] == sorted(e.host for e in parse_hosts(listed))


@pytest.mark.parametrize(
    ("entries", "merged"),
    [
        (["a.example.com:80", "a.example.com:443"], ("a.example.com", "http/80 tls/443", "DNS", "")),
        (["a.example.com", "A.example.com."], ("a.example.com", "tls/443", "DNS", "")),
        (["192.0.2.0/24:tcp/1", "192.0.2.9/24:tcp/2"], ("192-0-2-0-slash-24" + IP_DOMAIN, "tcp/1 tcp/2", "NONE", "192.0.2.0/24")),
    ],
    ids=str,
)
def test_entries_of_one_host_become_one(entries, merged):
    assert [short(e) for e in parse_hosts(entries)] == [merged]


def test_metadata_of_entries_of_one_host_is_joined():
    [entry] = parse_hosts([{"host": "a.example.com", "owner": "web", "ticket": "1"}, {"host": "a.example.com", "ports": [80], "ticket": "2"}])
    assert dict(entry.metadata) == {"owner": "web", "ticket": "2"}


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        (["a.example.com:tls/8000", "a.example.com:http/8000"], "a.example.com is listed twice, with port 8000 as TLS and as HTTP"),
        (["a.example.com", {"host": "a.example.com", "resolution": "none"}], "a.example.com is listed twice, with different resolution"),
        ([{"host": f"{n}.example.com", "ports": ["tcp/1"], "capture_port": True} for n in "ab"], "a.example.com and b.example.com both capture TCP port 1"),
        ([{"host": "a.example.com", "addresses": [f"192.0.2.{n}"]} for n in (1, 2)], "a.example.com is listed twice, with different addresses"),
    ],
    ids=str,
)
def test_entries_that_contradict_each_other_are_refused(entries, what):
    assert refusal(parse_hosts, entries)[0].startswith(what)


NETWORKS = st.builds(lambda address, bits: ipaddress.ip_network((address, bits % address.max_prefixlen + 1), strict=False), st.ip_addresses(), st.integers(0))


@given(st.lists(st.ip_addresses() | NETWORKS, min_size=2, max_size=2))
@example(["2001:db8::/32", "2001:db8::32"])
@example(["10.0.0.0/8", "10.0.0.0"])
def test_two_addresses_have_two_names(addresses):
    different = len({str(ipaddress.ip_network(a)) for a in addresses})
    assert len(parse_names([str(a) for a in addresses])) == different


# -- what is refused ----------------------------------------------------------------------------------------------------------------


REFUSED = [
    # entry, what is wrong with it, the way out
    ("https://www.google.com/search", "is a URL", "{host: www.google.com"),
    ("www.google.com/search", "is a URL or a path", "{host: www.google.com"),
    ("*", "would allow every host", "ALLOW_ANY"),
    ("*foo.com", "a wildcard can only be the whole first label", '"*.foo.com"'),
    ("www.*.com", "a wildcard can only be the whole first label", "name the hosts"),
    ("*.*.example.com", "a wildcard can only be the whole first label", "name the hosts"),
    ("google", "has no domain", "google.example.com"),
    ("under_score.example.com", '"under_score" is not a DNS label', "api.example.com"),
    ({"host": "a\n.example.com"}, '"a " is not a DNS label', "api.example.com"),
    ("-a.example.com", '"-a" is not a DNS label', "api.example.com"),
    ("a..example.com", '"" is not a DNS label', "api.example.com"),
    ("münchen.example.com", '"münchen" is not a DNS label', "api.example.com"),
    (f"{'a' * 64}.example.com", "is not a DNS label", "api.example.com"),
    (".".join(["a" * 60] * 5), "too long", "api.example.com"),
    ("192.0.2.300", "ends in a number", "an IP or CIDR"),
    ("reviews.default.svc.cluster.local", "is a Service of the cluster", "Leave it out"),
    ("reviews.default.svc", "is a Service of the cluster", "Leave it out"),
    ("0.0.0.0/0", "every address there is", "ALLOW_ANY"),
    ("::/0", "every address there is", "ALLOW_ANY"),
    ({}, "must be a host or a dictionary", "Example"),
    ({"name": "a.example.com"}, "must be a host or a dictionary", "Example"),
    ({"host": ""}, "must be a host or a dictionary", "Example"),
    (None, "must be a host or a dictionary", "Example"),
    ({"host": "a.example.com", "port": 443}, 'has no key "port"', "ports"),
    # ports
    ("a.example.com:8443", "port 8443 needs a protocol", "tls/8443"),
    ("a.example.com:0", "is not a port", "65535"),
    ("a.example.com:65536", "is not a port", "65535"),
    ("a.example.com:https", "is not a port", "65535"),
    ({"host": "a.example.com", "ports": [{"protocol": "TCP"}]}, "is not a port", "{number: 5432, protocol: TCP}"),
    ({"host": "a.example.com", "ports": ["xyz/443"]}, '"XYZ", which Istio does not know', "HTTP, HTTP2, GRPC, HTTPS, TLS, TCP, MONGO"),
    ({"host": "a.example.com", "ports": ["udp/53"]}, "UDP port 53 cannot be controlled", "NetworkPolicy"),
    ({"host": "a.example.com", "ports": [443, "tcp/443"]}, "port 443 twice, as TCP and TLS", "a port has one protocol"),
    ({"host": "a.example.com", "ports": "8443"}, "port 8443 needs a protocol", "tls/8443"),
    ({"host": "a.example.com", "ports": [{"number": 80, "protocl": "TCP"}]}, 'a port has no key "protocl"', "protocol: TCP"),
    ({"host": "a.example.com", "ports": [float("inf")]}, "is not a port", "65535"),
    ({"host": "a.example.com", "ports": [443.7]}, "443.7 is not a port", "65535"),
    ({"host": "a.example.com", "ports": [True]}, "True is not a port", "65535"),
    ({"host": "a.example.com", "ports": [f"tls/{n}" for n in range(1, 258)]}, "has 257 ports", "256"),
    ("a.example.com:", "ends where a port should follow", ""),
    # addresses
    ({"host": "a.example.com", "addresses": ["192.0.2"]}, '"192.0.2" is neither an IP nor a CIDR', "192.0.2.0/24"),
    ({"host": "a.example.com", "addresses": ["b.example.com"]}, '"b.example.com" is neither an IP nor a CIDR', "192.0.2.10"),
    ({"host": "a.example.com", "addresses": ["0.0.0.0/0"]}, "0.0.0.0/0 is every address there is", "name the ranges"),
    ({"host": "a.example.com", "addresses": [f"10.0.{n // 256}.{n % 256}" for n in range(257)]}, "has 257 addresses", "larger CIDRs"),
    ({"host": "a.example.com", "addresses": "192.0.2.300"}, '"192.0.2.300" is neither an IP nor a CIDR', "192.0.2.10"),
    ({"host": "a.example.com", "addresses": 7}, '"7" is neither an IP nor a CIDR', "192.0.2.10"),
    ({"host": "198.51.100.0/24", "addresses": ["203.0.113.1"]}, "is an address itself", "two entries"),
    ("10.0.0.0/33", "is neither an IP nor a CIDR", "192.0.2.0/24"),
    ("fe80::1%eth0", "is neither an IP nor a CIDR", "192.0.2.10"),
    ("198.51.100.0/24:tls/443", "an address has none", "tcp/443"),
    # resolution
    ({"host": "a.example.com", "resolution": "fast"}, '"fast" is not a resolution', "dns_round_robin"),
    ({"host": "*.example.com", "resolution": "dns"}, "a wildcard cannot be looked up", "resolution none"),
    ({"host": "*.example.com", "resolution": "dns_round_robin"}, "a wildcard cannot be looked up", "dynamic_dns"),
    ({"host": "a.example.com", "resolution": "dns", "addresses": ["192.0.2.0/24"]}, "192.0.2.0/24 is a range", "single addresses"),
    ({"host": "a.example.com", "resolution": "dns_round_robin", "addresses": ["192.0.2.0/24"]}, "192.0.2.0/24 is a range", "single addresses"),
    ({"host": "a.example.com", "resolution": "static"}, "resolution static needs single IP addresses", "resolution dns"),
    ({"host": "a.example.com", "resolution": "static", "addresses": ["192.0.2.0/24"]}, "resolution static needs single IP addresses", "none for ranges"),
    ({"host": "a.example.com", "resolution": "dynamic_dns"}, "dynamic_dns is for wildcards", "dns for an exact host"),
    ({"host": "*.example.com", "resolution": "dynamic_dns", "addresses": ["192.0.2.1"]}, "dynamic_dns is for wildcards without addresses", "Use dns"),
    ({"host": "*.example.com", "resolution": "dynamic_dns", "ports": ["https/443"]}, "not HTTPS", "tls/443"),
    ({"host": "*.example.com", "resolution": "dynamic_dns", "ports": ["tcp/443"], "capture_port": True}, "not TCP", "tls/443"),
    # a port without a name on the wire
    ("db.example.com:tcp/5432", "would capture every connection to port 5432", "capture_port: true"),
    ({"host": "db.example.com", "ports": ["tls/443", "mongo/27017"]}, "MONGO port 27017 without addresses would capture", "addresses"),
    ({"host": "db.example.com", "ports": ["tcp/5432"], "capture_port": "no"}, "would capture every connection", "capture_port: true"),
    ({"host": "db.example.com", "ports": ["tcp/5432"], "capture_port": "maybe"}, '"maybe", which is neither true nor false', "true or false"),
    ({"host": "*.example.com", "ports": ["tcp/5432"], "capture_port": True}, "would open port 5432 to every address", "addresses"),
    ({"host": "db.example.com", "ports": ["tcp/5432"], "capture_port": True, "resolution": "none"}, "would open port 5432 to every address", "dns"),
    # a range of addresses does not bind HTTP
    ("198.51.100.0/24:http/80", "the Host header alone decides", "TCP"),
    ({"host": "a.example.com", "ports": [80, 443], "addresses": ["198.51.100.0/24"]}, "the Host header alone decides", "Leave addresses out"),
    # metadata
    ({"host": "a.example.com", "expires": "soon"}, '"soon", which is not a date', "2027-01-31"),
    ({"host": "a.example.com", "expires": "2027-02-30"}, "which is not a date", "2027-01-31"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "what", "way_out"), REFUSED, ids=lambda value: str(value)[:60])
def test_an_entry_is_refused_in_two_lines(entry, what, way_out):
    said, advice = refusal(parse_hosts, [entry])
    assert what in said and way_out in advice
    host = entry.get("host") if isinstance(entry, dict) else entry
    assert not host or str(host).partition(":")[0].partition("\n")[0] in said


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text("a1.:/*\n\x85 ", max_size=8) | st.text(max_size=8)
JSON = SCALAR | st.lists(SCALAR, max_size=3) | st.dictionaries(st.text(max_size=5), SCALAR, max_size=3)
HOST = st.sampled_from(["a.example.com", "*.example.com", "192.0.2.1", "198.51.100.0/24", "2001:db8::/32", "db"])
PORT = st.sampled_from([80, 443, "tcp/1", "TLS/2", "/", "udp/53", {"number": 5}, {"protocol": "TCP"}]) | JSON
ADDRESS = st.sampled_from(["192.0.2.1", "192.0.2.0/24"]) | JSON


def odd_entry(host):
    """A host entry that may be wrong in any of its values."""
    lists = {"ports": st.lists(PORT, max_size=3) | JSON, "addresses": st.lists(ADDRESS, max_size=3) | JSON}
    words = {"resolution": st.sampled_from(["auto", *RESOLUTIONS]) | JSON, "capture_port": JSON, "surplus": JSON}
    return st.fixed_dictionaries({"host": host}, optional={**lists, **words, **dict.fromkeys(METADATA, JSON)})


def two_lines_if_refused(entries):
    for parse in (parse_hosts, parse_names):
        try:
            parse(entries)
        except PolicyError as error:
            assert len(str(error).splitlines()) == 2


@given(st.lists(JSON | odd_entry(HOST | JSON), max_size=3))
@example([{"host": "\n", "surplus": 1}])
def test_whatever_is_given_is_understood_or_refused_in_two_lines(entries):
    two_lines_if_refused(entries)


@pytest.mark.parametrize(
    "odd",
    [
        {"host": "\n", "surplus": 1},
        {"a\nb": 1},
        {1: 2, "x": 3},
        {"ports": ["tcp\nx/1"]},
        {"ports": [{"number": 1, "protocol": "a\nb"}]},
        {"ports": [{"a\nb": 1}]},
        {"addresses": ["192.0.2.1\n192.0.2.2"]},
        {"resolution": "dns\nnone"},
        {"capture_port": "yes\nno"},
    ],
    ids=str,
)
def test_line_breaks_and_odd_keys_do_not_make_a_third_line(odd):
    two_lines_if_refused([{"host": "a.example.com", **odd}])


@given(odd_entry(HOST | st.text("aB9.-_/:*# ü", min_size=1, max_size=20).filter(str.strip)))
def test_a_refusal_names_the_host(entry):
    try:
        parse_hosts([entry])
    except PolicyError as error:
        host = " ".join(entry["host"].split())
        assert host in str(error) or host == "*."


# -- what is kept with a host -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "kept"),
    [
        ({}, {}),
        (dict.fromkeys(METADATA, "2027-01-31"), dict.fromkeys(METADATA, "2027-01-31")),
        ({"owner": " team-web ", "ticket": 1234}, {"owner": "team-web", "ticket": "1234"}),
        ({"owner": None, "reason": ""}, {}),
        ({"expires": date(2027, 1, 31)}, {"expires": "2027-01-31"}),
        ({"expires": "20270131"}, {"expires": "2027-01-31"}),
    ],
    ids=str,
)  # fmt: skip
def test_metadata(entry, kept):
    [parsed] = parse_hosts([{"host": "a.example.com", **entry}])
    assert dict(parsed.metadata) == kept


@pytest.mark.parametrize(("today", "late"), [("2027-01-30", []), ("2027-01-31", []), ("2027-02-01", [("b.example.com", "2027-01-31")])])
def test_an_entry_is_expired_from_the_day_after(today, late):
    entries = parse_hosts(["a.example.com", {"host": "b.example.com", "expires": "2027-01-31"}])
    assert expired(entries, date.fromisoformat(today)) == late


# -- names alone, policy names, export_to -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        (["A.example.com.", "b.example.com c.example.com:80"], ("a.example.com", "b.example.com", "c.example.com")),
        (["198.51.100.7/24"], ("198-51-100-0-slash-24" + IP_DOMAIN,)),
        (["a.example.com", {"host": "a.example.com", "ports": [80]}], ("a.example.com",)),
        ([{"host": "a.example.com", "ports": ["nonsense"], "resolution": "x"}], ("a.example.com",)),
        (["db.example.com:tcp/5432"], ("db.example.com",)),
    ],
    ids=str,
)
def test_a_host_is_removed_by_its_name_whatever_the_rest_of_the_entry_says(entries, names):
    assert parse_names(entries) == names


def test_what_is_no_host_cannot_be_removed_either():
    assert "is a URL" in refusal(parse_names, ["https://a.example.com"])[0]


@pytest.mark.parametrize("name", ["default", "a", "web-2", "4", "a" * 40])
def test_a_policy_name(name):
    assert policy_name(name) == name


@pytest.mark.parametrize("name", ["", "Web", "a_b", "a.b", "-a", "a-", "a" * 41, "a b", "web\n"])
def test_what_is_no_policy_name(name):
    what, way_out = refusal(policy_name, name)
    assert "cannot be the name of a policy" in what and "label" in way_out


@pytest.mark.parametrize(
    ("given", "meant"),
    [(["."], (".",)), (["*"], ("*",)), ([".", "prod", "."], (".", "prod")), (["*", "*"], ("*",)), (["istio-system"], ("istio-system",))],
    ids=str,
)
def test_export_to(given, meant):
    assert export_to(given) == meant


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ([], "empty"),
        (["*", "demo"], '"*" (all namespaces) beside others'),
        (["Demo"], '"Demo"'),
        (["demo,prod"], '"demo,prod"'),
        (["~"], '"~"'),
        ([""], '""'),
        (["demo\n"], "name of a namespace"),
    ],
    ids=str,
)
def test_what_export_to_refuses(given, what):
    assert what in refusal(export_to, given)[0]
