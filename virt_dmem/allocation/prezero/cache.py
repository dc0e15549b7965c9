# SPDX-License-Identifier: GPL-2.0-or-later
"""Cache unreserved memory, populated for the next start or held on its node, without ever blocking a reservation.

Pre-zeroed extents (``pools.prezeroed_files``) are created for the domains that are likely to start (``forecast``);
the rest is ballast where the nodes need it (``pools.ballast``). All of it counts as free: a reservation takes what
fits, and of the rest the least likely to be needed is evicted at once. ``worker`` populates it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, ExtentState, PoolStatus
from virt_dmem.allocation.plan import Plan
from virt_dmem.allocation.prezero.forecast import Target, forecast, plan_on_prezeroed
from virt_dmem.allocation.prezero.segment_cache import SegmentCache
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.pools import prezeroed_files
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.prezeroed_files import Owner, PrezeroedExtent
from virt_dmem.pools.segment_id import SegmentId

__all__ = ["PrezeroCache"]


class PrezeroCache:
    """Hold the caches of all segments, and decide for which domains they are filled."""

    def __init__(self, config: Config, ledger: Ledger, inventory: Inventory) -> None:
        self._config = config
        self._ledger = ledger
        self._inventory = inventory
        self._segments: dict[SegmentId, SegmentCache] = {}
        self.changed = asyncio.Event()
        """Set when there may be something to populate."""
        self._domains: dict[str, DomainMemory] = {}
        self._has_domains = False
        self._running = ledger.phases()
        self._last_run = ledger.last_steps()
        self._targets: list[Target] = []
        self._is_stale = True
        self.is_host_busy = False
        """Populating is paused, as tasks of the host wait for CPUs or memory."""
        self.obstacles: dict[SegmentId, str] = {}
        """Why populating did not go on, by segment."""

    def of(self, segment: SegmentId) -> SegmentCache:
        """Return the cache of a segment."""
        if segment not in self._segments:
            self._segments[segment] = SegmentCache(segment, self._inventory, self.likelihood)
        return self._segments[segment]

    # Domains that are likely to start

    def set_domains(self, domains: Iterable[DomainMemory]) -> None:
        """Set all applied domains, which may start at any time."""
        self._domains = {domain.uuid: domain for domain in domains}
        last_run = self._last_run if self._has_domains else self._ledger.last_steps()
        self._last_run = {uuid: at for uuid, at in last_run.items() if uuid in self._domains}
        self._has_domains = True
        self.invalidate()

    def update_domain(self, uuid: str, domain: DomainMemory | None) -> None:
        """Update the definition of a domain; ``None``: it is not applied, or undefined."""
        if domain is None:
            self._domains.pop(uuid, None)
            self._last_run.pop(uuid, None)
        else:
            self._domains[uuid] = domain
        self.invalidate()

    def likelihood(self, uuid: str) -> float:
        """Return how likely a domain is to start: the later it ran, the likelier; 0: never ran; -1: cannot."""
        cannot = uuid in self._running or (self._has_domains and uuid not in self._domains)
        return -1.0 if cannot else self._last_run.get(uuid, 0.0)

    # Targets

    def invalidate(self) -> None:
        """Mark the targets as outdated, to be forecast again by ``update_targets``."""
        self._is_stale = True
        self.changed.set()

    def targets(self) -> list[Target]:
        """Return the targets as forecast last, the likeliest first."""
        return self._targets

    async def update_targets(self) -> None:
        """Forecast the targets if they are outdated; other tasks run between two domains."""
        if not self._is_stale:
            return
        self._is_stale = False
        likely = sorted(
            (domain for uuid, domain in self._domains.items() if uuid not in self._running),
            key=lambda domain: (-self.likelihood(domain.uuid), domain.name, domain.uuid),
        )
        if self._config.prefault.ready != "all":
            likely = [domain for domain in likely if self.likelihood(domain.uuid)]
        segments = self.enabled_segments()
        free = {
            name: pool
            for name, pool in self._inventory.free().items()
            if any(segment in segments for segment in pool.segments)
        }
        prezeroed = {segment: self.of(segment).extents() for segment in segments}
        limits = {pool: self._limit_bytes(pool) for pool in free}
        targets: list[Target] = []
        for of_domain in forecast(likely, free, prezeroed, limits, self._config.default_pool):
            targets += of_domain
            await asyncio.sleep(0)
        self._targets = targets

    def find(self, target: Target) -> PrezeroedExtent | None:
        """Return the pre-zeroed extent that is, or when complete will be, a target."""
        plan = target.extent
        wanted = (Owner(target.uuid, plan.alias), plan.policy, plan.shares)
        extents = self.of(plan.segment).of_domain(target.uuid)
        return next((one for one in extents if (one.owner, one.policy, one.shares) == wanted), None)

    def enabled_segments(self) -> set[SegmentId]:
        """Return the segments to pre-zero: none where the kernel zeroes ahead by itself."""
        if self._config.prefault.ready == "off":
            return set()
        return {
            segment
            for segment, record in self._inventory.allocatable().items()
            if backend(record.backend).prezeroable and not self._inventory.is_draining(record.pool)
        }

    def _limit_bytes(self, pool: str) -> int:
        """Return the most of a pool that may be pre-zeroed, in bytes."""
        capacity = sum(size for (segment, _), size in self._inventory.capacity().items() if segment.pool == pool)
        return capacity * self._config.prefault.ready_percent // 100

    # Status

    def pool_statuses(self) -> list[PoolStatus]:
        """Return the status of every recorded pool, its pre-zeroed memory included."""
        by_pool, by_node = self._prezeroed_bytes(), self._prezeroed_by_node()
        return [
            replace(
                status,
                ready_bytes=now,
                ready_goal_bytes=target,
                ready_most_bytes=0 if policy in {"off", "kernel"} else self._limit_bytes(status.name),
                ready_policy=policy,
                ready_note=self._note(status, policy, now, target),
                nodes=[replace(node, ready_bytes=by_node[status.name][node.node]) for node in status.nodes],
            )
            for status in self._inventory.pool_statuses()
            for now, target in [by_pool.get(status.name, (0, 0))]
            for policy in [self._config.prefault.ready if backend(status.backend).prezeroable else "kernel"]
        ]

    def _note(self, status: PoolStatus, policy: str, now_bytes: int, target_bytes: int) -> str:
        """Return why no more of a pool is pre-zeroed; empty: all that is to be is."""
        if policy == "kernel":
            return "the kernel itself zeroes this memory"
        if policy == "off":
            return "it is switched off: [prefault] ready"
        if status.state != "ready":
            return f"the pool is {status.state}"
        if not self._limit_bytes(status.name):
            return "it is limited to 0: [prefault] ready_percent"
        if now_bytes < target_bytes:
            if self.is_host_busy:
                return "paused: tasks of the host wait for CPUs or memory ([prefault] ready_pressure)"
            why = [why for segment, why in self.obstacles.items() if segment.pool == status.name]
            return why[0] if why else "under way"
        if target_bytes:
            return ""
        if not self._has_domains:
            return "which domains there are is not known: libvirt has not answered yet"
        ran = "ran here before, is shut off" if policy == "recent" else "is shut off"
        return f"no target: no applied domain {ran} and fits in what is free"

    def _prezeroed_by_node(self) -> defaultdict[str, Counter[int]]:
        """Return the bytes that are pre-zeroed now, by pool and node."""
        found: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for segment in self._inventory.usable():
            found[segment.pool] += prezeroed_files.held_by_node(self.of(segment).extents())
        return found

    def _prezeroed_bytes(self) -> dict[str, tuple[int, int]]:
        """Return the bytes that are pre-zeroed now, and that are to be, by pool."""
        now: Counter[str] = Counter()
        target_bytes: Counter[str] = Counter()
        counted = set()
        usable = self._inventory.usable()
        for target in self.targets():
            if target.extent.segment not in usable:  # removed since they were forecast
                continue
            target_bytes[target.extent.segment.pool] += target.extent.size_bytes
            counted.add(self.find(target))
        for segment in usable:
            for extent in self.of(segment).extents():
                now[segment.pool] += extent.zeroed_bytes
                target_bytes[segment.pool] += extent.target_bytes if extent not in counted else 0
        free = {
            name: sum(size for nodes in pool.segments.values() for size in nodes.values())
            for name, pool in self._inventory.free().items()
        }
        return {
            pool: (now[pool], max(now[pool], min(target_bytes[pool], free.get(pool, 0))))
            for pool in now | target_bytes
        }

    # Starting and stopping domains

    def plan(self, domain: DomainMemory) -> Plan | None:
        """Return the plan of a domain on its pre-zeroed memory; ``None`` where that is too little."""
        own = {segment: self.of(segment).of_domain(domain.uuid) for segment in self._inventory.allocatable()}
        own = {segment: extents for segment, extents in own.items() if extents}
        return plan_on_prezeroed(domain, self._inventory.free(), own, self._config.default_pool) if own else None

    async def take(self, reserved: Sequence[Extent]) -> dict[int, int]:
        """Move pre-zeroed extents to where reserved ones belong, and evict what is in the way of the others.

        :return: The zeroed bytes of each extent whose file exists now, by id.
        :raise ExtentError: When a file cannot be moved.
        """
        zeroed = {}
        for extent in reserved:
            async with self.of(extent.segment) as cache:
                zeroed_bytes = await cache.take(extent)
            if zeroed_bytes is not None:
                zeroed[extent.id] = zeroed_bytes
        for segment in {extent.segment for extent in reserved}:
            await self.evict(segment)
        self.invalidate()
        return zeroed

    async def evict(self, segment: SegmentId) -> None:
        """Free what the cache holds of reserved memory, so that an extent finds all of its pages."""
        async with self.of(segment) as cache:
            await cache.evict(self._inventory.free_in(segment))

    def note_release(self, extent: Extent) -> None:
        """Record that an extent's memory is free again; create an empty pre-zeroed one like it, to populate."""
        if extent.uuid in self._domains:
            self._last_run[extent.uuid] = time.time()
        self.invalidate()
        segments = self.enabled_segments()
        is_whole = extent.state is ExtentState.POPULATED and extent.charged_bytes == extent.size_bytes
        if not is_whole or extent.segment not in segments:
            return
        if self._config.prefault.ready_percent < 100:
            pool = extent.segment.pool
            caches = [self.of(segment) for segment in segments if segment.pool == pool]
            target_bytes = sum(one.target_bytes for cache in caches for one in cache.extents())
            if target_bytes + extent.size_bytes > self._limit_bytes(pool):
                return
        shares, owner = tuple(extent.shares.items()), Owner(extent.uuid, extent.alias)
        cache = self.of(extent.segment)
        if all(one.owner != owner for one in cache.of_domain(extent.uuid)):  # else created while it ran
            cache.create(extent.policy, shares, owner)

    @contextlib.asynccontextmanager
    async def quiesced(self, segment: SegmentId) -> AsyncIterator[None]:
        """Run no background job in a segment while in this context."""
        cache = self.of(segment)
        cache.pause()
        try:
            async with cache:  # its holder may be about to start one
                await cache.stop_job()
            yield
        finally:
            cache.resume()
            self.changed.set()

    # Changes of pools

    async def quiesce(self) -> None:
        """Remove all files of ours from segments that give no more memory, and stop the background jobs there."""
        await self.clear_disabled()
        for segment in self._inventory.usable().keys() - self._inventory.allocatable().keys():
            async with self.of(segment) as cache:  # its holder may be about to start one
                await cache.stop_job()

    async def clear_disabled(self) -> None:
        """Remove the pre-zeroed extents of segments that are not to be pre-zeroed."""
        enabled = self.enabled_segments()
        for segment in self._inventory.usable():
            if segment not in enabled and self.of(segment).extents():
                async with self.of(segment) as cache:
                    await cache.clear()

    async def reload(self) -> None:
        """Read all segments again, whose records were reloaded, and evict what does not fit any more."""
        for cache in list(self._segments.values()):
            async with cache:
                await cache.invalidate()
        self.invalidate()
        for segment in list(self._inventory.allocatable()):
            await self.evict(segment)
