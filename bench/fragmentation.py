# SPDX-License-Identifier: GPL-2.0-or-later
"""Count starts that are refused although they would have fitted, over a long random run on a pool nearly full.

The real planner, and nothing else: what it gives is taken from a table of free memory, what ends is added to it
again. The pool has 8 nodes, in one segment and in three (a pool that was resized twice). Whether a refused domain
would have fitted is asked of a search over all segments for all its cells. Beside it stand those that found the
memory on their nodes, but in pieces in more segments than they have files: only moving others would help them.
A round is another seed.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import uuid as uuids
from collections import Counter
from collections.abc import Mapping

from bench.alone import run_alone
from bench.goals import within
from bench.results import Results
from virt_dmem.allocation.plan import Plan, PoolFree, plan_domain
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.errors import NotEnoughMemory
from virt_dmem.units import GIB, MIB

__all__ = ["NAME", "measure", "would_fit"]

NAME = "fragmentation"
REFUSED, WRONGLY, IN_PIECES = "refused starts", "refused, and would have fitted", "refused, as segments are apart"
NODES = 8
PAGE = 2 * MIB
SEGMENTS = {"1 segment": (128,), "3 segments": (64, 48, 16)}
"""GiB of each node in each segment."""
SIZES = tuple(256 * MIB << power for power in range(8))
FULL = 0.9
"""Above this part of the pool as many domains end as start."""

Free = dict[str, dict[int, int]]
"""Segment to node to bytes."""


def domain(chance: random.Random) -> DomainMemory:
    """Return a domain of one to four cells, in half of the cases each strictly on a node."""
    count = chance.choice((1, 1, 1, 2, 2, 4))
    size = max(PAGE, chance.choice(SIZES) // count)
    strict = chance.random() < 0.5
    nodes = chance.sample(range(NODES), count)
    cells = tuple(
        Cell(f"ram-node{number}", number, size, (nodes[number],) if strict else (), "strict" if strict else "")
        for number in range(count)
    )
    uuid = str(uuids.UUID(int=chance.getrandbits(128), version=4))
    return DomainMemory(uuid, "vm", "pool", cells, True, True, None, None, None, None)


def would_fit(cells: tuple[Cell, ...], free: Mapping[str, Mapping[int, int]]) -> bool:
    """Tell whether some choice of a segment for each cell has room for all."""
    for chosen in itertools.product(free, repeat=len(cells)):
        asked: dict[str, list[Cell]] = {}
        for segment, cell in zip(chosen, cells, strict=True):
            asked.setdefault(segment, []).append(cell)
        if all(_fits(some, free[segment]) for segment, some in asked.items()):
            return True
    return False


def _fits(cells: list[Cell], free: Mapping[int, int]) -> bool:
    """Cells with a node take of that node alone; the others of whatever is left on any."""
    strict: Counter[int] = Counter()
    for cell in cells:
        if cell.host_nodes:
            strict[cell.host_nodes[0]] += cell.size_bytes
    if any(size > free.get(node, 0) for node, size in strict.items()):
        return False
    return sum(cell.size_bytes for cell in cells) <= sum(free.values())


def run(segments: tuple[int, ...], operations: int, chance: random.Random) -> Counter[str]:
    """Start and end domains at random; return how many starts were refused, and in what cases."""
    free: Free = {
        f"pool+{at}": dict.fromkeys(range(NODES), size * GIB) for at, size in enumerate(segments)
    }  # fmt: skip
    whole = sum(sum(nodes.values()) for nodes in free.values())
    running: list[Plan] = []
    counted: Counter[str] = Counter()
    for _ in range(operations):
        used = 1 - sum(sum(nodes.values()) for nodes in free.values()) / whole
        if running and chance.random() < (0.5 if used > FULL else 0.2):
            at = chance.randrange(len(running))
            running[at], ended = running[-1], running[at]
            running.pop()
            _charge(free, ended, -1)
            continue
        asked = domain(chance)
        pool = PoolFree("pool", "hugetlbfs", PAGE, free)
        try:
            plan = plan_domain(asked, {"pool": pool}, "")
        except NotEnoughMemory:
            counted[REFUSED] += 1
            together = {"": dict(sum((Counter(nodes) for nodes in free.values()), Counter[int]()))}
            if would_fit(asked.cells, free):
                counted[WRONGLY] += 1
            elif would_fit(asked.cells, together):
                counted[IN_PIECES] += 1
            continue
        _charge(free, plan, 1)
        running.append(plan)
    return counted


def _charge(free: Free, plan: Plan, sign: int) -> None:
    for extent in plan.extents:
        for node, size in extent.shares:
            free[extent.segment][node] -= sign * size
            assert free[extent.segment][node] >= 0


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Run with one segment and with three."""
    for case, segments in SEGMENTS.items():
        for seed in range(arguments.rounds):
            counted = run(segments, arguments.operations, random.Random(seed))
            for what in (REFUSED, WRONGLY, IN_PIECES):
                results.add(NAME, what, case, counted[what], unit=f"of {arguments.operations} operations")
        within(results, f"{NAME}: {WRONGLY}, {case}", 0, results.find(NAME, WRONGLY, case))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--operations", type=int, default=4000, help="starts and ends in a round (%(default)s)")


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, rounds=3, options=_options))
