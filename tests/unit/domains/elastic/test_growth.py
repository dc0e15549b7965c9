# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory is taken for a domain that does not fit, and reserved for it alone; refusals say what could be had."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.rig.elastic_records import PAGE
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.elastic.conftest import UUIDS, Elastic, domain
from virt_dmem.allocation.plan import PoolFree
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains.elastic import growth
from virt_dmem.domains.elastic.growth import plan_with_room
from virt_dmem.errors import NotEnoughMemory, PoolError, PoolShort
from virt_dmem.pools.elastic.room import Room
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import GIB

# Pure: what is taken, and of which node


def room(most: int, **nodes: int) -> Room:
    by_node = {int(name[1:]): size for name, size in nodes.items()}
    return Room(0, 64 * GIB, 20 * GIB, GIB, by_node, most)


def wanted(cells: list[Cell], free: dict[SegmentId, dict[int, int]], of: Room) -> dict[int, int]:
    asks = DomainMemory(UUIDS[0], "vm", "p", tuple(cells), True, True, None, None, None, None)
    pools = {"p": PoolFree("p", "hugetlbfs", PAGE, free)}
    return dict(plan_with_room(asks, pools, "p", of, "").nodes)


def cell(number: int, size: int, *nodes: int) -> Cell:
    return Cell(f"ram-node{number}", number, size, nodes, "strict" if nodes else "")


EMPTY = {SegmentId("p"): {0: 0, 1: 0}}


def test_what_is_missing_is_taken_on_the_nodes_of_the_domain() -> None:
    cells = [cell(0, GIB, 1), cell(1, 2 * GIB, 0)]
    assert wanted(cells, EMPTY, room(8 * GIB, n0=8 * GIB, n1=8 * GIB)) == {0: 2 * GIB, 1: GIB}


def test_what_the_pool_has_is_not_taken_again() -> None:
    has = EMPTY | {SegmentId("p+1"): {1: GIB}}
    cells = [cell(0, GIB, 1), cell(1, 2 * GIB, 0)]
    assert wanted(cells, has, room(8 * GIB, n0=8 * GIB, n1=0)) == {0: 2 * GIB}


def test_a_refusal_says_what_was_asked_what_could_be_had_where_and_why_not_more() -> None:
    with pytest.raises(NotEnoughMemory) as caught:
        wanted([cell(0, 4 * GIB, 1)], EMPTY, room(8 * GIB, n0=8 * GIB, n1=GIB))
    assert caught.value.message == (
        "Domain 'vm' asks elastic pool 'p' for 4 GiB; 0 B of it is free, and 8 GiB can be taken now (node 0: 8 GiB,"
        " node 1: 1 GiB; it has 0 B of at most 64 GiB; the host has 20 GiB available and keeps 1 GiB)."
    )
    assert "other nodes" in caught.value.hint


def test_more_than_all_nodes_together_may_give_is_refused() -> None:
    with pytest.raises(NotEnoughMemory):
        wanted([cell(0, 6 * GIB, 0), cell(1, 6 * GIB, 1)], EMPTY, room(8 * GIB, n0=8 * GIB, n1=8 * GIB))


# With a fake of virt-dmem-pages


@in_own_mount_namespace
def test_a_domain_starts_from_an_empty_pool_and_the_next_from_what_it_left(tmp_path: Path) -> None:
    parts = Elastic(tmp_path)

    async def story() -> None:
        async with parts.served():
            reserved = await parts.start(1, 2 * PAGE, 3 * PAGE)
            assert {extent.segment for extent in reserved.extents} == {"p+1"}
            assert parts.pages.asked == ["take p+1"]
            await parts.stop(1)
            assert (await parts.start(2, 5 * PAGE)).extents[0].segment == "p+1"
            assert parts.pages.asked == ["take p+1"]

    asyncio.run(story())


