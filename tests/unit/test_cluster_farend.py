"""The far end's hosts: who gets which address, which words are refused, and how its DNS log is read."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path

import pytest

from cluster.onemachine import farend
from cluster.onemachine.layout import FAR_NETS, Cache, MeshError, Run


def test_every_host_gets_an_address_of_its_own() -> None:
    table = farend.with_hosts({"db.example": ["203.0.113.21"]}, [f"h{i}.example" for i in range(500)])
    addresses = [a for each in table.values() for a in each]
    assert len(addresses) == len(set(addresses)) == 501
    assert all(any(ipaddress.ip_address(a) in ipaddress.ip_network(n) for n in FAR_NETS) for a in addresses)


def test_a_host_keeps_its_address_unless_one_is_given() -> None:
    known = farend.with_hosts({}, ["a.example"])
    assert farend.with_hosts(known, ["b.example", "A.example"])["a.example"] == known["a.example"]
    assert farend.with_hosts(known, ["a.example=203.0.113.200,203.0.113.201"])["a.example"] == ["203.0.113.200", "203.0.113.201"]


def test_an_address_given_in_the_same_breath_is_not_given_twice() -> None:
    table = farend.with_hosts({}, [f"a.example={farend.FIRST_FREE}", "b.example"])
    assert table["b.example"] != table["a.example"]


@pytest.mark.parametrize("word", ["foo_bar.example", "nodots", "*.*.example", "a..example", "", "a.example=1.2.3.4", "a.example=203.0.113.x", "-a.example"])
def test_words_that_are_no_host_of_the_far_end_are_refused(word: str) -> None:
    with pytest.raises(MeshError, match="nothing was added"):
        farend.with_hosts({}, [word])


def test_queries_tell_time_asker_type_and_name_of_the_last_seconds(tmp_path: Path) -> None:
    run = Run(Cache(tmp_path), "unit")
    run.log.mkdir(parents=True)

    def line(age: float, text: str) -> str:
        return f"{time.strftime('%b %e %H:%M:%S', time.localtime(time.time() - age))} dnsmasq[7]: {text}\n"

    (run.log / "farend-dns.log").write_text(
        line(100, "query[A] old.example from 10.244.0.2") + line(1, "query[AAAA] new.example from 10.244.0.3") + line(1, "config new.example is NXDOMAIN")
    )
    assert [q.split()[1:] for q in farend.queries(run, 30)] == [["10.244.0.3", "AAAA", "new.example"]]
    assert len(list(farend.queries(run, 300))) == 2
