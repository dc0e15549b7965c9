# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that others can delay, for ever if they like: each in a thread that it has alone, and with a deadline.

Who owns a file may hold a lease or a delegation on it; who may mount FUSE in a user namespace of its own decides
when a path of its mount namespace answers, and, having mapped a file of it, when ``/proc/PID/cmdline`` and ``maps``
do. The pool of threads that asyncio has would soon consist of those that wait for such a one. A thread that is
overdue is left behind; what it waits for is not asked again before it came back, and there are never many of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from virt_dmem.errors import Delayed
from virt_dmem.overdue import Overdue

__all__ = ["PATIENCE_SECONDS", "within"]

T = TypeVar("T")
_Told = Callable[[Any, BaseException | None], None]

PATIENCE_SECONDS = 5.0
"""Less than the hook waits for a word. What is not delayed on purpose takes milliseconds."""

_IDLE = 4
"""So many threads are kept for the calls to come: as many as a hook or two make at a time."""

_overdue = Overdue(256, 8)
_idle: list[_Worker] = []


class _Worker:
    """A thread that makes one call after another.

    A new one for each would cost the event loop the wait until it runs, which on a busy host is a turn of the
    scheduler, several times in each start.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[str, Callable[[], Any], _Told]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def make(self, about: str, call: Callable[[], Any], told: _Told) -> None:
        """Have a call made, and ``told`` called with what it returned or raised; in that thread, both."""
        self._calls.put((about, call, told))

    def _work(self) -> None:
        kept = True
        while kept:
            about, call, told = self._calls.get()
            threading.current_thread().name = about
            result, error = None, None
            try:
                result = call()
            except BaseException as raised:  # noqa: BLE001 -- it is raised where somebody waits for it
                error = raised
            if kept := len(_idle) < _IDLE:
                _idle.append(self)  # first: who is told may have the next call at once
            told(result, error)
            del call, told, result, error  # it may be long until the next one


async def within(call: Callable[[], T], about: str, *, of: str = "", seconds: float = PATIENCE_SECONDS) -> T:
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

    came_back = threading.Event()

    def told(result: T | None, error: BaseException | None) -> None:
        came_back.set()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
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
        outcome.exception()  # nobody else looks at it
        raise
    finally:
        timer.cancel()


def _delayed(about: str, how_long: str) -> Delayed:
    return Delayed(
        f"The kernel has given no answer about {about} {how_long}.",
        hint="Look who holds a lease on the file, or what the process waits for ('cat /proc/PID/stack').",
    )
