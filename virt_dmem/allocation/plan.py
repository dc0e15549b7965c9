# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan from which pool and host nodes to allocate the memory backends of a domain.

Pure and deterministic: the same domain and the same free memory always give the same plan. A plan covers the whole
domain, consists of whole pages, and never takes more than is free on any node.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from virt_dmem.allocation.placement import Demand, Placement, fits, place
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domain_xml.requirements import require_possible, require_whole_pages
from virt_dmem.errors import NotEnoughMemory, PoolNotFound
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.text import did_you_mean
from virt_dmem.units import format_size

__all__ = ["plan_domain", "Plan", "ExtentPlan", "PoolFree", "NO_NODE"]

NO_NODE = -1
"""The node number of the whole host, in a pool whose backend has no nodes."""
_MOST_EXACT = 24
"""The most memory backends for which any existing placement is found, within 0.4 s on hosts of 8 nodes and 8
segments. More, which QEMU allows and no common guest has, are placed one after another, within 0.1 s in any case:
every hook waits while any domain is planned."""
_MOST_WAYS = 16
_MOST_PLACED = 128
"""The most ways times memory backends to evaluate completely."""
_MOST_TRIES = 2000
"""The most cells to try in a segment (some 20 µs each) before a domain of 8 cells is rejected; fewer for more
cells, which take longer each."""
_MOST_CHOICES = 2000
_MOST_NAMED = 8
"""The most memory backends to name in an error."""


@dataclass(frozen=True)
class PoolFree:
    """Describe the free memory of a pool."""

    name: str
    backend: str
    page_size: int
    segments: Mapping[SegmentId, Mapping[int, int]]
    """Free bytes by segment and node; only ``NO_NODE`` where the backend has no nodes."""
    slow_nodes: frozenset[int] = frozenset()
    """Nodes without CPUs, such as CXL memory."""
    may_lock: bool = True
    """Domains with locked memory can use it."""
    may_pin: bool = True
    """It has struct pages, so that direct I/O and others can pin its memory."""


@dataclass(frozen=True)
class ExtentPlan:
    """Plan the extent of one memory backend."""

    alias: str
    segment: SegmentId
    """The segment of the pool that its file is in: a file cannot be in two."""
    size_bytes: int
    page_size: int
    policy: str
    """``bind``, ``interleave`` or ``preferred`` over ``nodes``; ``none`` where the pool has no nodes."""
    shares: tuple[tuple[int, int], ...]
    """Node and bytes to charge, each node once, more than zero, together ``size_bytes``; in allocation order: a
    preferred node comes first."""

    @property
    def nodes(self) -> tuple[int, ...]:
        """The nodes of ``shares``; empty where the pool has none."""
        return tuple(node for node, _ in self.shares if node != NO_NODE)


@dataclass(frozen=True)
class Plan:
    """Name the source of all memory of a domain."""

    uuid: str
    name: str
    extents: tuple[ExtentPlan, ...]

    @property
    def total_bytes(self) -> int:
        """The bytes to charge the domain in all."""
        return sum(extent.size_bytes for extent in self.extents)


def plan_domain(memory: DomainMemory, pools: Mapping[str, PoolFree], default_pool: str) -> Plan:
    """Return the plan for the memory backends of ``memory``, in the order of its cells.

    Host nodes of ``<numatune>`` are respected where the mode is strict, restrictive (one or more of them) or
    interleave (evenly over all of them); in mode preferred, only memory without room there goes elsewhere. A
    backend without host nodes is placed on one node if possible, and on nodes without CPUs only where the others
    have no room. Free memory is left as even as possible (``allocation.placement``); with very many memory backends
    only nearly, and a domain that fits only if some of them make room for others may be rejected.
    A domain that names no pool gets ``default_pool``, or else the only one.

    :raise PoolNotFound: When there is no such pool, or several and no default.
    :raise DomainRefused: When a size is not a multiple of the page size, or the pool does not support the domain.
    :raise NotEnoughMemory: Contains the requested memory, and the free memory by node.
    """
    pool = _choose_pool(memory, pools, default_pool)
    require_possible(memory, pool.name, may_lock=pool.may_lock, may_pin=pool.may_pin)
    require_whole_pages(memory.name, memory.cells, pool.page_size)
    shares = _place(memory.cells, pool)
    if shares is None:
        raise _not_enough(memory, pool)
    return Plan(memory.uuid, memory.name, tuple(map(_extent, memory.cells, shares, itertools.repeat(pool))))


