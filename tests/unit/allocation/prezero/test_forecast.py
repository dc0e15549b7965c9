# SPDX-License-Identifier: GPL-2.0-or-later
"""The forecast: which domains get targets, and on which nodes."""

from __future__ import annotations

from tests.rig.prezero import ONE, PAGE, TWO, domain, extent
from virt_dmem.allocation.plan import PoolFree
from virt_dmem.allocation.prezero.forecast import forecast, plan_on_prezeroed
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.pools.prezeroed_files import Owner, PrezeroedExtent


def free(*nodes: int) -> dict[str, PoolFree]:
    return {"p": PoolFree("p", "hugetlbfs", PAGE, {"p": {node: size * PAGE for node, size in enumerate(nodes)}})}


def found(
    *domains: DomainMemory, room: dict[str, PoolFree], most: int = 1000, **stock: list[PrezeroedExtent]
) -> list[object]:
    return [
        (target.uuid, target.extent.alias, {node: size // PAGE for node, size in target.extent.shares})
        for some in forecast(domains, room, stock, {"p": most * PAGE}, "")
        for target in some
    ]


def test_as_many_as_have_room_the_likeliest_first() -> None:
    first, second = domain(ONE, 6, 6), domain(TWO, 10)
    both = found(first, second, room=free(12, 12))
    assert [target[:2] for target in both] == [(ONE, "ram-node0"), (ONE, "ram-node1"), (TWO, "ram-node0")]  # type: ignore[index]
    assert found(first, second, room=free(8, 8)) == found(first, room=free(8, 8))
    assert found(second, first, room=free(10, 1)) == [(TWO, "ram-node0", {0: 10})]
    assert found(first, second, room=free(12, 12), most=11) == [(TWO, "ram-node0", {0: 10})]
    assert found(domain(ONE, 5, pool="another"), room=free(8)) == []
    assert found(domain(ONE, 5), room=free(0, 0)) == []


def test_a_domain_with_pre_zeroed_memory_keeps_it_where_it_is() -> None:
    """Alone, a plan would take the emptier node 0."""
    there = extent(((1, 5),), owner=Owner(ONE, "ram-node0"))
    assert found(domain(ONE, 5), room=free(20, 6)) == [(ONE, "ram-node0", {0: 5})]
    assert found(domain(ONE, 5), room=free(20, 6), p=[there]) == [(ONE, "ram-node0", {1: 5})]
    assert found(domain(ONE, 5, nodes=(0,)), room=free(20, 6), p=[there]) == [(ONE, "ram-node0", {0: 5})]
    assert found(domain(ONE, 5), room=free(20, 4), p=[there]) == [(ONE, "ram-node0", {0: 5})]


def test_a_start_is_planned_on_memory_pre_zeroed_for_it_or_not_at_all() -> None:
    there = extent(((1, 5),), 2, owner=Owner(ONE, "ram-node0"))
    plan = plan_on_prezeroed(domain(ONE, 5), free(20, 6), {"p": [there]}, "")
    assert plan is not None
    assert plan.extents[0].shares == ((1, 5 * PAGE),)
    assert plan_on_prezeroed(domain(ONE, 6), free(20, 6), {"p": [there]}, "") is None
    assert plan_on_prezeroed(domain(ONE, 5), free(20, 6), {}, "") is None
