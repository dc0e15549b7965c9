# SPDX-License-Identifier: GPL-2.0-or-later
"""A placement is the best of all possible ones, on small hosts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virt_dmem.allocation.placement import Demand, place


def demand(pages: int, *tiers: Sequence[int]) -> Demand:
    return Demand(pages, tuple(map(frozenset, tiers)))


def cost(demands: Sequence[Demand], taken: Sequence[Mapping[int, int]], free: Mapping[int, int]) -> list[int]:
    """Return the costs to minimise, most important first; see the module's first sentence."""
    tiers = max(len(demand.tiers) for demand in demands)
    outside = [
        sum(
            pages
            for demand, shares in zip(demands, taken, strict=True)
            for node, pages in shares.items()
            if node not in frozenset().union(*demand.tiers[: index + 1])
        )
        for index in range(tiers)
    ]
    left = [pages - sum(shares.get(node, 0) for shares in taken) for node, pages in free.items()]
    return [*outside, sum(map(len, taken)), sum(pages**2 for pages in left)]


def everything(demands: Sequence[Demand], free: Mapping[int, int]) -> Iterator[list[dict[int, int]]]:
    """Yield every placement that fits."""
    if not demands:
        yield []
        return
    allowed = sorted(frozenset().union(*demands[0].tiers) & free.keys())
    for counts in itertools.product(*(range(min(free[node], demands[0].pages) + 1) for node in allowed)):
        if sum(counts) == demands[0].pages:
            shares = {node: count for node, count in zip(allowed, counts, strict=True) if count}
            left = {node: pages - shares.get(node, 0) for node, pages in free.items()}
            for others in everything(demands[1:], left):
                yield [shares, *others]


nodes = st.frozensets(st.integers(0, 2), min_size=1)
tiers = st.lists(nodes, min_size=1, max_size=3).map(
    lambda some: tuple(tier for index, one in enumerate(some) if (tier := one.difference(*some[:index])))
)
demands = st.lists(st.builds(Demand, st.integers(1, 6), tiers), min_size=1, max_size=3)
frees = st.dictionaries(st.integers(0, 2), st.integers(0, 6), min_size=1)


@settings(max_examples=400)
@given(demands=demands, free=frees)
def test_it_is_as_good_as_the_best_of_all(demands: list[Demand], free: dict[int, int]) -> None:
    best = min((cost(demands, taken, free) for taken in everything(demands, free)), default=None)
    found = place(demands, free)
    assert (found and cost(demands, found.shares, free)) == best
    assert found is None or (*found.cost, *best[len(found.cost) :]) == tuple(best)


@settings(max_examples=100)
@given(demands=demands, free=frees)
def test_where_not_all_can_be_looked_at_it_still_fits_and_keeps_to_the_tiers(
    demands: list[Demand], free: dict[int, int]
) -> None:
    found = place(demands, free, choices=0)
    best = place(demands, free)
    assert (found is None) == (best is None)
    if found and best:
        tiers = max(len(demand.tiers) for demand in demands)
        assert cost(demands, found.shares, free)[:tiers] == cost(demands, best.shares, free)[:tiers]
        for shares, asked in zip(found.shares, demands, strict=True):
            assert sum(shares.values()) == asked.pages
        assert all(sum(shares.get(node, 0) for shares in found.shares) <= pages for node, pages in free.items())


def test_it_does_not_depend_on_the_order_of_the_nodes() -> None:
    free = {0: 5, 1: 5, 2: 5, 3: 2}
    asked = [demand(3, range(4)), demand(3, range(4)), demand(7, range(4))]
    assert place(asked, free) == place(asked, dict(reversed(free.items())))


def test_a_greedy_choice_would_leave_no_room_for_the_last() -> None:
    found = place([demand(4, [0, 1]), demand(4, [1, 2]), demand(4, [0])], {0: 4, 1: 4, 2: 4})
    assert found is not None
    assert found.shares == [{1: 4}, {2: 4}, {0: 4}]


def test_a_backend_with_a_choice_leaves_a_preferred_node_to_one_that_prefers_it() -> None:
    found = place([demand(4, [0, 1]), demand(4, [0], [1, 2])], {0: 4, 1: 4, 2: 4})
    assert found is not None
    assert found.shares == [{1: 4}, {0: 4}]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_hosts_of_any_size_are_quick(count: int) -> None:
    everywhere = range(count)
    free = {node: 1_000_000 + node * 7 for node in everywhere}
    asked = [demand(1_000_000 * count // 8 - 3 * number, everywhere) for number in range(8)]
    began = time.process_time()
    found = place(asked, free)
    assert time.process_time() - began < 2
    assert found is not None
    assert all(len(shares) <= 2 for shares in found.shares)
