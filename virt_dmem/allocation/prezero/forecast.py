# SPDX-License-Identifier: GPL-2.0-or-later
"""Forecast which memory to pre-zero for the domains that are likely to start. Pure, and deterministic."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from virt_dmem.allocation.plan import ExtentPlan, Plan, PoolFree, plan_domain
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.errors import DmemError
from virt_dmem.pools.prezeroed_files import PrezeroedExtent, held_by_node
from virt_dmem.pools.segment_id import SegmentId

__all__ = ["forecast", "Target", "plan_on_prezeroed"]


@dataclass(frozen=True)
class Target:
    """Describe a pre-zeroed extent to have, for a memory backend of a domain."""

    uuid: str
    extent: ExtentPlan


def forecast(
    domains: Iterable[DomainMemory],
    free: Mapping[str, PoolFree],
    prezeroed: Mapping[SegmentId, Sequence[PrezeroedExtent]],
    limits: Mapping[str, int],
    default_pool: str,
) -> Iterator[list[Target]]:
    """Yield the targets of each domain, as if all started one after another, the likeliest first.

    A domain with pre-zeroed extents keeps them where they are. One without room beside those before it gets none.

    :param free: Unreserved memory of the pools that are zeroed ahead.
    :param prezeroed: The pre-zeroed extents of each segment.
    :param limits: The most of each pool that may be pre-zeroed, in bytes.
    """
    left = dict(free)
    allowed = dict(limits)
    own: defaultdict[str, dict[SegmentId, list[PrezeroedExtent]]] = defaultdict(dict)
    for segment, extents in prezeroed.items():
        for extent in extents:
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
        pool = plan.extents[0].segment.pool
        if plan.total_bytes > allowed.get(pool, 0):
            yield []
            continue
        allowed[pool] -= plan.total_bytes
        left[pool] = _without(left[pool], plan)
        yield [Target(domain.uuid, planned) for planned in plan.extents]


def plan_on_prezeroed(
    domain: DomainMemory,
    free: Mapping[str, PoolFree],
    own: Mapping[SegmentId, Sequence[PrezeroedExtent]],
    default_pool: str,
) -> Plan | None:
    """Return the plan of a domain on only the nodes of its pre-zeroed memory; ``None`` if that is impossible.

    :param own: Its pre-zeroed extents, by segment.
    """
    if not any(own.values()):
        return None
    narrowed = {}
    for name, pool in free.items():
        targets = {
            segment: held_by_node(
                replace(extent, zeroed_bytes=extent.target_bytes) for extent in own.get(segment, ())
            )
            for segment in pool.segments
        }
        narrowed[name] = replace(
            pool,
            segments={
                segment: {node: min(size, targets[segment][node]) for node, size in nodes.items()}
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
    taken: Counter[tuple[SegmentId, int]] = Counter()
    for extent in plan.extents:
        taken.update({(extent.segment, node): size for node, size in extent.shares})
    return replace(
        pool,
        segments={
            segment: {node: size - taken[segment, node] for node, size in nodes.items()}
            for segment, nodes in pool.segments.items()
        },
    )
