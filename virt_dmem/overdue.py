# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads that wait for what others can delay, and are left behind when it takes too long.

``each`` is for who asks many processes the same; for one call from the event loop there is ``patience.within``.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["Overdue", "each"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_EACH_SECONDS = 0.5


class Overdue:
    """The threads that were left behind, by what they wait for; never more than so many, in all and of one."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._lock = threading.Lock()
        self._waits: dict[Hashable, tuple[Callable[[], bool], str]] = {}

    def add(self, about: Hashable, waits: Callable[[], bool], of: str = "") -> None:
        """Take note of one, for as long as ``waits`` says that it still does."""
        with self._lock:
            self._waits[about] = waits, of

    def forbids(self, about: Hashable, of: str = "") -> bool:
        """Tell whether one waits for this already, or there are too many."""
        with self._lock:
            self._waits = {key: one for key, one in self._waits.items() if one[0]()}
            of_one = sum(owner == of for _, owner in self._waits.values()) if of else 0
            return about in self._waits or len(self._waits) >= self._most or of_one >= self._most_of_one


_overdue_items = Overdue(64, 64)
"""Many processes may be hostile, and no domain is to fail for that."""


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
                _overdue_items.add(about, worker.thread.is_alive)
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
