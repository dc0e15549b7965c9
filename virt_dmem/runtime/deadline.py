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
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from virt_dmem.errors import Delayed
from virt_dmem.runtime.stuck_threads import StuckThreads

__all__ = ["DEADLINE_SECONDS", "within"]

T = TypeVar("T")
_Told = Callable[[Any, BaseException | None], None]

DEADLINE_SECONDS = 5.0
"""Less than the hook's own timeout. A call that nobody delays on purpose takes milliseconds."""

_IDLE = 4
"""Threads kept for later calls: as many as two hooks use at a time."""

_overdue = StuckThreads(256, 8)
_idle: list[_Worker] = []
os.register_at_fork(after_in_child=_idle.clear)  # a child has none of its parent's threads


class _Worker:
    """A thread that makes one call after another.

    Starting a thread for each call would cost the event loop the wait until it is scheduled, several times in each
    start of a domain.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[str, Callable[[], Any], _Told]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def make(self, about: str, call: Callable[[], Any], told: _Told) -> None:
        """Make a call in the thread, then call ``told`` there with what it returned or raised."""
        self._calls.put((about, call, told))

    def _work(self) -> None:
        kept = True
        while kept:
            about, call, told = self._calls.get()
            threading.current_thread().name = about
            result, error = None, None
            try:
                result = call()
            except BaseException as raised:  # noqa: BLE001 -- raised again where it is awaited
                error = raised
            if kept := len(_idle) < _IDLE:
                _idle.append(self)  # first: the next call may come as soon as this one is told
            told(result, error)
            del call, told, result, error  # the next call may be long in coming


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

    came_back = threading.Event()

    def told(result: T | None, error: BaseException | None) -> None:
        came_back.set()
        with contextlib.suppress(RuntimeError):  # the loop is closed by now
            loop.call_soon_threadsafe(settle, result, error)

    def give_up() -> None:
        if not outcome.done():
            _overdue.add(about, lambda: not came_back.is_set(), of)
            outcome.set_exception(_delayed(about, f"for {seconds:.0f} s"))

    context = contextvars.copy_context()
    worker = _idle.pop() if _idle else _Worker()
    worker.make(about, lambda: context.run(call), told)
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
