# SPDX-License-Identifier: GPL-2.0-or-later
"""The index of a segment: which pre-zeroed extents it finds, and which it evicts first."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.rig.prezero import ONE, PAGE, TWO, extent, extents, pages
from virt_dmem.allocation.prezero.index import PrezeroIndex
from virt_dmem.pools import prezeroed_files
from virt_dmem.pools.prezeroed_files import Owner, PrezeroedExtent
from virt_dmem.pools.record import PoolRecord


def index_of(*some: PrezeroedExtent, likely: dict[str, float] | None = None) -> PrezeroIndex:
    record = PoolRecord("p", "tmpfs", PAGE, "/nowhere", {})  # nothing of it is on disk
    found = PrezeroIndex(lambda: record, lambda uuid: (likely or {}).get(uuid, 0.0))
    for one in some:
        found.add(one)
    return found


def test_the_least_likely_goes_first_and_only_as_much_of_it_as_must() -> None:
    likely = extent(((0, 8),), owner=Owner(ONE, "a"))
    unlikely = extent(((0, 8),), owner=Owner(TWO, "a"))
    index = index_of(likely, unlikely, likely={ONE: 2.0, TWO: 1.0})
    assert index.evictions({0: 16 * PAGE}) == []
    assert index.evictions({0: 11 * PAGE}) == [(unlikely, 3 * PAGE)]
    assert index.evictions({0: 5 * PAGE}) == [(unlikely, 0), (likely, 5 * PAGE)]
    assert index.evictions({0: 5 * PAGE}, below=2.0) == [(unlikely, 0)]
    assert index.evictions({}) == [(unlikely, 0), (likely, 0)]


@given(st.lists(extents, max_size=5), st.dictionaries(st.integers(0, 7), st.integers(0, 60)))
def test_after_the_cuts_all_fit(some: list[PrezeroedExtent], room: dict[int, int]) -> None:
    numbered = [replace(one, owner=Owner(ONE, f"m{number}")) for number, one in enumerate(some)]
    index = index_of(*numbered)
    for one, size in index.evictions({node: count * PAGE for node, count in room.items()}):
        assert size < one.zeroed_bytes, "what stays whole is not touched"
        after = prezeroed_files.truncated(one, size)
        assert after is None or after.zeroed_bytes <= size
        index.replace(one, after)
    assert all(count <= room.get(node, 0) for node, count in pages(index.held()).items())
    assert pages(index.held()) == pages(prezeroed_files.held_by_node(index.extents()))


def test_those_of_a_domain_are_found_and_what_has_changed_is_told() -> None:
    mine, yours = extent(((0, 8),), 4), extent(((0, 2),), owner=Owner(TWO, "pc.ram"))
    index = index_of(mine, yours)
    assert index.of_domain(ONE) == [mine]
    assert index.has(mine)
    more = extent(((0, 8),), 8)
    index.replace(mine, more)
    assert not index.has(mine)
    assert index.of_domain(ONE) == [more]
    index.replace(more, None)
    assert index.of_domain(ONE) == []
    assert index.extents() == [yours]
