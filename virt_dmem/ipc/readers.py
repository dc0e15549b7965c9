# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve read-only callers, the members of the group, in a limited share of the event loop.

Root's calls are served as they come. Of all others one connection is served at a time: what it sent is received,
one of its calls is answered, and as much as its socket takes is sent; then the loop is left to root for several
times as long. Users are served in rotation, however many connections each has. A connection that does not receive
a long reply in time is closed, as others wait for it; with a short one it delays nobody.
"""

import asyncio
import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from asyncvarlink import VarlinkInterfaceRegistry
from asyncvarlink.message import VarlinkMethodCall
from asyncvarlink.types import FileDescriptorArray, JSONObject

from virt_dmem.errors import PermissionRefused
from virt_dmem.ipc.connection import CALLS_WAITING, Caller, encoded, failed
from virt_dmem.ipc.fair_lock import FairLock
from virt_dmem.ipc.version import INTERFACE
from virt_dmem.runtime.aio import cancel_and_wait
from virt_dmem.runtime.rate_limit import RateLimitedLog

__all__ = ["READ_METHODS", "Readers"]

limited_log = RateLimitedLog(logging.getLogger(__name__))

READ_METHODS = frozenset(
    {
        "ListDomains",
        "ShowDomain",
        "ShowBackends",
        "ListPools",
        "ListAlerts",
        "ListEvents",
        "ShowConfig",
        "ShowMetrics",
    }
    | {"GetInfo", "GetInterfaceDescription"}
)
ASKS_QEMU = f"{INTERFACE}.ShowBackends"
"""Its reply may take seconds, without using the event loop: the turn ends when the call was received."""
CACHED = frozenset({f"{INTERFACE}.{name}" for name in ("ListPools", "ListAlerts", "ShowMetrics")})
"""Replies that are cached, for ``CACHE_TIMES`` as long as it took to make them."""
CACHE_TIMES = 20
CONNECTIONS = 64
"""Limit of the connections. At the limit, the user with most of them loses one to a user with fewer."""
MESSAGE_BYTES = 64 << 10
REST = 4
"""The event loop is left to root for this many times as long as a turn used it."""
LONG_BYTES = 128 << 10
"""A reply of which more than this cannot be sent at once blocks the others: there is one such at a time."""
SEND_SECONDS = 5.0
"""Time in which a reply must be received."""
MEMBER_SECONDS = 10.0
"""How long group membership is cached: the system may have to query a server for it."""


class _Reject(Exception):
    """Close the connection, for this reason."""


class _Dispatcher(Caller):
    """Produce replies to calls, of read-only methods only."""

    def __init__(self, registry: VarlinkInterfaceRegistry) -> None:
        super().__init__(registry)
        self._answers: list[bytearray] = []

    async def answer(self, call: JSONObject) -> bytearray:
        """Return the reply: one message, as read-only methods have no more, or nothing."""
        if (served := self.request_received(call, None)) is not None:
            await asyncio.wait([served])  # cancelling this must not cancel the library's task
        answers, self._answers = self._answers, []
        return answers[0] if answers else bytearray()

    def send_message(
        self,
        obj: JSONObject,
        fds: list[int] | None = None,
        autoclose: bool = True,
    ) -> "asyncio.Future[None]":
        """Keep the reply for ``answer``."""
        self._answers.append(encoded(obj))
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> "asyncio.Future[None] | None":
        """Dispatch the call, if the method is read-only.

        :raise Failed: When it is not.
        """
        if call.method_name not in READ_METHODS:
            raise failed(
                PermissionRefused(
                    "Only root may do this; the members of virt-dmemd's group may only read (list, show, pool list,"
                    " pool show, alerts, events, metrics).",
                    hint="Run the command with sudo.",
                )
            )
        answer: asyncio.Future[None] | None = super().call_received(call, fds)
        return answer


class _Reader:
    """Receive calls on one connection, and send replies."""

    def __init__(self, connected: socket.socket, uid: int, dispatcher: _Dispatcher) -> None:
        self.uid = uid
        self.dispatcher = dispatcher
        self.served = time.monotonic()
        """When its last reply was sent."""
        self.calls: deque[bytes] = deque()
        self.ended = False
        """The caller closed its side."""
        self._socket = connected
        self._part = b""

    async def until_it_sends(self) -> None:
        """Wait for data, without receiving it."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._socket, _finish, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self._socket)

    def receive(self) -> None:
        """Receive some data; the kernel drops descriptors that came with it."""
        try:
            data = self._socket.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        self.ended = not data
        *calls, self._part = (self._part + data).split(b"\0")
        if max(map(len, [*calls, self._part])) > MESSAGE_BYTES:
            raise _Reject(f"call of more than {MESSAGE_BYTES} bytes")
        if len(calls) > CALLS_WAITING:
            raise _Reject(f"{len(calls)} calls at once")
        self.calls.extend(calls)

    def send_now(self, answer: memoryview) -> memoryview:
        """Send as much as the socket takes; return the rest."""
        with suppress(BlockingIOError):
            return answer[self._socket.send(answer) :]
        return answer

    async def send(self, answer: memoryview) -> None:
        """Send all of it, as fast as the caller receives it.

        :raise _Reject: When that takes too long.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SEND_SECONDS):
                while answer := self.send_now(answer):
                    ready: asyncio.Future[None] = loop.create_future()
                    loop.add_writer(self._socket, _finish, ready)
                    try:
                        await ready
                    finally:
                        loop.remove_writer(self._socket)
        except TimeoutError:
            raise _Reject(f"reply not received within {SEND_SECONDS:g} s") from None

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Readers:
    """Serve all read-only connections, in turns.

    :param is_member: Returns whether a user with this group may read; called in a worker thread.
    """

    def __init__(self, registry: VarlinkInterfaceRegistry, is_member: Callable[[int, int], bool]) -> None:
        self._registry = registry
        self._is_member = is_member
        self._members: dict[tuple[int, int], tuple[float, asyncio.Task[bool]]] = {}
        self._connections: dict[_Reader, asyncio.Task[None]] = {}
        self._turns = FairLock()
        self._asking = FairLock()
        self._cache: dict[str, tuple[float, bytearray]] = {}

    def accept(self, connected: socket.socket, uid: int, gid: int) -> None:
        """Serve a connection, or reject it."""
        if len(self._connections) >= CONNECTIONS and not self._has_made_room(uid):
            limited_log(logging.WARNING, uid, "connection of user %d rejected: %d exist", uid, CONNECTIONS)
            connected.close()
            return
        connected.setblocking(False)
        one = _Reader(connected, uid, _Dispatcher(self._registry))
        task = asyncio.create_task(self._attend(one, gid))
        self._connections[one] = task
        task.add_done_callback(lambda _: self._leave(one))

    async def close(self) -> None:
        """Close all connections."""
        await cancel_and_wait(self._connections.values())

    def _leave(self, one: _Reader) -> None:
        self._connections.pop(one, None)
        one.close()

    def _has_made_room(self, uid: int) -> bool:
        """Close a connection of the user with most of them, if that is more than this user will have."""
        taken = Counter(one.uid for one in self._connections)
        most, count = taken.most_common(1)[0]
        if taken[uid] + 1 >= count:
            return False
        longest = min((one for one in self._connections if one.uid == most), key=lambda one: one.served)
        self._connections.pop(longest).cancel()
        return True

    async def _attend(self, one: _Reader, gid: int) -> None:
        try:
            if not await self._may_read(one.uid, gid):
                raise _Reject("user is not in the group")
            while one.calls or not one.ended:
                await self._serve(one)
        except _Reject as reason:
            limited_log(logging.INFO, one.uid, "connection of user %d closed: %s", one.uid, reason)
        except OSError:  # the caller is gone
            pass

    async def _may_read(self, uid: int, gid: int) -> bool:
        until, asked = self._members.get((uid, gid), (0.0, None))
        if asked is None or time.monotonic() > until:
            asked = asyncio.create_task(asyncio.to_thread(self._is_member, uid, gid))
            if len(self._members) > CONNECTIONS:
                self._members.clear()
            self._members[uid, gid] = time.monotonic() + MEMBER_SECONDS, asked
        return await asyncio.shield(asked)

    async def _serve(self, one: _Reader) -> None:
        """Take a turn: answer one call, if a whole one was received."""
        if not one.calls:
            await one.until_it_sends()
        call: dict[str, Any] = {}
        left = memoryview(b"")
        async with self._turns.of(one.uid):
            began = time.perf_counter()
            if not one.calls:
                one.receive()
            if one.calls:
                call = _parsed(one.calls.popleft())
                if call.get("method") != ASKS_QEMU:
                    left = one.send_now(memoryview(await self._answer(one, call)))
            took = time.perf_counter() - began
            if len(left) > LONG_BYTES:
                await one.send(left)
                left = memoryview(b"")
            await asyncio.sleep(REST * took)
        if call.get("method") == ASKS_QEMU:
            async with self._asking.of(one.uid):
                left = memoryview(await one.dispatcher.answer(call))
        if left:
            await one.send(left)
        one.served = time.monotonic()

    async def _answer(self, one: _Reader, call: JSONObject) -> bytearray:
        method = call.get("method")
        if not isinstance(method, str) or method not in CACHED or call.keys() - {"method", "parameters"}:
            return await one.dispatcher.answer(call)
        if call.get("parameters"):
            return await one.dispatcher.answer(call)
        until, answer = self._cache.get(method, (0.0, bytearray()))
        began = time.monotonic()
        if began > until:
            answer = await one.dispatcher.answer(call)
            now = time.monotonic()
            self._cache[method] = now + CACHE_TIMES * (now - began), answer
        return answer


def _finish(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def _parsed(call: bytes) -> dict[str, Any]:
    with suppress(msgspec.DecodeError, ValueError, RecursionError):
        found = msgspec.json.decode(call)
        if isinstance(found, dict):
            return found
    raise _Reject("not a call")
