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

    def hurry(self, segment: SegmentId) -> None:
        """Let an idle segment not linger: it was taken for a domain that did not start."""
        self._idle_since[segment] = -math.inf

    def watched(self) -> bool:
        """Return whether there may be segments to give back: there is an elastic pool."""
        return self._inventory.has_elastic()

    async def round(self) -> None:
        """Give back what is due now; a failure becomes an alert, and is tried again."""
        now = time.monotonic()
        if self.watched():
            self._inventory.reload_if_changed()
        pressed = self.watched() and kernel.pressure("memory") >= PRESSURE
        due = [record.segment for record in self._idle() if self._is_due(record, now, pressed=pressed)]
        waiting = {segment for segment, at in self._retry_at.items() if at > now}
        with self._attempts.round("elastic", due=[*map(_item, waiting)]) as attempts:
            for segment in due:
                if segment in waiting:
                    continue
                with attempts.trying(_item(segment)):
                    async with self.changing:
                        if any(record.segment == segment for record in self._idle()):  # still
                            await self._give_back(segment, "the host is short of memory" if pressed else "")

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

    def _is_due(self, record: PoolRecord, now: float, *, pressed: bool) -> bool:
        limits = limits_of(record)
        left_over = record.state != "ready" or record.boot_id != kernel.boot_id()
        lingers = limits.linger_seconds if limits else math.inf
        return pressed or left_over or now >= self._idle_since[record.segment] + lingers

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
        log.info("pool %s gave %s back to the host%s", segment.pool, size, f": {why}" if why else "")


def _item(segment: SegmentId) -> str:
    return f"giving back {segment}"
