# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan covers the whole domain, never exceeds the free memory, and respects the requested nodes."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virt_dmem.allocation.plan import NO_NODE, ExtentPlan, Plan, PoolFree, plan_domain
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.errors import DomainRefused, NotEnoughMemory, PoolNotFound
from virt_dmem.units import GIB, KIB, MIB

PAGE = 2 * MIB


def memory(*cells: Cell, pool: str = "") -> DomainMemory:
    return DomainMemory(
        "c7a5fdbd-edaf-9455-926a-d65c16db1809", "vm", pool, cells, True, True, None, None, None, None
    )


def cell(number: int, size_bytes: int, *nodes: int, policy: str = "") -> Cell:
    return Cell(f"ram-node{number}", number, size_bytes, nodes, policy or ("strict" if nodes else ""))


def pool(free: dict[int, int], page_size: int = PAGE, name: str = "big") -> dict[str, PoolFree]:
    return {name: PoolFree(name, "hugetlbfs", page_size, {name: free})}


def only(plan: Plan) -> ExtentPlan:
    (extent,) = plan.extents
    return extent


# The common cases


def test_a_domain_on_a_host_with_one_node_gets_that_node() -> None:
    extent = only(plan_domain(memory(cell(0, GIB)), pool({0: GIB}), ""))
    assert extent == ExtentPlan("ram-node0", "big", GIB, PAGE, "bind", ((0, GIB),))
    assert extent.nodes == (0,)


def test_a_pool_without_nodes_gives_memory_from_anywhere() -> None:
    plan = plan_domain(memory(cell(0, GIB), cell(1, GIB, 1)), pool({NO_NODE: 2 * GIB}, 4 * KIB), "")
    assert [extent.policy for extent in plan.extents] == ["none", "none"]
    assert [extent.shares for extent in plan.extents] == [((NO_NODE, GIB),)] * 2
    assert plan.extents[0].nodes == ()
    assert plan.total_bytes == 2 * GIB


def test_two_cells_go_to_two_nodes() -> None:
    plan = plan_domain(memory(cell(0, GIB), cell(1, GIB)), pool({0: 2 * GIB, 1: 2 * GIB}), "")
    assert [extent.nodes for extent in plan.extents] == [(0,), (1,)]


def test_the_node_that_leaves_the_nodes_most_even_is_taken() -> None:
    assert only(plan_domain(memory(cell(0, GIB)), pool({0: 2 * GIB, 1: 4 * GIB, 2: 3 * GIB}), "")).nodes == (1,)


def test_one_node_is_used_where_one_suffices() -> None:
    assert only(plan_domain(memory(cell(0, 3 * GIB)), pool({0: 2 * GIB, 1: 2 * GIB, 2: 3 * GIB}), "")).nodes == (2,)


def test_memory_that_fits_no_node_is_spread_over_as_few_as_possible() -> None:
    extent = only(plan_domain(memory(cell(0, 5 * GIB)), pool({0: GIB, 1: 3 * GIB, 2: 4 * GIB}), ""))
    assert extent.policy == "bind"
    assert extent.shares == ((2, 3 * GIB), (1, 2 * GIB))  # and then 1 GiB is free on every node


# Policies


@pytest.mark.parametrize("policy", ["strict", "restrictive"])
def test_strict_nodes_are_never_left(policy: str) -> None:
    free = {0: GIB, 1: 8 * GIB}
    assert only(plan_domain(memory(cell(0, GIB, 0, policy=policy)), pool(free), "")).shares == ((0, GIB),)
    with pytest.raises(NotEnoughMemory):
        plan_domain(memory(cell(0, GIB + PAGE, 0, policy=policy)), pool(free), "")


def test_a_node_that_the_pool_does_not_have_is_refused() -> None:
    for policy in ("strict", "interleave", "restrictive"):
        with pytest.raises(NotEnoughMemory):
            plan_domain(memory(cell(0, GIB, 0, 7, policy=policy)), pool({0: GIB - PAGE, 1: 8 * GIB}), "")


