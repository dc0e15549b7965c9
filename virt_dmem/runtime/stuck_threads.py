# SPDX-License-Identifier: GPL-2.0-or-later
"""Limit the threads that are left behind in system calls which other users can delay.

``each`` asks many processes the same from a worker thread; ``deadline.within`` runs one call from the event loop.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["StuckThreads", "each"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_EACH_SECONDS = 0.5


class StuckThreads:
    """Track threads that were left behind, by what they wait for.

    :param most: The limit in all; ``most_of_one``: that of one owner.
    """

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._lock = threading.Lock()
        self._waits: dict[Hashable, tuple[Callable[[], bool], str]] = {}

    def add(self, about: Hashable, waits: Callable[[], bool], of: str = "") -> None:
        """Record a thread that was left behind, for as long as ``waits`` returns true."""
        with self._lock:
            self._waits[about] = waits, of

    def forbids(self, about: Hashable, of: str = "") -> bool:
        """Return whether a thread already waits for this, or a limit is reached."""
        with self._lock:
            self._waits = {key: one for key, one in self._waits.items() if one[0]()}
            of_one = sum(owner == of for _, owner in self._waits.values()) if of else 0
            return about in self._waits or len(self._waits) >= self._most or of_one >= self._most_of_one


_overdue_items = StuckThreads(64, 64)
"""Many processes may be hostile; no domain may fail because of them, so there is no lower limit of one."""


def each(call: Callable[[K], T], items: Iterable[K], *, seconds: float = _EACH_SECONDS) -> Iterator[tuple[K, T]]:
    """Yield each item with the result of the call; leave out those that take longer. For worker threads.

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
    """Process one item after another in a thread."""

    def __init__(self, call: Callable[[K], T]) -> None:
        self._call = call
        self._questions: queue.SimpleQueue[tuple[K] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def ask(self, item: K, seconds: float) -> T:
        """Return the result for one item.

        :raise queue.Empty: When there is none in time; the worker takes no more items then.
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
        """End the thread after the item it works on."""
        self._questions.put(None)

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            try:
                self._answers.put((self._call(*question), None))
            except Exception as error:  # noqa: BLE001 -- raised again by ask()
                self._answers.put((None, error))