def _choose_pool(memory: DomainMemory, pools: Mapping[str, PoolFree], default_pool: str) -> PoolFree:
    name = memory.pool or default_pool
    if not name and len(pools) == 1:
        name = next(iter(pools))
    if name in pools:
        return pools[name]
    if name:
        raise PoolNotFound(
            f"Domain {memory.name!r} asks for memory of pool {name!r}, which does not exist or is not usable.",
            hint=f"{did_you_mean(name, pools)}'virt-dmem pool list' lists the pools of this host.",
        )
    if not pools:
        raise PoolNotFound(
            f"Domain {memory.name!r} asks for memory of a pool, and this host has no usable pool.",
            hint="'virt-dmem pool list' lists the pools of this host; 'virt-dmem pool create' creates one.",
        )
    raise PoolNotFound(
        f"Domain {memory.name!r} names no pool, and of {len(pools)} pools none is the default.",
        hint=f"Set default_pool in virt-dmem.toml, or name one: 'virt-dmem apply --pool NAME {memory.uuid}', for a"
        " transient domain 'virt-dmem rewrite --pool NAME'.",
    )


_Bin = tuple[SegmentId, int]
"""A segment and a node."""


def _place(cells: Sequence[Cell], pool: PoolFree) -> list[dict[_Bin, int]] | None:
    """Return the bytes that each cell takes of each bin; ``None`` when they do not fit.

    The best of the first ``_MOST_WAYS`` fitting ways to choose segments; of equal ones the segments with the least
    room are filled first, so that large domains find the large ones free. More than ``_MOST_EXACT`` cells are
    placed one after another.
    """
    free = {
        (segment, node): size // pool.page_size
        for segment, nodes in sorted(pool.segments.items())
        for node, size in sorted(nodes.items())
        if size >= pool.page_size
    }
    numbers = {where: number for number, where in enumerate(free)}
    room: Counter[SegmentId] = Counter()
    for (segment, _), pages in free.items():
        room[segment] += pages
    by_number = dict(enumerate(free.values()))
    where, segments = list(free), sorted(room, key=lambda segment: (room[segment], segment))
    if len(cells) > _MOST_EXACT:
        asks = [[_demands(cell, segment, numbers, pool) for segment in segments] for cell in cells]
        greedy = _one_after_another(asks, by_number) if free else None
        if greedy is None:
            return None
        return [{where[at]: pages * pool.page_size for at, pages in taken.items()} for taken in greedy]
    fitting = [
        [asked for segment in segments if fits(asked := _demands(cell, segment, numbers, pool), by_number)]
        for cell in cells
    ]
    most = min(_MOST_WAYS, max(1, _MOST_PLACED // len(cells)))
    ways = list(
        itertools.islice(_ways(fitting, by_number, [], iter(range(_MOST_TRIES * 8 // max(8, len(cells))))), most)
    )
    found = []
    for demands in ways:
        placement = place(list(itertools.chain(*demands)), by_number, choices=_MOST_CHOICES // len(ways))
        assert placement is not None  # noqa: S101 -- it fits
        found.append((placement.cost, _unevenness(placement, free), placement, demands))
    if not found:
        return None
    _, _, placement, demands = min(found, key=lambda item: item[:2])
    shares = iter(placement.shares)
    return [
        {
            where[number]: pages * pool.page_size
            for taken in itertools.islice(shares, len(some))
            for number, pages in taken.items()
        }
        for some in demands
    ]


def _one_after_another(
    asks: Sequence[Sequence[list[Demand]]], free: Mapping[int, int]
) -> list[dict[int, int]] | None:
    """Return the pages that each cell takes of the bins; ``None`` when one of them has no room.

    Cells with the least choice come first, of equals the largest; each takes the first of its segments with room.
    """
    left = dict(free)
    found: list[dict[int, int]] = [{} for _ in asks]

    def choice(number: int) -> tuple[int, int]:
        pages = sum(demand.pages for demand in asks[number][0])
        return sum(len(tier) for some in asks[number] for demand in some for tier in demand.tiers), -pages

    for number in sorted(range(len(asks)), key=choice):
        taken = next(filter(None, (_taken(demands, left) for demands in asks[number])), None)
        if taken is None:
            return None
        for at, pages in taken.items():
            left[at] -= pages
        found[number] = taken
    return found


def _taken(demands: Sequence[Demand], left: Mapping[int, int]) -> dict[int, int] | None:
    """Return the pages that demands on different bins take of the rest: each of one bin where one has room."""
    taken: dict[int, int] = {}
    for demand in demands:
        pages = demand.pages
        for tier in demand.tiers:
            for at in sorted(tier, key=lambda at: (-left[at], at)):
                taken[at] = min(pages, left[at])
                pages -= taken[at]
                if not pages:
                    break
            if not pages:
                break
        if pages:
            return None
    return {at: pages for at, pages in taken.items() if pages}


def _ways(
    fitting: Sequence[Sequence[list[Demand]]],
    free: Mapping[int, int],
    chosen: Sequence[list[Demand]],
    tries: Iterator[int],
) -> Iterator[list[list[Demand]]]:
    """Yield the ways to choose for each cell a segment that it fits in so that all fit together."""
    if len(chosen) == len(fitting):
        yield [*chosen]
        return
    for demands, _ in zip(fitting[len(chosen)], tries, strict=False):
        more = [*chosen, demands]
        if len(more) == 1 or fits(list(itertools.chain(*more)), free):
            yield from _ways(fitting, free, more, tries)


def _demands(cell: Cell, segment: SegmentId, numbers: Mapping[_Bin, int], pool: PoolFree) -> list[Demand]:
    """Return the demands of a cell on the bins of its segment."""
    pages = cell.size_bytes // pool.page_size
    every = frozenset(number for (name, _), number in numbers.items() if name == segment)

    def bins(nodes: Iterable[int]) -> frozenset[int]:
        return frozenset(numbers[segment, node] for node in nodes if (segment, node) in numbers)

    if (segment, NO_NODE) in numbers:
        return [Demand(pages, (every,))]
    slow = bins(pool.slow_nodes)
    if not cell.host_nodes:
        return [Demand(pages, (every - slow, slow))]
    wanted = bins(cell.host_nodes)
    if cell.policy == "preferred":
        return [Demand(pages, (wanted, every - wanted - slow, slow - wanted))]
    if cell.policy == "interleave":  # page by page in turn, the first nodes first, as the kernel does
        each, more = divmod(pages, len(cell.host_nodes))
        takes = {node: each + (index < more) for index, node in enumerate(cell.host_nodes)}
        return [Demand(count, (bins([node]),)) for node, count in takes.items() if count]
    return [Demand(pages, (wanted,))]


def _unevenness(placement: Placement, free: Mapping[_Bin, int]) -> int:
    """Return how uneven the free memory is over the nodes, all segments together."""
    left: Counter[int] = Counter()
    for number, ((_, node), pages) in enumerate(free.items()):
        left[node] += pages - sum(shares.get(number, 0) for shares in placement.shares)
    return sum(pages**2 for pages in left.values())


def _extent(cell: Cell, shares: Mapping[_Bin, int], pool: PoolFree) -> ExtentPlan:
    segment = next(iter(shares))[0]
    policy = cell.policy if cell.host_nodes and cell.policy in ("interleave", "preferred") else "bind"
    if any(node == NO_NODE for _, node in shares):
        policy = "none"
    return ExtentPlan(
        alias=cell.alias,
        segment=SegmentId(segment),
        size_bytes=cell.size_bytes,
        page_size=pool.page_size,
        policy=policy,
        shares=tuple((node, size) for (_, node), size in shares.items()),
    )


def _not_enough(memory: DomainMemory, pool: PoolFree) -> NotEnoughMemory:
    by_node: Counter[int] = Counter()
    for nodes in pool.segments.values():
        by_node.update({node: max(0, size // pool.page_size * pool.page_size) for node, size in nodes.items()})
    asked = format_size(memory.total_bytes)
    if memory.total_bytes <= by_node.total():  # name those that do not fit together
        cells = sorted(memory.cells, key=lambda cell: (not cell.host_nodes, -cell.size_bytes))
        count = 1 + bisect_left(range(1, len(cells)), True, key=lambda count: _place(cells[:count], pool) is None)
        alone = next((cell for cell in cells[:count] if _place([cell], pool) is None), None)
        some = [alone] if alone else cells[:count]
        asked = " and ".join([*map(_asked, some[:_MOST_NAMED]), *_more(len(some) - _MOST_NAMED)])
    details = [f"node {node}: {format_size(size)}" for node, size in sorted(by_node.items()) if node != NO_NODE]
    if len(pool.segments) > 1:
        details += [
            f"of which {format_size(max(0, sum(nodes.values())))} in segment {segment}"
            for segment, nodes in sorted(pool.segments.items())
        ]
    where = f" ({', '.join(details)})" if details else ""
    return NotEnoughMemory(
        f"Domain {memory.name!r} asks pool {pool.name!r} for {asked}, and {format_size(by_node.total())} is free"
        f"{where}.",
        hint="Stop another domain, give this one less memory, or make the pool larger.",
    )


def _more(count: int) -> list[str]:
    return [f"{count} more"] if count > 0 else []


def _asked(cell: Cell) -> str:
    nodes = f" on node {', '.join(map(str, cell.host_nodes))} ({cell.policy})" if cell.host_nodes else ""
    return f"{format_size(cell.size_bytes)} for {cell.alias}{nodes}"
