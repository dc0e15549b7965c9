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
import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from virt_dmem.errors import Delayed

__all__ = ["PATIENCE_SECONDS", "each", "within"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

PATIENCE_SECONDS = 5.0
"""Less than the hook waits for a word. What is not delayed on purpose takes milliseconds."""
_EACH_SECONDS = 0.5


class _Overdue:
    """The threads that were left behind, by what they wait for; never more than so many, in all and of one."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._lock = threading.Lock()
        self._threads: dict[Hashable, tuple[threading.Thread, str]] = {}

    def add(self, about: Hashable, thread: threading.Thread, of: str = "") -> None:
        """Take note of one."""
        with self._lock:
            self._threads[about] = thread, of

    def forbids(self, about: Hashable, of: str = "") -> bool:
        """Tell whether one waits for this already, or there are too many."""
        with self._lock:
            self._threads = {key: one for key, one in self._threads.items() if one[0].is_alive()}
            of_one = sum(owner == of for _, owner in self._threads.values()) if of else 0
            return about in self._threads or len(self._threads) >= self._most or of_one >= self._most_of_one


_overdue = _Overdue(256, 8)
_overdue_items = _Overdue(64, 64)
"""Of ``each``: many processes may be hostile, and no domain is to fail for that."""


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


def each(call: Callable[[K], T], items: Iterable[K], *, seconds: float = _EACH_SECONDS) -> Iterator[tuple[K, T]]:
    """Yield each item with what the call says of it; those that take longer are left out. For worker threads.

    :raise Exception: What the call raised.
    """
    worker: _Worker[K, T] | None = None
    try:
        for item in items:
            about = (getattr(call, "__qualname__", ""), item)
            if _overdue_items.forbids(about):
                continue
            worker = worker or _Worker(call)
            try:
                yield item, worker.ask(item, seconds)
            except queue.Empty:
                _overdue_items.add(about, worker.thread)
                worker = None
    finally:
        if worker:
            worker.end()


class _Worker(Generic[K, T]):
    """A thread that is given one item after another."""

    def __init__(self, call: Callable[[K], T]) -> None:
        self._call = call
        self._questions: queue.SimpleQueue[tuple[K] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def ask(self, item: K, seconds: float) -> T:
        """Return the answer for one item.

        :raise queue.Empty: When there is none in time; nothing more may be asked then.
        """
        self._questions.put((item,))
        try:
            answer, error = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.end()
            raise
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]  # where there is no error

    def end(self) -> None:
        """Let the thread end when it has answered."""
        self._questions.put(None)

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            try:
                self._answers.put((self._call(*question), None))
            except Exception as error:  # noqa: BLE001 -- it is raised where somebody waits for it
                self._answers.put((None, error))
