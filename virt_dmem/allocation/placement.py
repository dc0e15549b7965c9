# SPDX-License-Identifier: GPL-2.0-or-later
"""Place demands for pages on nodes, in the best way there is, on hosts of any shape.

Best means, in this order: every demand is met; as few pages as possible are outside the preferred nodes; demands
use as few nodes as possible; and the free pages are as even as possible (least variance over the nodes). Whether a
placement exists is always decided exactly. Where there are too many choices of nodes to try all, the last two
criteria are only nearly met.

Pure numbers: pages and nodes, no bytes and no names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

__all__ = ["place", "fits", "Demand", "Placement", "Shares"]

Shares = list[dict[int, int]]
"""For each demand, pages by node, each more than zero, in allocation order."""


_FEW = 3
"""The most demands to try in every order, where not all fit in their first tiers."""


@dataclass(frozen=True)
class Demand:
    """Ask for pages of the nodes of the first tier; those without room there go to the next tier, and so on."""

    pages: int
    tiers: tuple[frozenset[int], ...]


@dataclass(frozen=True)
class _Part:
    """Hold the pages of a demand that go to some nodes."""

    demand: int
    pages: int
    nodes: frozenset[int]


@dataclass(frozen=True)
class Placement:
    """Hold the shares of all demands; of two placements the one with the smaller ``cost`` is better."""

    shares: Shares
    cost: tuple[int, ...]
    """Pages beyond the first tier, beyond the second, …; then the number of shares."""


def fits(demands: Sequence[Demand], free: Mapping[int, int]) -> bool:
    """Tell whether there is a placement of ``demands`` on nodes with ``free`` pages each."""
    if len(demands) == 1:
        return sum(free.get(node, 0) for node in _nodes(demands[0].tiers)) >= demands[0].pages
    return _fit([_Part(0, demand.pages, _nodes(demand.tiers)) for demand in demands], free)


def place(demands: Sequence[Demand], free: Mapping[int, int], *, choices: int = 2000) -> Placement | None:
    """Return the best placement of ``demands`` on nodes with ``free`` pages each; ``None`` when there is none.

    :param choices: The most choices of nodes to try (10 to 100 µs each) before accepting a good one.
    """
    if len(demands) == 1 and (alone := _on_one_near_node(demands[0], free)):
        return alone
    if not fits(demands, free):
        return None
    concerned = _nodes([tier for demand in demands for tier in demand.tiers])
    free = {node: pages for node, pages in free.items() if node in concerned}  # the others do not change
    divisions: list[list[_Part]] = []
    every_order = itertools.permutations(range(len(demands)))
    for order in itertools.islice(every_order, None if len(demands) <= _FEW else 1):
        parts = _by_tier(demands, free, order)
        if parts not in divisions:
            divisions.append(parts)
        if all(part.nodes <= demands[part.demand].tiers[0] for part in parts):
            break  # there is room for all, so the order does not matter
    found = [_placed(demands, parts, free, choices // len(divisions)) for parts in divisions]
    return min(found, key=lambda placement: (*placement.cost, _unevenness(placement.shares, free)))


def _on_one_near_node(demand: Demand, free: Mapping[int, int]) -> Placement | None:
    """Return the best placement if one node of the first tier has room for all; else ``None``."""
    near = [node for node in sorted(demand.tiers[0]) if free.get(node, 0) >= demand.pages > 0]
    if not near:
        return None
    emptiest = max(near, key=lambda node: free[node])  # keeps the free pages even
    return Placement([{emptiest: demand.pages}], (*(0 for _ in demand.tiers), 1))


def _placed(demands: Sequence[Demand], parts: Sequence[_Part], free: Mapping[int, int], choices: int) -> Placement:
    shares: Shares = [{} for _ in demands]
    for part, taken in zip(parts, _on_fewest_nodes(parts, free, choices), strict=True):
        shares[part.demand].update(sorted(taken.items(), key=lambda share: (-share[1], share[0])))
    outside = [
        sum(part.pages for part in parts if not part.nodes <= _nodes(demands[part.demand].tiers[: index + 1]))
        for index in range(max(len(demand.tiers) for demand in demands))
    ]
    return Placement(shares, (*outside, sum(map(len, shares))))


def _nodes(tiers: Sequence[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*tiers)


def _by_tier(demands: Sequence[Demand], free: Mapping[int, int], order: Sequence[int]) -> list[_Part]:
    """Give each demand, in this order, as much of its first tier as possible, then of the second, and so on."""
    rest = [_Part(number, demand.pages, frozenset().union(*demand.tiers)) for number, demand in enumerate(demands)]
    fixed: list[_Part] = []
    for index in range(max(len(demand.tiers) for demand in demands)):
        for number in order:
            if index < len(demands[number].tiers):
                taken, rest[number] = _most_of(demands[number].tiers[index], number, rest, fixed, free)
                fixed.append(taken)
    return sorted((part for part in fixed if part.pages), key=lambda part: part.demand)


def _most_of(
    tier: frozenset[int], number: int, rest: Sequence[_Part], fixed: Sequence[_Part], free: Mapping[int, int]
) -> tuple[_Part, _Part]:
    """Divide one of ``rest`` into the most that fits in ``tier``, with room for all others, and the remainder."""
    part = rest[number]

    def divided(pages: int) -> tuple[_Part, _Part]:
        return replace(part, pages=pages, nodes=tier), replace(part, pages=part.pages - pages)

    def fits(pages: int) -> bool:
        return _fit([*fixed, *rest[:number], *divided(pages), *rest[number + 1 :]], free)

    return divided(_largest(part.pages, fits))


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to ``most`` that fits, where 0 does, and all below one that does."""
    if fits(most):
        return most
    least = 0
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


