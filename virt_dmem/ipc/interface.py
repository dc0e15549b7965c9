# SPDX-License-Identifier: GPL-2.0-or-later
"""Declare the methods of the control socket, and run what callers wait for.

``daemon.views`` derives the interface from ``Interface``. The signature of each method there is its only
definition: asyncvarlink derives dispatch and description from it. (No postponed annotations where methods are
declared.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from typing import Any, ParamSpec, TypeVar

from asyncvarlink import LastResult, VarlinkInterface, varlinkmethod, varlinksignature

from virt_dmem.errors import DmemError
from virt_dmem.ipc.connection import caller
from virt_dmem.ipc.version import INTERFACE
from virt_dmem.runtime.aio import cancel_and_wait

__all__ = ["Calls", "Interface", "method"]

P = ParamSpec("P")
T = TypeVar("T")

HEARTBEAT_SECONDS = 5.0
"""Longest pause between two progress replies; clients give up after 30 s without a reply."""
GOODBYE_SECONDS = 1.0
"""Longest wait, at shutdown, for callers to take their last reply."""


def method(returns: str | None = None) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Declare a method of the interface, with the parameters and types of the decorated function.

    The function may be an asynchronous generator; it ends by ``LastResult``.

    :param returns: The name of the reply's one parameter; ``None``: the reply is empty.
    """

    def declare(function: Callable[P, Any]) -> Callable[P, Any]:
        declared = varlinkmethod(return_parameter=returns, delay_generator=False)(function)
        if (signature := varlinksignature(declared)) is not None:
            # msgspec makes JSON of the reply as a whole (``ipc.connection.encoded``), much faster than asyncvarlink
            signature.return_type.tojson = lambda reply, _=None: reply
        return declared

    return declare


class Calls:
    """Run the work that callers wait for, each piece in a task of its own: asyncvarlink's must not be cancelled."""

    def __init__(self) -> None:
        self._callers: dict[asyncio.Task[Any], asyncio.Task[Any] | None] = {}
        self._closed = False

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start work for the call that is being served; after ``close`` it is cancelled before it begins."""
        task = asyncio.create_task(work)
        if self._closed:
            task.cancel()
        self._callers[task] = asyncio.current_task()
        task.add_done_callback(self._callers.pop)
        return task

    def caller(self, when_gone: Callable[[Hashable], Coroutine[Any, Any, None]]) -> Hashable:
        """Return what identifies the caller; ``when_gone`` of it runs once its connection is closed."""
        connection = caller.get()
        connection.when_closed(lambda: self.begin(when_gone(connection)))
        return connection

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of the work.

        :raise DmemError: When it failed, or was cancelled by ``close``.
        """
        return await _outcome(self.begin(work))

    async def stream(
        self,
        start: Callable[[Callable[[T], None]], Coroutine[Any, Any, T]],
        *,
        heartbeat: T | None = None,
        cancel_when_gone: bool = True,
    ) -> AsyncIterator[T]:
        """Yield each reply that the work reports, then raise its result as ``LastResult``.

        :param start: Returns the work, given a function that it calls to report.
        :param heartbeat: Repeat the last reply while there is no new one, beginning with this; ``None``: do not.
        :param cancel_when_gone: Cancel the work when the caller closes the connection.
        :raise DmemError: When the work failed, or was cancelled by ``close``.
        """
        replies: asyncio.Queue[T | None] = asyncio.Queue()
        task = self.begin(start(replies.put_nowait))
        task.add_done_callback(lambda _: replies.put_nowait(None))
        if cancel_when_gone:
            caller.get().when_gone(task.cancel)
        last = heartbeat
        while True:
            try:
                async with asyncio.timeout(None if heartbeat is None else HEARTBEAT_SECONDS):
                    reply = await replies.get()
            except TimeoutError:
                reply = last
            if reply is None:
                break
            last = reply
            yield reply
        raise LastResult(await _outcome(task))

    async def close(self) -> None:
        """Cancel all work, and return when it has ended and its callers were told."""
        self._closed = True
        callers = [*filter(None, self._callers.values())]
        await cancel_and_wait(self._callers)
        if callers:
            await asyncio.wait(callers, timeout=GOODBYE_SECONDS)


async def _outcome(task: asyncio.Task[T]) -> T:
    """Return the result of a task, once it is done.

    :raise DmemError: What it raised. Also when it was cancelled: a CancelledError would end asyncvarlink's own task
        for the connection, which would then never be closed.
    """
    if not task.done():
        await asyncio.wait({task})
    if task.cancelled():
        raise DmemError(
            "virt-dmemd is shutting down; request cancelled.", hint="Try again when 'virt-dmem check' reaches it."
        )
    return task.result()


class Interface(VarlinkInterface, name=INTERFACE):
    """Provide the base of the interface, whose methods run their work in ``calls``."""

    def __init__(self) -> None:
        self.calls = Calls()
