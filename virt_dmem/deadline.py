# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that others can delay, for ever if they like: each in a thread of its own, and with a deadline.

Who owns a file may hold a lease or a delegation on it; who may mount FUSE in a user namespace of its own decides
when a path of its mount namespace answers, and, having mapped a file of it, when ``/proc/PID/cmdline`` and ``maps``
do. The pool of threads that asyncio has would soon consist of those that wait for such a one. A thread that is
overdue is left behind; what it waits for is not asked again before it came back, and there are never many of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

from virt_dmem.errors import Delayed
from virt_dmem.stuck_threads import StuckThreads

__all__ = ["DEADLINE_SECONDS", "within"]

T = TypeVar("T")

DEADLINE_SECONDS = 5.0
"""Less than the hook waits for a word. What is not delayed on purpose takes milliseconds."""


_overdue = StuckThreads(256, 8)


async def within(call: Callable[[], T], about: str, *, of: str = "", seconds: float = DEADLINE_SECONDS) -> T:
    """Call something from the event loop, which goes on turning, and wait so long for its end.

    Who is cancelled meanwhile is so when the call has ended, or is overdue: a change of files is made or not made.

    :param about: What may be slow, for the message; while a call about it is overdue, others fail at once.
    :param of: The domain (UUID) that has many such things: few of them may be overdue, so that others' may be.
    :raise Delayed: When it takes longer; it may come to its end later all the same.
    """
    if _overdue.forbids(about, of):
        raise _delayed(about, "still")

    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # where there is no error

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001 -- it is raised where somebody waits for it
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    def give_up() -> None:
        if not outcome.done():
            _overdue.add(about, thread, of)
            outcome.set_exception(_delayed(about, f"for {seconds:.0f} s"))

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name=about, daemon=True)
    thread.start()
    timer = loop.call_later(seconds, give_up)
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        await asyncio.wait([outcome])
        outcome.exception()  # nobody else looks at it
        raise
    finally:
        timer.cancel()


def _delayed(about: str, how_long: str) -> Delayed:
    return Delayed(
        f"The kernel has given no answer about {about} {how_long}.",
        hint="Look who holds a lease on the file, or what the process waits for ('cat /proc/PID/stack').",
    )