@in_own_mount_namespace
def test_two_starts_at_once_never_take_the_same_room(tmp_path: Path) -> None:
    parts = Elastic(tmp_path, most=16 * PAGE)
    parts.pages.wait = 0.1

    async def story() -> list[object]:
        async with parts.served():
            starts = (parts.start(number, 6 * PAGE) for number in (1, 2, 3))
            return await asyncio.gather(*starts, return_exceptions=True)

    outcomes = asyncio.run(story())
    refused = [one for one in outcomes if isinstance(one, NotEnoughMemory)]
    assert len(refused) == 1
    assert "at most 32 MiB" in str(refused[0])
    reserved, capacity = parts.ledger.reserved(), parts.inventory.capacity()
    assert sum(reserved.values()) == 12 * PAGE
    assert all(size <= capacity[where] for where, size in reserved.items())


@in_own_mount_namespace
def test_idle_memory_in_pieces_too_small_is_given_back_for_what_is_needed(tmp_path: Path) -> None:
    parts = Elastic(tmp_path, most=8 * PAGE)

    async def story() -> None:
        async with parts.served():
            await asyncio.gather(parts.start(1, 4 * PAGE), parts.start(2, 4 * PAGE))
            await parts.stop(1)
            await parts.stop(2)
            await parts.start(3, 8 * PAGE)

    asyncio.run(story())
    assert sorted(parts.pages.asked[2:4]) == ["give-back p+1", "give-back p+2"]
    assert sum(parts.ledger.reserved().values()) == 8 * PAGE


@in_own_mount_namespace
def test_what_the_host_does_not_provide_after_all_is_a_refusal_in_its_words(tmp_path: Path) -> None:
    parts = Elastic(tmp_path)
    words = "Node 0 has 9 GiB available, but so fragmented"
    parts.pages.refuses = [PoolShort("Pool p+1 needs more.", hint=words, had={0: PAGE})] * 2

    async def story() -> None:
        async with parts.served():
            with pytest.raises(NotEnoughMemory, match=r"0 B of it is free, and .* can be taken now .node 0: 2 MiB"):
                await parts.start(1, 4 * PAGE)
            parts.pages.refuses = [PoolShort("Pool p+1 needs more.", hint=words)]
            with pytest.raises(
                NotEnoughMemory, match=r"the host does not provide it: Pool p.1 needs more"
            ) as caught:
                await parts.start(1, 4 * PAGE)
            assert words in caught.value.hint

    asyncio.run(story())
    assert not list(parts.ledger.reservations())


@in_own_mount_namespace
def test_without_virt_dmem_pages_a_start_is_refused_in_words_and_holds_nothing(tmp_path: Path) -> None:
    parts = Elastic(tmp_path)
    with pytest.raises(PoolError, match=r"virt-dmem-pages, .* cannot be asked") as caught:
        asyncio.run(parts.start(1, PAGE))
    assert "virt-dmem-pages.socket" in caught.value.hint
    assert not list(parts.ledger.reservations())


@in_own_mount_namespace
def test_progress_is_reported_while_nothing_new_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "HEARTBEAT_SECONDS", 0.01)
    parts = Elastic(tmp_path)
    parts.pages.wait = 0.5
    heard: list[str] = []

    async def story() -> None:
        async with parts.served():
            await parts.admission.reserve(domain(1, PAGE), lambda doing, _done, _total: heard.append(doing))

    asyncio.run(story())
    assert heard.count("taking") > 2


@in_own_mount_namespace
def test_what_was_taken_for_a_start_that_fails_goes_back_at_once(tmp_path: Path) -> None:
    parts = Elastic(tmp_path, linger=600)

    async def story() -> None:
        async with parts.served():
            await parts.admission.reserve(domain(1, PAGE))
            await parts.stop(1)
            parts.admission.note_start(UUIDS[1], succeeded=False)
            await parts.returning.round()
            assert parts.segments() == {"p"}

    asyncio.run(story())
