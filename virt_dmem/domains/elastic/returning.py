# SPDX-License-Identifier: GPL-2.0-or-later
"""Give back segments of elastic pools that no domain holds memory of: after a while, or as soon as it is needed.

virt-dmem-pages does it (``pools.elastic.client``). Segments go as a whole, those that were idle longest first.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.config.schema import Config
from virt_dmem.errors import DmemError
from virt_dmem.host import kernel
from virt_dmem.host.pressure import MemoryPressure
from virt_dmem.pools.elastic import client
from virt_dmem.pools.elastic.room import limits_of
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.runtime.attempts import Attempts
from virt_dmem.units import format_size

__all__ = ["Returning"]

log = logging.getLogger(__name__)

PRESSURE = 10.0
"""Percent of time that some task waits for memory (10-second average) from which nothing lingers."""
GLANCE_SECONDS = 0.2
"""How often what the host has available is looked at while memory lingers."""
RETRY_SECONDS = 30.0
"""After a segment could not be given back: a process uses it after all, or virt-dmem-pages does not answer."""


class Returning:
    """Know which segments are idle, and give them back.

    :ivar changing: Held while segments come or go: one change at a time, as all share what the host has.
    """

    def __init__(
        self, config: Config, ledger: Ledger, inventory: Inventory, prezero: PrezeroCache, attempts: Attempts
    ) -> None:
        self.changing = asyncio.Lock()
        self._socket = config.pages_socket_path
        self._ledger = ledger
        self._inventory = inventory
        self._prezero = prezero
        self._attempts = attempts
        self._idle_since: dict[SegmentId, float] = {}
        """By the monotonic clock; ``-inf``: it was taken for a domain that did not start."""
        self._retry_at: dict[SegmentId, float] = {}
        self._pressure: MemoryPressure | None = None
        self._pressed = False
        """Tasks waited for memory since the last round."""

    def hurry(self, segment: SegmentId) -> None:
        """Let an idle segment not linger: it was taken for a domain that did not start."""
        self._idle_since[segment] = -math.inf

    def watched(self) -> bool:
        """Return whether there may be segments to give back: there is an elastic pool."""
        return self._inventory.has_elastic()

    async def wait(self, seconds: float) -> None:
        """Wait for ``seconds``, or until the host needs memory that lingers, which the next round then sees."""
        if not self._lingering():
            self.close()
            await asyncio.sleep(seconds)
            return
        self._pressure = self._pressure or MemoryPressure()
        for _ in range(math.ceil(seconds / GLANCE_SECONDS)):
            if await self._pressure.wait(min(seconds, GLANCE_SECONDS)):
                self._pressed = True
            if self._pressed or any(map(_host_needs, self._lingering())):
                return

    def _lingering(self) -> list[PoolRecord]:
        """Return the idle segments that can be tried to be given back now."""
        now = time.monotonic()
        return [record for record in self._idle() if self._retry_at.get(record.segment, now) <= now]

    def close(self) -> None:
        """Give up watching the host."""
        if self._pressure:
            self._pressure.close()
            self._pressure = None

    async def round(self) -> None:
        """Give back what is due now; a failure becomes an alert, and is tried again."""
        now = time.monotonic()
        if self.watched():
            self._inventory.reload_if_changed()
        pressed = self._pressed or (self.watched() and kernel.pressure("memory") >= PRESSURE)
        self._pressed = False
        idle = [record.segment for record in self._idle()]
        waiting = {segment for segment, at in self._retry_at.items() if at > now}
        with self._attempts.round("elastic", due=[*map(_item, waiting)]) as attempts:
            for segment in idle:
                if segment in waiting or not self._why_due(segment, now, pressed=pressed):
                    continue
                with attempts.trying(_item(segment)):
                    async with self.changing:
                        if why := self._why_due(segment, now, pressed=pressed):  # still
                            await self._give_back(segment, why)

    def _idle(self) -> list[PoolRecord]:
        """Return the segments of which no domain holds memory, those that are idle longest first."""
        if not self.watched():
            self._idle_since, self._retry_at = {}, {}
            return []
        held = {segment for (segment, _), size in self._ledger.reserved().items() if size}
        idle = [record for record in self._inventory.on_demand() if record.segment not in held]
        now = time.monotonic()
        known = {record.segment for record in idle}
        self._idle_since = {segment: at for segment, at in self._idle_since.items() if segment in known}
        self._retry_at = {segment: at for segment, at in self._retry_at.items() if segment in known}
        for record in idle:
            self._idle_since.setdefault(record.segment, now)
        return sorted(idle, key=lambda record: (self._idle_since[record.segment], record.name))

    def _why_due(self, segment: SegmentId, now: float, *, pressed: bool) -> str:
        """Return why an idle segment is to go back now; empty: it lingers, or is not idle any more."""
        record = next((record for record in self._idle() if record.segment == segment), None)
        if record is None:
            return ""
        if pressed:
            return "tasks of the host wait for memory"
        if record.state != "ready" or record.boot_id != kernel.boot_id():
            return "it was left over"
        limits = limits_of(record)
        if limits and now >= self._idle_since[segment] + limits.linger_seconds:
            return "no domain needed it"
        return "the host has less available than it keeps" if _host_needs(record) else ""

    async def make_room(self, size_bytes: int) -> bool:
        """Give back idle segments, at least ``size_bytes`` if there are as many; ``changing`` is held.

        :return: Whether any was given back.
        """
        given = 0
        for record in self._idle():
            if given >= size_bytes:
                break
            try:
                await self._give_back(record.segment, "a domain needs other memory")
            except DmemError as error:
                log.warning("%s", error)
            else:
                given += record.got_bytes
        return given > 0

    async def _give_back(self, segment: SegmentId, why: str) -> None:
        """Give a segment back, while nothing of it can be reserved."""
        record = self._inventory.record(segment)
        holder = object()
        try:
            self._inventory.retire(f"{segment.pool}+{segment.number}", holder)
            await self._prezero.quiesce()
            await client.give_back(self._socket, segment)
        except BaseException:
            self._retry_at[segment] = time.monotonic() + RETRY_SECONDS
            raise
        finally:
            self._inventory.drop_claims(holder)
            self._inventory.read_records()
            await self._prezero.reload()
        size = format_size(record.got_bytes)
        log.info("pool %s gave %s back to the host: %s", segment.pool, size, why)


def _host_needs(record: PoolRecord) -> bool:
    """Return whether the host has less memory available than the pool of a segment is to leave it."""
    limits = limits_of(record)
    return limits is not None and kernel.memory().available_bytes < limits.keep_free_bytes


def _item(segment: SegmentId) -> str:
    return f"giving back {segment}"
