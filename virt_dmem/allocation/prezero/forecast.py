# SPDX-License-Identifier: GPL-2.0-or-later
"""Which memory to have ready for the domains that are likely to start. Pure, and deterministic."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from virt_dmem.allocation.plan import ExtentPlan, Plan, PoolFree, plan_domain
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.errors import DmemError
from virt_dmem.pools.prezeroed_files import PrezeroedExtent, by_node

__all__ = ["Target", "plan_on_prezeroed", "forecast"]


@dataclass(frozen=True)
class Target:
    """A memory backend that is to find its memory ready."""

    uuid: str
    extent: ExtentPlan


def forecast(
    domains: Iterable[DomainMemory],
    free: Mapping[str, PoolFree],
    stock: Mapping[str, Sequence[PrezeroedExtent]],
    most: Mapping[str, int],
    default_pool: str,
) -> Iterator[list[Target]]:
    """Yield what is to be ready for each domain, as if all started one after another, the likeliest first.

    Who has ready memory already keeps it where it is. A domain that has no room beside those before it gets none.

    :param free: What is not reserved, of the pools whose memory can be made ready.
    :param stock: The ready extents of each segment.
    :param most: How much of each pool may be ready at the same time, in bytes.
    """
    left = dict(free)
    allowed = dict(most)
    own: defaultdict[str, dict[str, list[PrezeroedExtent]]] = defaultdict(dict)
    for segment, some in stock.items():
        for extent in some:
            own[extent.owner.uuid].setdefault(segment, []).append(extent)
    for domain in domains:
        room = sum(size for pool in left.values() for nodes in pool.segments.values() for size in nodes.values())
        if not room:
            break
        if domain.total_bytes > room:
            continue
        plan = plan_on_prezeroed(domain, left, own.get(domain.uuid, {}), default_pool) or _plan(
            domain, left, default_pool
        )
        if plan is None or not plan.extents:
            yield []
            continue
        pool = plan.extents[0].pool.partition("+")[0]
        if plan.total_bytes > allowed.get(pool, 0):
            yield []
            continue
        allowed[pool] -= plan.total_bytes
        left[pool] = _without(left[pool], plan)
        yield [Target(domain.uuid, extent) for extent in plan.extents]


def plan_on_prezeroed(
    domain: DomainMemory,
    free: Mapping[str, PoolFree],
    own: Mapping[str, Sequence[PrezeroedExtent]],
    default_pool: str,
) -> Plan | None:
    """Return the plan of a domain on nothing but the nodes that its ready memory is on, if that is possible.

    :param own: The ready extents, by segment, that were made for it or that it had.
    """
    if not any(own.values()):
        return None
    narrowed = {}
    for name, pool in free.items():
        goals = {
            segment: by_node(replace(extent, clean_bytes=extent.goal_bytes) for extent in own.get(segment, ()))
            for segment in pool.segments
        }
        narrowed[name] = replace(
            pool,
            segments={
                segment: {node: min(size, goals[segment][node]) for node, size in nodes.items()}
                for segment, nodes in pool.segments.items()
            },
        )
    return _plan(domain, narrowed, default_pool)


def _plan(domain: DomainMemory, free: Mapping[str, PoolFree], default_pool: str) -> Plan | None:
    try:
        return plan_domain(domain, free, default_pool)
    except DmemError:
        return None


def _without(pool: PoolFree, plan: Plan) -> PoolFree:
    taken: Counter[tuple[str, int]] = Counter()
    for extent in plan.extents:
        taken.update({(extent.pool, node): size for node, size in extent.shares})
    return replace(
        pool,
        segments={
            segment: {node: size - taken[segment, node] for node, size in nodes.items()}
            for segment, nodes in pool.segments.items()
        },
    )
