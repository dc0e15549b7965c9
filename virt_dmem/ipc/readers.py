# SPDX-License-Identifier: GPL-2.0-or-later
"""Callers who may only look, members of the group: they share a small part of the event loop, in turns.

Root's calls are served as they come. Of all others one is served at a time: what it sent is read, one call of it
is answered, and as much as its socket takes is sent; then the loop is root's for some times as long. Users come
round in rotation, however many connections each has. Who does not read a long answer in time is hung up on, as
others wait for that; with a short one it keeps nobody waiting.
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

from virt_dmem.aio import cancel_and_wait
from virt_dmem.errors import PermissionRefused
from virt_dmem.ipc.connection import CALLS_WAITING, Caller, encoded, failed
from virt_dmem.ipc.fair_lock import FairLock
from virt_dmem.ipc.messages import INTERFACE
from virt_dmem.rate_limit import RateLimitedLog

__all__ = ["READ_METHODS", "Readers"]

say = RateLimitedLog(logging.getLogger(__name__))

READ_METHODS = frozenset(
    {"ListDomains", "ShowDomain", "ShowBackends", "ListPools", "ListAlerts", "ShowMetrics"}
    | {"GetInfo", "GetInterfaceDescription"}
)
ASKS_QEMU = f"{INTERFACE}.ShowBackends"
"""Its answer may take seconds, of which the event loop has no part: its turn ends when it was read."""
KEPT = frozenset({f"{INTERFACE}.{name}" for name in ("ListPools", "ListAlerts", "ShowMetrics")})
"""Answers that are given again for a moment, some times as long as it took to make them."""
KEPT_TIMES = 20
SEATS = 64
"""Connections at a time. When all are taken, who has the most of them gives one to who has less."""
MESSAGE_BYTES = 64 << 10
REST = 4
"""The event loop is root's for so many times as long as a turn took of it."""
LONG_BYTES = 128 << 10
"""An answer of which more than that does not go at once holds up the others: there is one such at a time."""
SEND_SECONDS = 5.0
"""In that time an answer must have been read."""
MEMBER_SECONDS = 10.0
"""So long we believe what the system said of who is in the group: it may ask a server for that."""


class _HangUp(Exception):
    """The caller is to be hung up on; what for."""


class _Desk(Caller):
    """Makes answers to calls, of reading methods only."""

    def __init__(self, registry: VarlinkInterfaceRegistry) -> None:
        super().__init__(registry)
        self._answers: list[bytearray] = []

    async def answer(self, call: JSONObject) -> bytearray:
        """Return what is to be sent: one message, as methods that only read have no more, or nothing."""
        if (served := self.request_received(call, None)) is not None:
            await asyncio.wait([served])  # who gives up does not cancel what the library has begun
        answers, self._answers = self._answers, []
        return answers[0] if answers else bytearray()

    def send_message(
        self,
        obj: JSONObject,
        fds: list[int] | None = None,
        autoclose: bool = True,
    ) -> "asyncio.Future[None]":
        """Keep what is to be sent."""
        self._answers.append(encoded(obj))
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> "asyncio.Future[None] | None":
        """Call the method, if it only reads.

        :raise Failed: When it does not.
        """
        if call.method_name not in READ_METHODS:
            raise failed(
                PermissionRefused(
                    f"Only root may call {call.method_name} of virt-dmemd.", hint="Run the command with sudo."
                )
            )
        answer: asyncio.Future[None] | None = super().call_received(call, fds)
        return answer


class _Reader:
    """One connection: what has come over it, and what is to go."""

    def __init__(self, connected: socket.socket, uid: int, desk: _Desk) -> None:
        self.uid = uid
        self.desk = desk
        self.served = time.monotonic()
        """When it was answered last."""
        self.calls: deque[bytes] = deque()
        self.ended = False
        """It sends no more."""
        self._socket = connected
        self._part = b""

    async def until_it_sends(self) -> None:
        """Wait; nothing is read."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._socket, _finish, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self._socket)

    def receive(self) -> None:
        """Read some of what was sent; descriptors that came with it are dropped by the kernel."""
        try:
            data = self._socket.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        self.ended = not data
        *calls, self._part = (self._part + data).split(b"\0")
        if max(map(len, [*calls, self._part])) > MESSAGE_BYTES:
            raise _HangUp(f"it sent a call of more than {MESSAGE_BYTES} bytes")
        if len(calls) > CALLS_WAITING:
            raise _HangUp(f"it sent {len(calls)} calls at once")
        self.calls.extend(calls)

    def send_now(self, answer: memoryview) -> memoryview:
        """Send as much as goes at once; return the rest."""
        with suppress(BlockingIOError):
            return answer[self._socket.send(answer) :]
        return answer

    async def send(self, answer: memoryview) -> None:
        """Send all of it, as fast as it is read.

        :raise _HangUp: When that is too slow.
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
            raise _HangUp(f"it did not read its answer in {SEND_SECONDS:g} s") from None

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


