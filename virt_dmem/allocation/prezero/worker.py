# SPDX-License-Identifier: GPL-2.0-or-later
"""Populate, in the background and chunk by chunk, the memory that the next domains will need.

The kernel zeroes it. First come the targets, then extents that were created when a guest ended, then ballast. Work
is done only while the host is idle enough: with few threads at the lowest priority, and not at all under pressure
(Documentation/accounting/psi.rst).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.allocation.prezero.segment_cache import SegmentCache
from virt_dmem.config.schema import Config
from virt_dmem.errors import PrefaultFailed
from virt_dmem.host import kernel
from virt_dmem.pools import ballast, prezeroed_files
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.prezeroed_files import Owner, PrezeroedExtent
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import MIB, format_size

__all__ = ["PrezeroWorker"]

log = logging.getLogger(__name__)

_CHUNK = 256 * MIB
_RETRY_SECONDS = 60.0
"""After populating failed, since memory that a pool should have was missing."""
_HOST_RESERVE = 0.1
"""The part of the host's memory to leave available where pre-zeroed memory is allocated from it."""


class PrezeroWorker:
    """Bring ``PrezeroCache`` to its targets."""

    def __init__(self, config: Config, inventory: Inventory, prezero: PrezeroCache) -> None:
        self._settings = config.prefault
        self._inventory = inventory
        self._prezero = prezero
        self._short: set[tuple[SegmentId, int]] = set()
        self._failed_at: dict[SegmentId, float] = {}

    async def run(self) -> bool:
        """Work until nothing is left to do; return whether some is left because the host is busy."""
        while await self._step():
            pass
        return self._is_busy()

    async def _step(self) -> bool:
        """Populate one chunk; return whether there may be another."""
        await self._prezero.clear_disabled()
        await self._prezero.update_targets()
        if self._note_host(is_busy=self._is_busy()):
            await self._relieve_host()
        elif await self._target_step() or await self._incomplete_step():
            return True
        return await self._ballast_step()

    # Pre-zeroed extents

    async def _target_step(self) -> bool:
        """Populate a chunk of a target; return whether one was."""
        for target in self._prezero.targets():
            segment, extent = target.extent.segment, self._prezero.find(target)
            if (extent is not None and extent.is_complete) or self._has_just_failed(segment):
                continue
            if segment not in self._prezero.enabled_segments():  # any more
                continue
            cache = self._prezero.of(segment)
            if extent is None:
                plan = target.extent
                extent = cache.create(plan.policy, plan.shares, Owner(target.uuid, plan.alias))
            if extent is not None and await self._grow(cache, extent):
                return True
        return False

    async def _incomplete_step(self) -> bool:
        """Populate a chunk of an extent that was created when a guest ended, the likeliest to be needed first.

        One that finds no room is removed if its domain cannot start.
        """
        incomplete = [
            (self._prezero.of(segment), extent)
            for segment in self._prezero.enabled_segments()
            if not self._has_just_failed(segment)
            for extent in self._prezero.of(segment).extents()
            if not extent.is_complete
        ]
        for cache, extent in sorted(incomplete, key=lambda one: -self._likelihood(one[1])):
            if await self._grow(cache, extent):
                return True
            if self._likelihood(extent) < 0 and not cache.is_paused and not extent.zeroed_bytes:
                async with cache:
                    if cache.has(extent):
                        await cache.discard(extent)
        return False

    def _likelihood(self, extent: PrezeroedExtent) -> float:
        return self._prezero.likelihood(extent.owner.uuid)

    def _has_just_failed(self, segment: SegmentId) -> bool:
        return time.monotonic() < self._failed_at.get(segment, -math.inf) + _RETRY_SECONDS

    async def _grow(self, cache: SegmentCache, extent: PrezeroedExtent) -> bool:
        """Populate a chunk of an extent, if need be by evicting less likely ones; return whether to go on."""
        size, _, _ = prezeroed_files.next_chunk(extent, _CHUNK)
        growth = prezeroed_files.held_by_node([replace(extent, zeroed_bytes=extent.zeroed_bytes + size)])
        growth.subtract(prezeroed_files.held_by_node([extent]))
        if backend(cache.record.backend).from_host and not _host_can_spare(size):
            self._prezero.obstacles[cache.segment] = "the host has too little memory to spare for it"
            return False
        async with cache:
            if not cache.has(extent):  # a starting domain was quicker
                return True
            if cache.is_paused:
                return False
            free = Counter(self._inventory.free_in(cache.segment))
            free.subtract(growth)
            if min(free.values(), default=0) < 0:
                return False
            await cache.evict_extents(free, below=self._likelihood(extent))
            if any(held > free[node] for node, held in cache.held().items()):
                return False
            await cache.shrink_ballast(free)
            chunk = self._start_chunk(cache, extent, growth)
        return await self._finish_chunk(cache, extent, chunk)

    def _start_chunk(
        self, cache: SegmentCache, extent: PrezeroedExtent, growth: Counter[int]
    ) -> asyncio.Task[None]:
        threads, helper = self._settings.ready_threads, self._helper
        return cache.start_zeroing(extent, _CHUNK, growth, threads=threads, helper=helper)

    async def _finish_chunk(self, cache: SegmentCache, extent: PrezeroedExtent, chunk: asyncio.Task[None]) -> bool:
        """Wait for a chunk; return whether it did not fail."""
        try:
            await cache.wait_for_chunk(chunk)
        except PrefaultFailed as failure:
            log.warning("pool %s: cannot pre-zero memory: %s", cache.segment, failure)
            self._failed_at[cache.segment] = time.monotonic()
            self._prezero.obstacles[cache.segment] = "the kernel did not provide it; tried again within a minute"
            async with cache:
                await cache.discard(extent)
            return False
        self._prezero.obstacles.pop(cache.segment, None)
        return True

    # Ballast

    async def _ballast_step(self) -> bool:
        """Grow ballast by a chunk; return whether there may be another."""
        for segment in list(self._inventory.allocatable()):
            cache = self._prezero.of(segment)
            for node in ballast.nodes_to_hold(cache.record):
                if await self._grow_ballast(cache, node):
                    return True
        return False

    async def _grow_ballast(self, cache: SegmentCache, node: int) -> bool:
        segment = cache.segment
        async with cache:
            if segment not in self._inventory.allocatable() or cache.is_paused:
                return False
            free = self._inventory.free_in(segment)
            await cache.shrink_ballast(free, [node])
            record = cache.record
            target_bytes = max(0, free.get(node, 0) - cache.held()[node])
            growth = max(0, target_bytes - ballast.held_bytes(record, node))
            if not growth:
                return False
            work = ballast.grow(record, node, target_bytes, threads=self._settings.threads, helper=self._helper)
            chunk = cache.start_job(work, {node: growth})
        try:
            more = await cache.wait_for_chunk(chunk)
        except PrefaultFailed as failure:
            if (segment, node) not in self._short:  # once, not at every try
                log.warning(
                    "pool %s lacks memory of node %d, which was allocated by others: %s", segment, node, failure
                )
            self._short.add((segment, node))
            return False
        self._short.discard((segment, node))
        return more is not False

    @property
    def _helper(self) -> Path | None:
        return Path(self._settings.helper) if self._settings.helper else None

    # The host

    def _is_busy(self) -> bool:
        """Tell whether tasks of the host are stalled, so that background work has to wait."""
        limit = self._settings.ready_pressure
        return any(kernel.pressure(of) > limit for of in ("cpu", "memory"))

    def _note_host(self, *, is_busy: bool) -> bool:
        """Record, and log where it changes, whether the host is too busy; return it."""
        if is_busy != self._prezero.is_host_busy and self._prezero.targets():
            log.info(
                "pre-zeroing %s: pressure on CPUs or memory is %s %g %%",
                "pauses" if is_busy else "resumes",
                "above" if is_busy else "below",
                self._settings.ready_pressure,
            )
        self._prezero.is_host_busy = is_busy
        return is_busy

    async def _relieve_host(self) -> None:
        """Free the extent that is the least likely to be needed, where the host lacks memory."""
        if kernel.pressure("memory") <= self._settings.ready_pressure:
            return
        extents = [
            (cache, extent)
            for cache in map(self._prezero.of, self._prezero.enabled_segments())
            if backend(cache.record.backend).from_host
            for extent in cache.extents()
        ]
        for cache, extent in sorted(extents, key=lambda one: self._likelihood(one[1]))[:1]:
            log.info(
                "pool %s: freeing %s of pre-zeroed memory, which the host lacks",
                cache.segment,
                format_size(extent.zeroed_bytes),
            )
            async with cache:
                await cache.stop_job()
                await cache.discard(extent)


def _host_can_spare(size_bytes: int) -> bool:
    memory = kernel.memory()
    return memory.available_bytes - size_bytes > memory.total_bytes * _HOST_RESERVE
