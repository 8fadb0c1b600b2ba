"""The checkout is reachable under the collection's name; every other test stands on this."""
from __future__ import annotations

import importlib.util

from tooling import tree


def test_the_collection_is_this_checkout() -> None:
    spec = importlib.util.find_spec("ansible_collections.meshops.istio_egress")
    assert spec is not None and spec.submodule_search_locations is not None
    assert [str(tree.CHECKOUT)] == [str(tree.Path(place).resolve()) for place in spec.submodule_search_locations]


def test_a_second_link_changes_nothing() -> None:
    place = tree.link() / "ansible_collections" / "meshops" / "istio_egress"
    before = place.lstat()
    tree.link()
    assert place.lstat().st_ino == before.st_ino