class Readers:
    """All of them.

    :param is_member: Tells by user and group whether somebody may look; asked in a thread.
    """

    def __init__(self, registry: VarlinkInterfaceRegistry, is_member: Callable[[int, int], bool]) -> None:
        self._registry = registry
        self._is_member = is_member
        self._members: dict[tuple[int, int], tuple[float, asyncio.Task[bool]]] = {}
        self._seats: dict[_Reader, asyncio.Task[None]] = {}
        self._turns = FairLock()
        self._asking = FairLock()
        self._kept: dict[str, tuple[float, bytearray]] = {}

    def welcome(self, connected: socket.socket, uid: int, gid: int) -> None:
        """Serve a connection, or turn it away."""
        if len(self._seats) >= SEATS and not self._has_made_room(uid):
            say(logging.WARNING, uid, "a caller of user %d was turned away: %d are there already", uid, SEATS)
            connected.close()
            return
        connected.setblocking(False)
        one = _Reader(connected, uid, _Desk(self._registry))
        task = asyncio.create_task(self._attend(one, gid))
        self._seats[one] = task
        task.add_done_callback(lambda _: self._leave(one))

    async def close(self) -> None:
        """Hang up on all."""
        await cancel_and_wait(self._seats.values())

    def _leave(self, one: _Reader) -> None:
        self._seats.pop(one, None)
        one.close()

    def _has_made_room(self, uid: int) -> bool:
        """Take a seat from the user that has the most, if that is more than this one will have."""
        taken = Counter(one.uid for one in self._seats)
        most, seats = taken.most_common(1)[0]
        if taken[uid] + 1 >= seats:
            return False
        longest = min((one for one in self._seats if one.uid == most), key=lambda one: one.served)
        self._seats.pop(longest).cancel()
        return True

    async def _attend(self, one: _Reader, gid: int) -> None:
        try:
            if not await self._may_look(one.uid, gid):
                raise _HangUp("it is not in the group")
            while one.calls or not one.ended:
                await self._serve(one)
        except _HangUp as reason:
            say(logging.INFO, one.uid, "a caller of user %d was hung up on: %s", one.uid, reason)
        except OSError:  # it is gone
            pass

    async def _may_look(self, uid: int, gid: int) -> bool:
        until, asked = self._members.get((uid, gid), (0.0, None))
        if asked is None or time.monotonic() > until:
            asked = asyncio.create_task(asyncio.to_thread(self._is_member, uid, gid))
            if len(self._members) > SEATS:
                self._members.clear()
            self._members[uid, gid] = time.monotonic() + MEMBER_SECONDS, asked
        return await asyncio.shield(asked)

    async def _serve(self, one: _Reader) -> None:
        """Have a turn: answer one call, if a whole one is there."""
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
                left = memoryview(await one.desk.answer(call))
        if left:
            await one.send(left)
        one.served = time.monotonic()

    async def _answer(self, one: _Reader, call: JSONObject) -> bytearray:
        method = call.get("method")
        if not isinstance(method, str) or method not in KEPT or call.keys() - {"method", "parameters"}:
            return await one.desk.answer(call)
        if call.get("parameters"):
            return await one.desk.answer(call)
        until, answer = self._kept.get(method, (0.0, bytearray()))
        began = time.monotonic()
        if began > until:
            answer = await one.desk.answer(call)
            now = time.monotonic()
            self._kept[method] = now + KEPT_TIMES * (now - began), answer
        return answer


def _finish(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def _parsed(call: bytes) -> dict[str, Any]:
    with suppress(msgspec.DecodeError, ValueError, RecursionError):
        found = msgspec.json.decode(call)
        if isinstance(found, dict):
            return found
    raise _HangUp("it sent no call")
