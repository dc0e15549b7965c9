# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of tasks. Who begins one ends it: those of a library may never end once they are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

__all__ = ["cancelled", "finished"]

T = TypeVar("T")


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
