# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring in, in the background and chunk by chunk, the memory that the next domains will ask for.

The kernel zeroes it. First comes what is targets, then what was begun when a guest ended, then the rest is held
where its node needs it. Only while nobody on the host waits for it: a share of the CPUs, at the lowest priority,
and none of them under pressure (Documentation/accounting/psi.rst).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.config.schema import Config
from virt_dmem.errors import PrefaultFailed
from virt_dmem.host import kernel
from virt_dmem.pools import ballast, prezeroed_files
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.prezeroed_files import Owner, PrezeroedExtent
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import MIB, format_size

__all__ = ["PrezeroWorker"]

log = logging.getLogger(__name__)

_CHUNK = 256 * MIB
_AGAIN_SECONDS = 60.0
"""After memory that a pool should have was not there."""
_HOST_KEEPS = 0.1
"""Of the host's memory, how much stays available where ready memory would be taken from it."""


class PrezeroWorker:
    """Works off what ``holding`` wishes."""

    def __init__(self, config: Config, inventory: Inventory, holding: PrezeroCache) -> None:
        self._settings = config.prefault
        self._inventory = inventory
        self._holding = holding
        self._short: set[tuple[str, int]] = set()
        self._failed_at: dict[str, float] = {}

    async def run_dry(self) -> bool:
        """Do all there is to do now; return whether there is more, and the host too busy for it."""
        while await self._step():
            pass
        return self._is_busy()

    async def _step(self) -> bool:
        """Do one chunk; return whether there may be another."""
        await self._holding.clear_idle()
        await self._holding.update_targets()
        if self._is_busy():
            await self._relieve()
        elif await self._wish_step() or await self._unfinished_step():
            return True
        return await self._ballast_step()

    async def _unfinished_step(self) -> bool:
        """Bring in a chunk more of what was begun when a guest ended, the likeliest to be needed first.

        What finds no room and was begun for a domain that may never start again is forgotten.
        """
        holding, stock = self._holding, self._holding.stock
        found = [
            (segment, extent)
            for segment in holding.segments()
            if not self._has_just_failed(segment)
            for extent in stock.of(segment)
            if not extent.is_done
        ]
        for segment, extent in sorted(found, key=lambda item: -stock.likelihood(item[1].owner.uuid)):
            if await self._grow(segment, extent):
                return True
            is_unlikely = stock.likelihood(extent.owner.uuid) < 0 and not holding.chunks.is_paused(segment)
            if is_unlikely and not extent.clean_bytes:
                async with holding.locks[segment]:
                    if stock.has(segment, extent):
                        await holding.cut(segment, [(extent, 0)])
        return False

    async def _wish_step(self) -> bool:
        """Bring in a chunk of what is targets."""
        for wish in self._holding.targets():
            segment, made = wish.extent.pool, self._holding.made_for(wish)
            if (made is not None and made.is_done) or self._has_just_failed(segment):
                continue
            if segment not in self._holding.segments():  # any more
                continue
            if made is None:
                plan, record = wish.extent, self._inventory.record(segment)
                made = prezeroed_files.begin(record, plan.policy, plan.shares, Owner(wish.uuid, plan.alias))
                if made is None:
                    continue
                self._holding.stock.add(segment, made)
            if await self._grow(segment, made):
                return True
        return False

    def _has_just_failed(self, segment: str) -> bool:
        return time.monotonic() < self._failed_at.get(segment, -math.inf) + _AGAIN_SECONDS

    async def _grow(self, segment: str, extent: PrezeroedExtent) -> bool:
        """Let a new extent have a chunk more, if need be at the cost of less likely ones; return whether it may."""
        size, _, _ = prezeroed_files.next_chunk(extent, _CHUNK)
        grown = replace(extent, clean_bytes=extent.clean_bytes + size)
        growth = prezeroed_files.by_node([grown])
        growth.subtract(prezeroed_files.by_node([extent]))
        holding, stock = self._holding, self._holding.stock
        if backend(self._inventory.record(segment).backend).from_host and not _host_can_spare(size):
            return False
        async with holding.locks[segment]:
            if not stock.has(segment, extent):  # a domain that starts was quicker
                return True
            if holding.chunks.is_paused(segment):
                return False
            free = Counter(self._inventory.free_in(segment))
            free.subtract(growth)
            if min(free.values(), default=0) < 0:
                return False
            await holding.cut(segment, stock.cuts(segment, free, below=stock.likelihood(extent.owner.uuid)))
            if any(size > free[node] for node, size in stock.held(segment).items()):
                return False
            await holding.let_ballast_go(segment, free)
            chunk = self._clean_more(segment, extent, growth)
        return await self._outcome(segment, extent, chunk)

    def _clean_more(self, segment: str, extent: PrezeroedExtent, growth: Mapping[int, int]) -> asyncio.Task[None]:
        """Begin to make a chunk more of an extent clean; for who has the lock of the segment."""
        holding = self._holding

        async def work() -> None:
            threads, helper = self._settings.ready_threads, self._helper
            after = await prezeroed_files.clean_more(extent, _CHUNK, threads=threads, helper=helper)
            holding.stock.replace(segment, extent, after)

        return holding.chunks.begin(work(), segment=segment, what=extent, growth=growth)

    async def _outcome(self, segment: str, extent: PrezeroedExtent, chunk: asyncio.Task[None]) -> bool:
        """Wait for a chunk; return whether it went well, as far as it went."""
        holding = self._holding
        try:
            await holding.chunks.outcome(chunk)
        except PrefaultFailed as failure:
            log.warning("pool %s: memory cannot be made ready: %s", segment, failure)
            self._failed_at[segment] = time.monotonic()
            async with holding.locks[segment]:
                await holding.cut(segment, [(extent, 0)])
            return False
        return True

    async def _ballast_step(self) -> bool:
        """Hold a chunk more of a node; return whether there is more to hold."""
        for segment in list(self._inventory.allocatable()):
            record = self._inventory.record(segment)
            for node in ballast.nodes_to_hold(record):
                if await self._hold_more(record, node):
                    return True
        return False

    async def _hold_more(self, record: PoolRecord, node: int) -> bool:
        holding = self._holding
        async with holding.locks[record.name]:
            if record.name not in self._inventory.allocatable() or holding.chunks.is_paused(record.name):
                return False
            free = self._inventory.free_in(record.name).get(node, 0)
            free = max(0, free - holding.stock.held(record.name)[node])
            await asyncio.to_thread(ballast.let_go, record, node, free)
            growth = max(0, free - ballast.held_bytes(record, node))
            if not growth:
                return False
            work = ballast.hold_more(record, node, free, threads=self._settings.threads, helper=self._helper)
            chunk = holding.chunks.begin(work, segment=record.name, growth={node: growth})
        try:
            more = await holding.chunks.outcome(chunk)
        except PrefaultFailed as failure:
            if (record.name, node) not in self._short:  # once, not at every try
                log.warning(
                    "pool %s lacks memory of node %d that another has taken: %s", record.name, node, failure
                )
            self._short.add((record.name, node))
            return False
        self._short.discard((record.name, node))
        return more is not False

    @property
    def _helper(self) -> Path | None:
        return Path(self._settings.helper) if self._settings.helper else None

    # The host

    def _is_busy(self) -> bool:
        """Tell whether tasks of the host wait, so that work ahead has to."""
        limit = self._settings.ready_pressure
        return any(kernel.pressure(of) > limit for of in ("cpu", "memory"))

    async def _relieve(self) -> None:
        """Give back an extent, the least likely to be needed, of memory that the host lacks."""
        if kernel.pressure("memory") <= self._settings.ready_pressure:
            return
        holding, stock = self._holding, self._holding.stock
        found = [
            (stock.likelihood(extent.owner.uuid), segment, extent)
            for segment in holding.segments()
            if backend(self._inventory.record(segment).backend).from_host
            for extent in stock.of(segment)
        ]
        for _, segment, extent in sorted(found, key=lambda item: item[0])[:1]:
            log.info("pool %s: the host lacks memory; %s of ready memory given back", segment,
                     format_size(extent.clean_bytes))  # fmt: skip
            async with holding.locks[segment]:
                await holding.chunks.stop(segment)
                await holding.cut(segment, [(extent, 0)])


def _host_can_spare(size_bytes: int) -> bool:
    memory = kernel.memory()
    return memory.available_bytes - size_bytes > memory.total_bytes * _HOST_KEEPS
