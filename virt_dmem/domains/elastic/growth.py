# SPDX-License-Identifier: GPL-2.0-or-later
"""Take memory for a domain that does not fit into what its elastic pool has.

The domain is planned as if the pool had one more segment, as large as it may become; what the plan takes of that is
then taken from the host, on the same nodes, and reserved for the domain before anything else runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.plan import Plan, PoolFree, plan_domain
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains.elastic.returning import Returning
from virt_dmem.errors import NotEnoughMemory, PoolError, PoolShort
from virt_dmem.pools.backends.base import ProgressCallback
from virt_dmem.pools.elastic import client
from virt_dmem.pools.elastic.room import Room, limits_of, room_of
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import format_size

__all__ = ["Growth", "Wanted", "plan_with_room"]

log = logging.getLogger(__name__)
T = TypeVar("T")

HEARTBEAT_SECONDS = 2.0
"""How often progress is reported at least: the hook gives up after ten seconds without."""
_TRIES = 4
"""How often to plan again: others freed or reserved memory meanwhile, or a node had less than it seemed."""
_NEW = 999_999
"""The number of the segment that is planned and does not exist yet."""


@dataclass(frozen=True)
class Wanted:
    """A plan, and the bytes by node that have to be taken for it in a new segment."""

    plan: Plan
    nodes: Mapping[int, int]

    def on(self, segment: SegmentId) -> Plan:
        """Return the plan with the segment that was taken."""
        extents = (
            replace(extent, segment=segment) if extent.segment.number == _NEW else extent
            for extent in self.plan.extents
        )
        return replace(self.plan, extents=tuple(extents))


class Growth:
    """Take memory for domains, one domain at a time."""

    def __init__(self, config: Config, inventory: Inventory, returning: Returning) -> None:
        self._config = config
        self._inventory = inventory
        self._returning = returning
        self._starting: dict[str, SegmentId] = {}
        """The segment that was taken for a domain whose start has not succeeded yet, by UUID."""

    def concerns(self, domain: DomainMemory) -> bool:
        """Return whether the domain's pool is elastic."""
        return bool(self._inventory.elastic_segments(domain.pool))

    async def reserve(
        self, domain: DomainMemory, plan: Callable[[], Plan], reserve: Callable[[Plan], T], report: ProgressCallback
    ) -> T:
        """Reserve memory for a domain, and take what its pool lacks.

        :param plan: Plans the domain on what its pool has.
        :param reserve: Charges a plan in the ledger.
        :raise NotEnoughMemory: When the pool may not take as much, or the host does not provide it.
        :raise PoolError: When virt-dmem-pages does not answer.
        """
        async with _heartbeat(report) as noted, self._returning.changing:
            less: dict[int, int] = {}
            for left in reversed(range(_TRIES)):
                with contextlib.suppress(NotEnoughMemory):
                    return reserve(plan())  # freed or taken meanwhile
                segments = self._inventory.elastic_segments(domain.pool)
                try:
                    wanted = self._plan(domain, segments, less)
                except NotEnoughMemory:
                    if left and _may_fit(domain, segments) and await self._returning.make_room(domain.total_bytes):
                        continue
                    raise
                try:
                    return await self._take(domain, segments[0].pool, wanted, reserve, noted)
                except PoolShort as short:
                    less = {node: min(size, less.get(node, size)) for node, size in _short_nodes(wanted, short)}
                    if not (left and less):
                        raise _refused(domain, segments[0].pool, short) from short
                except NotEnoughMemory:  # another domain reserved what the plan had of the other segments
                    if not left:
                        raise
            raise AssertionError("the last try returns or raises")

    def _plan(self, domain: DomainMemory, segments: Sequence[PoolRecord], less: Mapping[int, int]) -> Wanted:
        pool = segments[0].pool
        limits = limits_of(segments[0])
        assert limits is not None  # noqa: S101 -- the pool is elastic
        room = room_of(segments, limits)
        nodes = {node: min(size, less.get(node, size)) for node, size in room.nodes.items()}
        free = self._inventory.free()
        room = replace(room, nodes=nodes, most_bytes=min(room.most_bytes, sum(nodes.values())))
        return plan_with_room(domain, free, pool, room, self._config.default_pool)

    async def _take(
        self,
        domain: DomainMemory,
        pool: str,
        wanted: Wanted,
        reserve: Callable[[Plan], T],
        report: ProgressCallback,
    ) -> T:
        """Take what a plan needs, and reserve it in the same turn of the event loop."""
        try:
            segment = await client.take(self._config.pages_socket_path, pool, wanted.nodes, report)
        except PoolError:
            self._inventory.read_records()  # what could not be undone is given back later
            raise
        self._inventory.read_records()
        try:
            reserved = reserve(wanted.on(segment))
        except BaseException:
            self._returning.hurry(segment)
            raise
        self._starting[domain.uuid] = segment
        log.info("pool %s took %s for %s", pool, format_size(sum(wanted.nodes.values())), domain.name)
        return reserved

    def succeeded(self, uuid: str) -> None:
        """Note that a domain has its memory: afterwards it lingers."""
        self._starting.pop(uuid, None)

    def failed(self, uuid: str) -> None:
        """Note that a domain did not start, and holds nothing any more: what was taken for it goes back at once."""
        if segment := self._starting.pop(uuid, None):
            self._returning.hurry(segment)