def _fit(parts: Sequence[_Part], free: Mapping[int, int]) -> bool:
    return _level(parts, free, only_fit=True) is not None


def _level(parts: Sequence[_Part], free: Mapping[int, int], *, only_fit: bool = False) -> Shares | None:
    """Return the shares of each part that leave the free pages most even; ``None`` when they do not fit.

    Pages move along chains of parts from the fullest nodes to emptier ones until that makes nothing more even
    (``only_fit``: until no node is overdrawn). When nothing more can be moved from an overdrawn node, they do
    not fit: all nodes that its parts could move to, directly or along a chain, are full.
    """
    left = dict(free)
    taken: Shares = []
    for part in parts:
        allowed = sorted(part.nodes & left.keys())
        if part.pages and not allowed:
            return None
        taken.append(dict.fromkeys(allowed, 0))
        if allowed:
            emptiest = max(allowed, key=lambda node: left[node])
            taken[-1][emptiest] = part.pages
            left[emptiest] -= part.pages
    movable = any(len(shares) > 1 for shares in taken)
    while movable and (not only_fit or min(left.values()) < 0):
        fullest = sorted(left, key=lambda node: (left[node], node))
        overdrawn = left[fullest[0]] < 0
        chain = next(
            filter(None, (_chain(taken, left, first) for first in fullest[: 1 if overdrawn else None])), None
        )
        if chain is None:
            break
        first, last = chain[0][1], chain[-1][2]
        pages = min((left[last] - left[first]) // 2, *(taken[number][source] for number, source, _ in chain))
        for number, source, target in chain:
            taken[number][source] -= pages
            taken[number][target] += pages
        left[first] += pages
        left[last] -= pages
    if any(pages < 0 for pages in left.values()):
        return None
    return [{node: pages for node, pages in shares.items() if pages} for shares in taken]


def _chain(taken: Sequence[Mapping[int, int]], left: Mapping[int, int], first: int) -> list[tuple[int, int, int]]:
    """Return moves (part, from node, to node) that make ``first`` and an emptier node more even; none: empty."""
    came: dict[int, tuple[int, int, int]] = {}
    for source in (queue := [first]):
        for number, shares in enumerate(taken):
            if shares.get(source):
                for target in shares:
                    if target not in came and target != first:
                        came[target] = (number, source, target)
                        queue.append(target)
    last = max(queue, key=lambda node: (left[node], -node))
    chain: list[tuple[int, int, int]] = []
    if left[last] - left[first] > 1:
        while last != first:
            chain.append(came[last])
            last = came[last][1]
    return chain[::-1]


def _on_fewest_nodes(parts: Sequence[_Part], free: Mapping[int, int], most: int) -> Shares:
    """Return the shares of each of ``parts``, which are known to fit."""
    parts = [replace(part, nodes=frozenset(node for node in part.nodes if free.get(node, 0))) for part in parts]
    for more in itertools.count():
        choices = list(itertools.islice(_choices(parts, more), most + 1))
        most -= len(choices)
        if most < 0:
            break
        found = [taken for choice in choices if (taken := _level(choice, free)) is not None]
        if found:
            return min(
                found, key=lambda taken: (_unevenness(taken, free), [sorted(shares.items()) for shares in taken])
            )
    taken = _level(_narrowed(parts, free), free)
    assert taken is not None  # noqa: S101 -- it was narrowed only as long as it fitted
    return taken


def _choices(parts: Sequence[_Part], more: int) -> Iterator[list[_Part]]:
    """Yield every way to confine each part to some of its nodes: one each, plus ``more`` in all."""
    if not parts:
        if not more:
            yield []
        return
    for count in range(1, min(len(parts[0].nodes), more + 1) + 1):
        for rest in _choices(parts[1:], more - count + 1):
            for nodes in itertools.combinations(sorted(parts[0].nodes), count):
                yield [replace(parts[0], nodes=frozenset(nodes)), *rest]


def _unevenness(taken: Sequence[Mapping[int, int]], free: Mapping[int, int]) -> int:
    return sum((pages - sum(shares.get(node, 0) for shares in taken)) ** 2 for node, pages in free.items())


def _narrowed(parts: Sequence[_Part], free: Mapping[int, int]) -> list[_Part]:
    """Confine one part after another to few nodes, the one with the least choice first, while all still fits."""
    chosen = list(parts)
    for number in sorted(range(len(parts)), key=lambda at: (len(parts[at].nodes), -parts[at].pages, at)):
        taken = _level(chosen, free)
        assert taken is not None  # noqa: S101 -- the same holds before each round
        others = [shares for at, shares in enumerate(taken) if at != number]
        left = {node: free[node] - sum(shares.get(node, 0) for shares in others) for node in parts[number].nodes}
        emptiest = sorted(left, key=lambda node: (-left[node], node))
        tries = [[node] for node in emptiest] + [emptiest[:count] for count in range(2, len(emptiest) + 1)]
        for nodes in tries:
            narrower = [*chosen]
            narrower[number] = replace(parts[number], nodes=frozenset(nodes))
            if _fit(narrower, free):
                chosen = narrower
                break
    return chosen
