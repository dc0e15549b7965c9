# SPDX-License-Identifier: GPL-2.0-or-later
"""Run system calls that other users can delay without limit: each in a thread of its own, with a deadline.

The owner of a file may hold a lease or a delegation on it. A process that may mount FUSE in its user namespace
decides when a path of its mount namespace answers and, once it has mapped such a file, when its
``/proc/PID/cmdline`` and ``maps`` do. Such calls would soon occupy asyncio's whole thread pool. A thread that
misses its deadline is left behind; the same call is not repeated before it returns, and the number of such threads
is limited. ``stuck_threads.each`` is the counterpart for worker threads; it works without asyncio.
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
"""Less than the hook's own timeout. A call that nobody delays on purpose takes milliseconds."""


_overdue = StuckThreads(256, 8)


async def within(call: Callable[[], T], about: str, *, of: str = "", seconds: float = DEADLINE_SECONDS) -> T:
    """Return ``call()`` without blocking the event loop, within ``seconds``.

    A cancellation is delivered when the call has ended or is overdue: a change of files is made or not made.

    :param about: What may be slow, for the message; while a call about it is overdue, others fail at once.
    :param of: The domain (UUID) it belongs to: few calls of one domain may be overdue, to leave room for others.
    :raise Delayed: When it takes longer; the call may still complete later.
    """
    if _overdue.forbids(about, of):
        raise _delayed(about, "yet")

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
        except BaseException as raised:  # noqa: BLE001 -- raised again where it is awaited
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed by now
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
        outcome.exception()  # mark it as retrieved
        raise
    finally:
        timer.cancel()


def _delayed(about: str, how_long: str) -> Delayed:
    return Delayed(
        f"The kernel did not answer about {about} {how_long}.",
        hint="Find who holds a lease on the file, or what the process waits for ('cat /proc/PID/stack').",
    )
