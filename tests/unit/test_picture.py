"""Results as SVG: well-formed whatever stands in them, and each line ends where the result says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.meshops.istio_egress.plugins.filter.egress_svg import egress_svg

SVG = "{http://www.w3.org/2000/svg}"
WORDS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=30)


def check(**more: Any) -> dict[str, Any]:
    base = {"url": "http://a.example.com/", "result": "200", "verdict": "allowed", "by": None, "via": "registered", "gateway": None}
    return {**base, "expect": "allowed", "expect_via": None, "met": True, **more}


def lines(*checks: dict[str, Any]) -> list[tuple[str, str]]:
    """(class, data) of each line that is drawn."""
    root = ET.fromstring(egress_svg({"pod": "sleep-1", "checks": list(checks)}))
    return [(p.get("class"), p.get("d")) for p in root.iter(f"{SVG}path")]


def reach(drawn: list[tuple[str, str]]) -> float:
    return float(drawn[0][1].rpartition("H")[2])


def test_a_line_ends_where_the_request_ended() -> None:
    through, gateway, mesh, dns = (
        reach(lines(check(**more)))
        for more in (
            {},
            {"verdict": "blocked", "by": "gateway policy", "gateway": "istio-system/gw"},
            {"verdict": "blocked", "by": "mesh"},
            {"verdict": "blocked", "by": "dns"},
        )
    )
    assert through > gateway > mesh > dns
    assert reach(lines(check(verdict="blocked", by="far end"))) == through


def test_a_way_around_the_sidecar_is_drawn_as_one() -> None:
    assert "C" in lines(check(via="bypass"))[0][1] and "C" not in lines(check())[0][1]


def test_what_was_not_expected_is_said() -> None:
    text = "".join(ET.fromstring(egress_svg({"pod": "sleep-1", "checks": [check(met=False, expect="blocked")]})).itertext())
    assert "expected blocked" in text and "0 as expected, 1 not" in text


@given(WORDS, WORDS, WORDS)
def test_any_words_give_a_document(what: str, name: str, reason: str) -> None:
    hops = [{"hop": "sidecar", "at": name, "what": what, "object": name, "lost": [{"object": name, "why": what}]}]
    result = {"path": hops, "picture": ["http://a.example.com:80"], "verdict": "blocked", "reason": reason, "fix": name}
    seen = [t.text for t in ET.fromstring(egress_svg(result)).iter(f"{SVG}text")]
    assert what in seen and name in seen
    ET.fromstring(egress_svg({"pod": name, "checks": [check(url=what, result=reason)]}))


def test_a_request_that_never_left_the_pod_has_a_picture() -> None:
    result = {"path": [], "picture": ["http://a.example.com:80"], "verdict": "blocked", "reason": "no such name", "fix": ""}
    assert "no such name" in egress_svg(result)


def test_of_many_ways_it_wants_one() -> None:
    with pytest.raises(AnsibleFilterError, match=r"explanations\[0\]"):
        egress_svg({"explanations": [], "picture": []})


@pytest.mark.parametrize("other", [{}, {"path": []}, "text", None])
def test_anything_else_is_refused(other: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="istio_egress_explain or istio_egress_check"):
        egress_svg(other)