def _may_fit(domain: DomainMemory, segments: Sequence[PoolRecord]) -> bool:
    """Return whether giving back idle memory can help at all: its pool may become large enough for it."""
    limits = limits_of(segments[0])
    return limits is not None and domain.total_bytes <= limits.max_bytes


def plan_with_room(
    domain: DomainMemory, free: Mapping[str, PoolFree], pool: str, room: Room, default_pool: str
) -> Wanted:
    """Plan a domain on what its pool has, and may take. Pure.

    :param pool: The elastic pool of the domain.
    :raise NotEnoughMemory: When that is not enough; with both, by node, and the limits.
    """
    has = free.get(pool)
    if has is None:  # it is being destroyed
        return Wanted(plan_domain(domain, free, default_pool), {})
    new = SegmentId.of(pool, _NEW)
    grown = replace(has, segments={**has.segments, new: dict(room.nodes)})
    try:
        plan = plan_domain(domain, {**free, pool: grown}, default_pool)
    except NotEnoughMemory as error:
        raise _too_little(domain, pool, has.segments, room) from error
    nodes: Counter[int] = Counter()
    for extent in plan.extents:
        if extent.segment == new:
            nodes.update(dict(extent.shares))
    if nodes.total() > room.most_bytes:
        raise _too_little(domain, pool, has.segments, room)
    return Wanted(plan, dict(nodes))


def _too_little(
    domain: DomainMemory, pool: str, segments: Mapping[SegmentId, Mapping[int, int]], room: Room
) -> NotEnoughMemory:
    free = sum(size for nodes in segments.values() for size in nodes.values())
    return NotEnoughMemory(
        f"Domain {domain.name!r} asks elastic pool {pool!r} for {format_size(domain.total_bytes)};"
        f" {format_size(free)} of it is free, and {room}.",
        hint=room.hint(max(0, domain.total_bytes - free)),
    )


def _refused(domain: DomainMemory, pool: str, short: PoolShort) -> NotEnoughMemory:
    return NotEnoughMemory(
        f"Domain {domain.name!r} asks elastic pool {pool!r} for {format_size(domain.total_bytes)}, and the host"
        f" does not provide it: {short.message}",
        hint=short.hint,
    )


def _short_nodes(wanted: Wanted, short: PoolShort) -> list[tuple[int, int]]:
    """Return the nodes that provided less than was asked of them, with what they did provide."""
    return [(node, short.had[node]) for node, size in wanted.nodes.items() if short.had.get(node, size) < size]


@contextlib.asynccontextmanager
async def _heartbeat(report: ProgressCallback) -> AsyncIterator[ProgressCallback]:
    """Repeat the last progress in this context while nothing new is reported; yields the callback to report by."""
    last = ("waiting for huge pages", 0, 0)

    def note(doing: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal last
        last = (doing, done_bytes, total_bytes)
        report(*last)

    async def beat() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            report(*last)

    task = asyncio.create_task(beat())
    try:
        yield note
    finally:
        task.cancel()
