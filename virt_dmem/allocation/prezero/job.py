# SPDX-License-Identifier: GPL-2.0-or-later
"""Run background work in a segment, a chunk at a time, and stop it at once when a domain needs the segment."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from virt_dmem.runtime.aio import cancel_and_wait

__all__ = ["BackgroundJob"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Chunk:
    """Hold the task of a chunk, what it works on, and how much more will be held after it, in bytes by node."""

    task: asyncio.Task[Any]
    subject: object
    growth: Mapping[int, int]


class BackgroundJob:
    """Run at most one chunk of background work in one segment."""

    def __init__(self) -> None:
        self._chunk: _Chunk | None = None
        self._pauses = 0
        self.started = 0
        """Number of chunks that were started."""

    def start(
        self, work: Coroutine[Any, Any, T], *, subject: object = None, growth: Mapping[int, int]
    ) -> asyncio.Task[T]:
        """Start a chunk of work; requires the lock of the segment, so that none is being stopped."""
        self.started += 1
        task = asyncio.create_task(work)
        self._chunk = _Chunk(task, subject, growth)
        return task

    async def wait(self, task: asyncio.Task[T]) -> T | None:
        """Wait for a started chunk; return its result, or ``None`` if it was stopped."""
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            await cancel_and_wait([task])
            raise
        finally:
            self._chunk = None
        return None if task.cancelled() else task.result()

    async def stop(self, subject: object = None) -> None:
        """Stop the chunk under way, or only one that works on ``subject``; return when it has ended."""
        chunk = self._chunk
        if chunk and subject in (None, chunk.subject):
            await cancel_and_wait([chunk.task])

    def growth(self) -> Counter[int]:
        """Return how much more will be held when the chunk under way is done, in bytes by node."""
        return Counter(self._chunk.growth if self._chunk else {})

    @property
    def is_running(self) -> bool:
        """Tell whether a chunk is under way."""
        return self._chunk is not None

    # Pause

    def pause(self) -> None:
        """Ask that no chunk is started until ``resume`` was called as often as this."""
        self._pauses += 1

    def resume(self) -> None:
        """Undo one ``pause``."""
        self._pauses -= 1

    @property
    def is_paused(self) -> bool:
        """Tell whether no chunk is to be started now."""
        return self._pauses > 0
