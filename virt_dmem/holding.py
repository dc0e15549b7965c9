# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep the ballast of all pools at what is free: less before a domain takes memory, more after one gave it back."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from pathlib import Path

from virt_dmem import ballast
from virt_dmem.config import Config
from virt_dmem.errors import PrefaultFailed
from virt_dmem.inventory import Inventory
from virt_dmem.ledger import Ledger

__all__ = ["Holding"]

log = logging.getLogger(__name__)


class Holding:
    """What of each node is neither reserved nor held yet, and who changes that."""

    def __init__(self, config: Config, ledger: Ledger, inventory: Inventory) -> None:
        self._settings = config.prefault
        self._ledger = ledger
        self._inventory = inventory
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._short: set[tuple[str, int]] = set()

    async def make_room(self, segment: str) -> None:
        """Let go of what is reserved by now, so that the extents of its domain find their pages."""
        async with self._locks[segment]:
            for node, keep in self._free(segment).items():
                await asyncio.to_thread(ballast.let_go, self._inventory.record(segment), node, keep)

    async def at_rest(self) -> None:
        """Wait until nothing of a segment that gives no more memory is touched."""
        for lock in list(self._locks.values()):
            async with lock:
                pass

    async def hold_free(self) -> None:
        """Hold all that is free, chunk by chunk; a domain that starts meanwhile waits for one chunk at most."""
        for segment in list(self._inventory.giving()):
            for node in self._free(segment):
                while await self._hold_chunk(segment, node):
                    pass

    async def _hold_chunk(self, segment: str, node: int) -> bool:
        """Hold more of a node; return whether there is more to hold."""
        async with self._locks[segment]:
            if segment not in self._inventory.giving():
                return False
            record = self._inventory.record(segment)
            helper = Path(self._settings.helper) if self._settings.helper else None
            free = self._free(segment).get(node, 0)
            ballast.let_go(record, node, free)
            try:
                more = await ballast.hold_more(record, node, free, threads=self._settings.threads, helper=helper)
            except PrefaultFailed as failure:
                if (segment, node) not in self._short:  # once, not at every try
                    log.warning(
                        "pool %s lacks memory of node %d that another has taken: %s", segment, node, failure
                    )
                self._short.add((segment, node))
                return False
            self._short.discard((segment, node))
            return more

    def _free(self, segment: str) -> dict[int, int]:
        """Return what the ballast of a segment is to hold by node."""
        record = self._inventory.record(segment)
        reserved = self._ledger.reserved()
        capacity = self._inventory.capacity()
        return {
            node: max(0, capacity.get((segment, node), 0) - reserved.get((segment, node), 0))
            for node in ballast.nodes_to_hold(record)
        }