def test_a_preferred_node_is_left_only_by_what_does_not_fit() -> None:
    preferred = memory(cell(0, 2 * GIB, 1, policy="preferred"))
    assert only(plan_domain(preferred, pool({0: 9 * GIB, 1: 2 * GIB}), "")).shares == ((1, 2 * GIB),)
    extent = only(plan_domain(preferred, pool({0: 9 * GIB, 1: GIB}), ""))
    assert (extent.policy, extent.shares, extent.nodes) == ("preferred", ((1, GIB), (0, GIB)), (1, 0))
    assert only(plan_domain(preferred, pool({0: 9 * GIB, 1: 0}), "")).shares == ((0, 2 * GIB),)


def test_interleaving_takes_turns_page_by_page() -> None:
    interleaved = memory(cell(0, 5 * PAGE, 0, 2, policy="interleave"))
    extent = only(plan_domain(interleaved, pool({0: GIB, 1: GIB, 2: GIB}), ""))
    assert (extent.policy, extent.shares) == ("interleave", ((0, 3 * PAGE), (2, 2 * PAGE)))
    with pytest.raises(NotEnoughMemory):
        plan_domain(interleaved, pool({0: GIB, 1: GIB, 2: PAGE}), "")


def test_a_cell_that_may_go_anywhere_makes_room_for_one_that_may_not() -> None:
    bound = memory(cell(0, GIB), cell(1, GIB, 0, 1), cell(2, GIB, 0))
    plan = plan_domain(bound, pool({0: GIB, 1: GIB, 2: GIB}), "")
    assert [extent.nodes for extent in plan.extents] == [(2,), (1,), (0,)]
    assert [extent.alias for extent in plan.extents] == ["ram-node0", "ram-node1", "ram-node2"]


def test_strict_cells_that_overlap_are_placed_whenever_that_is_possible() -> None:
    overlapping = memory(cell(0, 4 * GIB, 0, 1), cell(1, 4 * GIB, 1, 2), cell(2, 4 * GIB, 0))
    plan = plan_domain(overlapping, pool({0: 4 * GIB, 1: 4 * GIB, 2: 4 * GIB}), "")
    assert [extent.nodes for extent in plan.extents] == [(1,), (2,), (0,)]


def test_slow_memory_is_the_last_choice_unless_it_is_named() -> None:
    slow = {
        "big": PoolFree("big", "hugetlbfs", PAGE, {"big": {0: 2 * GIB, 1: 2 * GIB, 2: 9 * GIB}}, frozenset({2}))
    }
    assert only(plan_domain(memory(cell(0, 2 * GIB)), slow, "")).nodes == (0,)
    assert only(plan_domain(memory(cell(0, 4 * GIB)), slow, "")).nodes == (0, 1)  # rather split than slow
    assert only(plan_domain(memory(cell(0, 5 * GIB)), slow, "")).shares == ((0, 2 * GIB), (1, 2 * GIB), (2, GIB))
    assert only(plan_domain(memory(cell(0, 5 * GIB, 2)), slow, "")).nodes == (2,)
    both = memory(cell(0, 5 * GIB, 1, 2, policy="preferred"))
    assert only(plan_domain(both, slow, "")).nodes == (2,)
    spilled = memory(cell(0, 5 * GIB, 1, policy="preferred"))
    assert only(plan_domain(spilled, slow, "")).shares == ((1, 2 * GIB), (0, 2 * GIB), (2, GIB))


def in_segments(**segments: dict[int, int]) -> dict[str, PoolFree]:
    return {
        "big": PoolFree("big", "hugetlbfs", PAGE, {name.replace("_", "+"): of for name, of in segments.items()})
    }


def test_each_memory_backend_lies_in_one_segment() -> None:
    two = in_segments(big={0: 3 * GIB}, big_1={0: 2 * GIB})
    assert only(plan_domain(memory(cell(0, 3 * GIB)), two, "")).segment == "big"
    # the large one stays free for large ones
    assert only(plan_domain(memory(cell(0, GIB)), two, "")).segment == "big+1"
    plan = plan_domain(memory(cell(0, 2 * GIB), cell(1, 3 * GIB)), two, "")
    assert [extent.segment for extent in plan.extents] == ["big+1", "big"]
    with pytest.raises(NotEnoughMemory, match=r"4 GiB.*5 GiB is free.*of which 3 GiB in segment big, .*2 GiB in"):
        plan_domain(memory(cell(0, 4 * GIB)), two, "")


