# SPDX-License-Identifier: GPL-2.0-or-later
"""One caller on the control socket: what it is answered, and how much of the daemon it may take.

asyncvarlink knows no limits: it would keep an endless message, and read calls faster than they are served. So
whoever sends too much is hung up on. Nobody else notices. ``Connection`` is root's; what others may do,
``ipc.readers`` says.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import msgspec
from asyncvarlink import TypedVarlinkErrorReply, VarlinkInterfaceRegistry, VarlinkInterfaceServerProtocol
from asyncvarlink.message import VarlinkMethodCall
from asyncvarlink.types import FileDescriptorArray, JSONObject

from virt_dmem.errors import DmemError, UsageError
from virt_dmem.ipc.messages import INTERFACE

__all__ = ["CALLS_WAITING", "Caller", "Connection", "Failed", "caller", "failed"]

log = logging.getLogger(__name__)

ROOT_MESSAGE_BYTES = 8 << 20
"""The hook sends a domain's XML: 4 MiB at most (REMOTE_STRING_MAX of libvirt), and more with JSON's escapes."""
CALLS_WAITING = 32
"""Calls that may have been sent before the first one is answered; ours send one at a time."""


def _plain(value: object) -> str:
    """Return the text of a value that is a kind of ``str``, such as ``SegmentId``: msgspec encodes no other."""
    if isinstance(value, str):
        return str(value)
    raise NotImplementedError(type(value).__name__)


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)

caller: ContextVar["Connection"] = ContextVar("caller")
"""Who is asking: set for each call, and inherited by the task that serves it."""


class Failed(TypedVarlinkErrorReply, interface=INTERFACE):
    """A ``DmemError``, on its way to whoever asked."""

    class Parameters:
        """Its stable code, what happened, what to do."""

        code: str
        message: str
        hint: str


class Caller(VarlinkInterfaceServerProtocol):
    """Whoever is answered: with JSON that msgspec makes, and errors of ours as what they are."""

    def send_message(
        self, obj: JSONObject, fds: list[int] | None = None, autoclose: bool = True
    ) -> "asyncio.Future[None]":
        """Send a message; of one that is sent in many parts none is copied."""
        if self._transport is None:
            return super().send_message({}, fds, autoclose)  # and fails
        return self._transport.send_message(cast("bytes", memoryview(encoded(obj))), fds)

    def handle_call_exception(self, exc: BaseException, oneway: bool) -> None:
        """Send an error of ours as what it is.

        :raise Failed: To be sent.
        """
        if isinstance(exc, DmemError):
            raise failed(exc)
        if isinstance(exc, UnicodeEncodeError):
            raise failed(UsageError("The call holds text that is no Unicode.", hint="Mend what sent it."))
        super().handle_call_exception(exc, oneway)


class Connection(Caller):
    """Root, who may call everything; ``on_end`` is called when the connection is gone."""

    def __init__(
        self, registry: VarlinkInterfaceRegistry, connected: socket.socket, *, on_end: Callable[[], None]
    ) -> None:
        super().__init__(registry)
        self._on_end = on_end
        self._parts: list[bytes] = []
        self._size = 0
        self._waiting = 0
        self._hung_up = False
        self._ended = False
        self._watched = connected.dup()  # asyncvarlink does not read, and so sees no end, while it serves a call

    def when_gone(self, act: Callable[[], object]) -> None:
        """Call ``act`` when the caller hangs up, unless it sends another call before."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            loop.remove_reader(self._watched)
            try:
                gone = not self._watched.recv(1, socket.MSG_PEEK)
            except OSError:
                gone = True
            if gone:
                act()

        loop.add_reader(self._watched, look)

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Take what the caller sent: whole calls, or parts of them."""
        if self._hung_up:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > ROOT_MESSAGE_BYTES:
            self._hang_up(f"it sent a call of more than {ROOT_MESSAGE_BYTES} bytes")
        if b"\0" not in data:
            return
        # here, and not in asyncvarlink, which copies all there is for each few KiB that come
        data, nul, rest = b"".join(self._parts).rpartition(b"\0")
        self._parts, self._size = [rest], len(rest)
        self._waiting += data.count(nul) + 1
        if self._waiting > CALLS_WAITING:
            self._hang_up(f"it sent {self._waiting} calls at once")
        if self._hung_up:
            return
        try:
            super().message_received(data + nul, fds)
        except (ValueError, RecursionError) as error:  # asyncvarlink expects no other than JSONDecodeError
            self._hang_up(f"it sent no call ({type(error).__name__})")

    def request_received(self, obj: JSONObject, fds: FileDescriptorArray | None) -> "asyncio.Future[None] | None":
        """Serve a call; the next one is served when the future is done.

        That is when the answer is gone: for who does not read, no second one is made.
        """
        self._waiting -= 1
        if self._hung_up:
            return None
        served: asyncio.Future[None] | None = super().request_received(obj, fds)
        for sending in [] if served else [*self._inflight]:
            served = asyncio.get_running_loop().create_future()
            sending.add_done_callback(partial(_finish, served))
        if self._ended:
            self.eof_received()
        return served

    def eof_received(self) -> None:
        """Answer what was sent before the caller closed its side; then close ours."""
        self._ended = True
        if not self._waiting:
            super().eof_received()

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Hang up: whoever sends no call at all would wait for an answer in vain."""
        self._waiting -= 1
        self._hang_up(f"it sent no call ({err})")

    def _hang_up(self, reason: str) -> None:
        """End the connection by a shutdown: the transport reads an end, whatever it is about to read now."""
        if not self._hung_up:
            self._hung_up = True
            self._parts.clear()
            log.info("a caller was hung up on: %s", reason)
            with suppress(OSError):  # it was quicker
                self._watched.shutdown(socket.SHUT_RDWR)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the caller."""
        asyncio.get_running_loop().remove_reader(self._watched)
        self._watched.close()
        self._on_end()
        super().connection_lost(exc)

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> "asyncio.Future[None] | None":
        """Call the method."""
        caller.set(self)
        answer: asyncio.Future[None] | None = super().call_received(call, fds)
        return answer


def _finish(served: "asyncio.Future[None]", _sent: "asyncio.Future[None]") -> None:
    if not served.done():
        served.set_result(None)


def failed(error: DmemError) -> Failed:
    """Return an error as it is sent."""
    return Failed(code=error.code, message=error.message, hint=error.hint)


def encoded(message: object) -> bytearray:
    """Return a message as it goes over the socket; what is JSON already is copied once."""
    found = bytearray()
    try:
        _ENCODER.encode_into(message, found)
    except UnicodeEncodeError:  # it repeats what the caller sent, and that is no Unicode
        _ENCODER.encode_into(_replaced(msgspec.to_builtins(message, enc_hook=_plain)), found)
    found.append(0)
    return found


def _replaced(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_replaced(key): _replaced(item) for key, item in value.items()}
    return [_replaced(item) for item in value] if isinstance(value, list) else value
