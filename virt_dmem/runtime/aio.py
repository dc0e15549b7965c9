# SPDX-License-Identifier: GPL-2.0-or-later
"""Run work off the event loop, and end tasks.

Whoever creates a task ends it: those of a library may never end once they are cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["off_loop", "in_loop", "uninterrupted", "cancel_and_wait"]

log = logging.getLogger(__name__)
T = TypeVar("T")
Document = TypeVar("Document", bound=Sized)
SMALL_BYTES = 64 * 1024
"""A document up to this size is parsed in a few milliseconds in any case; common guests have a tenth of it."""
_parsers = ThreadPoolExecutor(2, "documents")
"""Separate from the threads that call libvirt: all of those may wait for a hook whose document must be parsed."""


async def off_loop(work: Callable[[Document], T], document: Document) -> T:
    """Return ``work(document)``, computed in a worker thread where the document is large, else at once."""
    if len(document) <= SMALL_BYTES:
        return work(document)
    return await asyncio.get_running_loop().run_in_executor(_parsers, work, document)


def in_loop(work: Callable[[], T]) -> Callable[[], T]:
    """Return ``work`` for worker threads: the event loop that runs now calls it, and they wait for that."""
    loop = asyncio.get_running_loop()

    async def called() -> T:
        return work()

    return lambda: asyncio.run_coroutine_threadsafe(called(), loop).result()


async def uninterrupted(work: Coroutine[Any, Any, T], most_seconds: float | None = None) -> T:
    """Run work to its end, and deliver a cancellation only then: files and their bookkeeping change together.

    After a cancellation, an error of the work is logged; and it is cancelled too after ``most_seconds`` more.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(_log_error)
        await asyncio.wait([task], timeout=most_seconds)
        task.cancel()
        raise
    return await task


def _log_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.warning("what was cancelled meanwhile failed, too: %s", str(error) or type(error).__name__)


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until all have ended, with whatever outcome."""
    tasks = [*tasks]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
