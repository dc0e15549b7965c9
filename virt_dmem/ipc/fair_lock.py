# SPDX-License-Identifier: GPL-2.0-or-later
"""Provide a lock that is granted to the waiting parties in rotation."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

__all__ = ["FairLock"]


class FairLock:
    """Grant a party (such as a user) with many waiters the lock no more often than one with a single waiter."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """By party; the next one comes first."""

    @asynccontextmanager
    async def of(self, party: Hashable) -> AsyncIterator[None]:
        """Hold the lock in this context, for this party."""
        if self._taken:
            mine = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(party, deque()).append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():  # it was granted in the same moment
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
                self._waiting[party] = queue  # after the others
            if not chosen.done():
                chosen.set_result(None)
                return
        self._taken = False