def test_a_segment_is_chosen_that_has_the_nodes() -> None:
    two = in_segments(big={0: 3 * GIB}, big_1={1: 2 * GIB}, big_2={0: GIB, 1: GIB})
    assert only(plan_domain(memory(cell(0, GIB, 1)), two, "")).segment == "big+1"
    assert only(plan_domain(memory(cell(0, 2 * GIB, 0, 1, policy="interleave")), two, "")).segment == "big+2"
    assert only(plan_domain(memory(cell(0, 2 * GIB, 0, 1)), two, "")).shares == ((0, 2 * GIB),)


def test_cells_that_fit_only_each_in_a_segment_of_its_own_are_not_refused() -> None:
    many = PoolFree("big", "hugetlbfs", PAGE, {f"big+{n}": {0: GIB, 1: 8 * GIB} for n in range(6)})
    plan = plan_domain(memory(*(cell(n, GIB, 0) for n in range(6))), {"big": many}, "")
    assert {extent.segment for extent in plan.extents} == set(many.segments)
    with pytest.raises(NotEnoughMemory):
        plan_domain(memory(*(cell(n, GIB, 0) for n in range(7))), {"big": many}, "")


def test_a_domain_of_very_many_cells_is_decided_in_time() -> None:
    many = PoolFree("big", "hugetlbfs", PAGE, {f"big+{n}": {0: GIB, 1: 64 * GIB} for n in range(8)})
    with pytest.raises(NotEnoughMemory):
        plan_domain(memory(*(cell(n, GIB * 3 // 4, 0) for n in range(24))), {"big": many}, "")


def test_many_cells_over_many_segments_are_placed_at_once() -> None:
    many = PoolFree("big", "hugetlbfs", PAGE, {f"big+{n}": {0: (n + 1) * GIB, 1: GIB} for n in range(8)})
    plan = plan_domain(memory(*(cell(n, (n + 1) * GIB) for n in range(8))), {"big": many}, "")
    assert all(len(extent.nodes) == 1 for extent in plan.extents)


# Refusals


@pytest.mark.parametrize("policy", ["", "strict", "preferred", "interleave"])
def test_as_many_backends_as_qemu_can_have_are_placed_or_refused_at_once(policy: str) -> None:
    nodes = (0, 1) if policy else ()
    domain = memory(*(cell(number, (number % 7 + 1) * PAGE, *nodes, policy=policy) for number in range(384)))
    for room in (1 << 20, 100, 5):
        segments = {f"big+{n}": dict.fromkeys(range(8), room * PAGE) for n in range(8)}
        began = time.process_time()
        with suppress(NotEnoughMemory):
            plan_domain(domain, {"big": PoolFree("big", "hugetlbfs", PAGE, segments)}, "")
        assert time.process_time() - began < 5, "a second at most, where nothing else has the CPU"


def test_a_refusal_of_very_many_backends_can_still_be_read() -> None:
    domain = memory(*(cell(number, PAGE, 0) for number in range(200)))
    with pytest.raises(NotEnoughMemory, match=r"and 18[0-9] more") as caught:
        plan_domain(domain, pool({0: 190 * PAGE, 1: 900 * PAGE}), "")
    assert len(caught.value.message) < 600


def test_the_refusal_says_what_was_asked_and_what_is_free_by_node() -> None:
    with pytest.raises(NotEnoughMemory) as caught:
        plan_domain(memory(cell(0, 4 * GIB)), pool({0: 2 * GIB, 1: GIB}), "")
    for text in ("'vm'", "'big'", "4 GiB", "3 GiB", "node 0: 2 GiB", "node 1: 1 GiB"):
        assert text in caught.value.message
    with pytest.raises(NotEnoughMemory, match=r"2 GiB for ram-node0 on node 1 \(strict\).*node 1: 1 GiB"):
        plan_domain(memory(cell(0, 2 * GIB, 1)), pool({0: 2 * GIB, 1: GIB}), "")
    both = memory(cell(0, GIB), cell(1, GIB, 1), cell(2, GIB, 1))
    with pytest.raises(NotEnoughMemory, match=r"for 1 GiB for ram-node1 on node 1 .* and 1 GiB for ram-node2 on"):
        plan_domain(both, pool({0: 8 * GIB, 1: GIB}), "")


def test_the_refusal_for_an_empty_pool_has_numbers_too() -> None:
    for free in ({}, {0: 0}, {NO_NODE: 0}, {0: PAGE - 1}, {0: -PAGE}):
        with pytest.raises(NotEnoughMemory, match=r"1 GiB.*0 B"):
            plan_domain(memory(cell(0, GIB)), pool(free), "")


def test_sizes_that_are_no_whole_pages_are_refused_with_the_nearest() -> None:
    with pytest.raises(DomainRefused, match=r"3 MiB.*2 MiB.*Give it 2 MiB or 4 MiB"):
        plan_domain(memory(cell(0, 3 * MIB)), pool({0: GIB}), "")


def test_the_pool_is_the_domains_then_the_default_then_the_only_one() -> None:
    both = pool({0: GIB}, name="a") | pool({0: GIB}, name="b")
    assert only(plan_domain(memory(cell(0, GIB), pool="b"), both, "a")).segment == "b"
    assert only(plan_domain(memory(cell(0, GIB)), both, "a")).segment == "a"
    assert only(plan_domain(memory(cell(0, GIB)), pool({0: GIB}, name="c"), "")).segment == "c"
    for wanted, default, pools in (("x", "a", both), ("", "x", both), ("", "", both), ("", "", {})):
        with pytest.raises(PoolNotFound):
            plan_domain(memory(cell(0, GIB), pool=wanted), pools, default)


# Whatever is asked

pages = st.integers(1, 40).map(lambda number: number * PAGE)
nodes = st.lists(st.integers(0, 4), unique=True, max_size=3).map(lambda some: tuple(sorted(some)))
policies = st.sampled_from(["strict", "preferred", "interleave", "restrictive"])
cells = st.tuples(pages, nodes, policies)
domains = (st.lists(cells, min_size=1, max_size=5) | st.lists(cells, min_size=25, max_size=40)).map(
    lambda cells: memory(
        *(cell(n, size, *where, policy=how if where else "") for n, (size, where, how) in enumerate(cells))
    )
)
frees = st.dictionaries(st.integers(0, 4), st.integers(0, 100 * PAGE), min_size=1, max_size=5)


@given(domain=domains, free=st.one_of(frees, st.integers(0, 200 * PAGE).map(lambda size: {NO_NODE: size})))
def test_every_plan_keeps_the_promises(domain: DomainMemory, free: dict[int, int]) -> None:
    pools = pool(free)
    try:
        plan = plan_domain(domain, pools, "")
    except NotEnoughMemory as refusal:
        with pytest.raises(NotEnoughMemory) as again:
            plan_domain(domain, pool(dict(reversed(free.items()))), "")
        assert again.value.message == refusal.message
        return
    assert plan == plan_domain(domain, pool(dict(reversed(free.items()))), "")
    taken: Counter[int] = Counter()
    for extent, asked in zip(plan.extents, domain.cells, strict=True):
        taken.update(dict(extent.shares))
        assert (extent.alias, extent.size_bytes) == (asked.alias, asked.size_bytes)
        assert sum(size for _, size in extent.shares) == asked.size_bytes
        assert len(dict(extent.shares)) == len(extent.shares)
        assert all(size > 0 and size % PAGE == 0 for _, size in extent.shares)
        assert (extent.policy == "none") == (NO_NODE in free)
        if NO_NODE not in free and asked.host_nodes and asked.policy != "preferred":
            assert set(extent.nodes) <= set(asked.host_nodes)
    assert all(size <= free[node] for node, size in taken.items())
    assert plan.total_bytes == domain.total_bytes == taken.total()


@given(sizes=st.lists(pages, min_size=1, max_size=5) | st.lists(pages, min_size=25, max_size=40), free=frees)
def test_a_domain_without_host_nodes_is_refused_only_when_there_is_too_little(
    sizes: list[int], free: dict[int, int]
) -> None:
    enough = sum(sizes) <= sum(size // PAGE * PAGE for size in free.values())
    domain = memory(*(cell(number, size) for number, size in enumerate(sizes)))
    if enough:
        plan_domain(domain, pool(free), "")
    else:
        with pytest.raises(NotEnoughMemory):
            plan_domain(domain, pool(free), "")
