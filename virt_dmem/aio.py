# SPDX-License-Identifier: GPL-2.0-or-later
"""Work beside the event loop, and the end of tasks.

Who begins one ends it: those of a library may never end once they are cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["aside", "cancelled", "finished"]

T = TypeVar("T")
Document = TypeVar("Document", bound=Sized)
SMALL_BYTES = 64 * 1024
"""A document up to here is read in a few milliseconds, whatever is in it; those of common guests have a tenth."""
_readers = ThreadPoolExecutor(2, "documents")
"""Apart from the threads that wait for libvirt: all of those may wait for a hook that needs a document read."""


async def aside(work: Callable[[Document], T], document: Document) -> T:
    """Return what ``work`` makes of a document: at once, or of a large one in a thread of its own."""
    if len(document) <= SMALL_BYTES:
        return work(document)
    return await asyncio.get_running_loop().run_in_executor(_readers, work, document)


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Do work to its end, and be cancelled only then: files and what is known of them go together."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended, however that is."""
    tasks = [*tasks]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
