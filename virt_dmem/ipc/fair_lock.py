# SPDX-License-Identifier: GPL-2.0-or-later
"""A lock that is passed on to each waiting party in rotation."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

__all__ = ["FairLock"]


class FairLock:
    """A lock that a party (a user, say) with many who wait does not get more often than one with a single one."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """By party; whose turn is next comes first."""

    @asynccontextmanager
    async def of(self, party: Hashable) -> AsyncIterator[None]:
        """Have a turn."""
        if self._taken:
            mine = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(party, deque()).append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():  # it was its turn in the same moment
                    self._pass_on()
                raise
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            party = next(iter(self._waiting))
            queue = self._waiting.pop(party)
            chosen = queue.popleft()
            if queue:
                self._waiting[party] = queue  # behind the others
            if not chosen.done():
                chosen.set_result(None)
                return
        self._taken = False
