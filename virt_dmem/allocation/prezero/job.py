# SPDX-License-Identifier: GPL-2.0-or-later
"""Background work in chunks: one at a time, and stopped at once where it is in somebody's way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from virt_dmem.aio import cancel_and_wait

__all__ = ["BackgroundJobs"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Chunk:
    """One that is being worked on: in which segment, at what, and how much more that will hold, by node."""

    task: asyncio.Task[Any]
    segment: str
    what: object
    growth: Mapping[int, int]


class BackgroundJobs:
    """What is being worked on now."""

    def __init__(self) -> None:
        self._now: _Chunk | None = None
        self._paused: Counter[str] = Counter()
        self.begun = 0
        """How many there have been."""

    def begin(
        self, work: Coroutine[Any, Any, T], *, segment: str, what: object = None, growth: Mapping[int, int]
    ) -> asyncio.Task[T]:
        """Begin a chunk of work, for who has the lock of the segment: nobody there has just stopped another."""
        self.begun += 1
        task = asyncio.create_task(work)
        self._now = _Chunk(task, segment, what, growth)
        return task

    async def outcome(self, task: asyncio.Task[T]) -> T | None:
        """Wait for what was begun; return what it does, or ``None`` where it was stopped."""
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            await cancel_and_wait([task])
            raise
        finally:
            self._now = None
        return None if task.cancelled() else task.result()

    def growth(self, segment: str) -> Counter[int]:
        """Return how much more of a segment will be held when what goes on is done, in bytes by node."""
        return Counter(self._now.growth if self._now and self._now.segment == segment else {})

    def pause(self, segment: str) -> None:
        """Ask that nothing is begun in a segment, until as many calls of ``resume``."""
        self._paused[segment] += 1

    def resume(self, segment: str) -> None:
        """Take back one ``pause``."""
        self._paused[segment] -= 1

    def is_paused(self, segment: str) -> bool:
        """Tell whether nothing is to be begun in a segment just now."""
        return self._paused[segment] > 0

    def works_in(self, segment: str) -> bool:
        """Tell whether something goes on in a segment."""
        return self._now is not None and self._now.segment == segment

    async def stop(self, segment: str, what: object = None) -> None:
        """Stop what goes on in a segment, or only what goes on at ``what`` there; returns when it has ended."""
        now = self._now
        if now and now.segment == segment and what in (None, now.what):
            await cancel_and_wait([now.task])
