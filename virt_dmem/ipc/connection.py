# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve one connection of the control socket, within limits.

asyncvarlink has no limits: it would buffer an endless message, and read calls faster than they are served. So the
connection of a caller that sends too much is closed, without effect on others. ``Connection`` is for root;
``ipc.readers`` serves all others.
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
from virt_dmem.ipc.version import INTERFACE
from virt_dmem.os_errors import explained

__all__ = ["CALLS_WAITING", "Caller", "Connection", "Failed", "caller", "failed"]

log = logging.getLogger(__name__)

ROOT_MESSAGE_BYTES = 8 << 20
"""Limit of a call. The hook sends a domain's XML: 4 MiB (libvirt's REMOTE_STRING_MAX), more with JSON's escapes."""
CALLS_WAITING = 32
"""Limit of the calls sent before the first one is answered; our clients send one at a time."""


def _plain(value: object) -> str:
    """Return the text of a value that is a kind of ``str``, such as ``SegmentId``: msgspec encodes no other."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be sent")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)

caller: ContextVar["Connection"] = ContextVar("caller")
"""The connection of the current call; inherited by the task that serves it."""


class Failed(TypedVarlinkErrorReply, interface=INTERFACE):
    """Carry a ``DmemError`` to the caller."""

    class Parameters:
        """Hold the stable code, the message and the hint of the error."""

        code: str
        message: str
        hint: str


class Caller(VarlinkInterfaceServerProtocol):
    """Send replies that msgspec encodes, and a ``DmemError`` or ``OSError`` as ``Failed``."""

    def send_message(
        self, obj: JSONObject, fds: list[int] | None = None, autoclose: bool = True
    ) -> "asyncio.Future[None]":
        """Send a message, without copying parts of it."""
        if self._transport is None:
            return super().send_message({}, fds, autoclose)  # and fails
        return self._transport.send_message(cast("bytes", memoryview(encoded(obj))), fds)

    def handle_call_exception(self, exc: BaseException, oneway: bool) -> None:
        """Send a ``DmemError`` or ``OSError`` as ``Failed``.

        :raise Failed: The reply to send.
        """
        if isinstance(exc, DmemError):
            raise failed(exc)
        if isinstance(exc, OSError):
            log.warning("a call failed: %s", exc)
            raise failed(explained(exc))
        if isinstance(exc, UnicodeEncodeError):
            raise failed(UsageError("The call contains invalid Unicode.", hint="Fix the program that sent it."))
        super().handle_call_exception(exc, oneway)


class Connection(Caller):
    """Serve a connection of root, which may call everything; call ``on_end`` when it is closed."""

    def __init__(
        self, registry: VarlinkInterfaceRegistry, connected: socket.socket, *, on_end: Callable[[], None]
    ) -> None:
        super().__init__(registry)
        self._on_end = on_end
        self._when_closed: list[Callable[[], object]] | None = []
        """``None``: it is closed."""
        self._parts: list[bytes] = []
        self._size = 0
        self._waiting = 0
        self._rejected = False
        self._ended = False
        self._watched = connected.dup()  # asyncvarlink does not read, and so misses the end, while it serves a call

    def when_gone(self, act: Callable[[], object]) -> None:
        """Call ``act`` when the caller closes the connection, unless it sends another call first."""
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

    def when_closed(self, act: Callable[[], object]) -> None:
        """Call ``act`` once the connection is closed, however that happens; at once if it is."""
        if self._when_closed is None:
            act()
        else:
            self._when_closed.append(act)

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Process received data: whole calls, or parts of them."""
        if self._rejected:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > ROOT_MESSAGE_BYTES:
            self._reject(f"call of more than {ROOT_MESSAGE_BYTES} bytes")
        if b"\0" not in data:
            return
        # here, and not in asyncvarlink, which copies the whole buffer for each few KiB received
        data, nul, rest = b"".join(self._parts).rpartition(b"\0")
        self._parts, self._size = [rest], len(rest)
        self._waiting += data.count(nul) + 1
        if self._waiting > CALLS_WAITING:
            self._reject(f"{self._waiting} calls at once")
        if self._rejected:
            return
        try:
            super().message_received(data + nul, fds)
        except (ValueError, RecursionError) as error:  # asyncvarlink expects no other than JSONDecodeError
            self._reject(f"not a call ({type(error).__name__})")

    def request_received(self, obj: JSONObject, fds: FileDescriptorArray | None) -> "asyncio.Future[None] | None":
        """Serve a call; the next one is served when the returned future is done.

        That is when the reply has been sent: no second one is made for a caller that does not read.
        """
        self._waiting -= 1
        if self._rejected:
            return None
        served: asyncio.Future[None] | None = super().request_received(obj, fds)
        for sending in [] if served else [*self._inflight]:
            served = asyncio.get_running_loop().create_future()
            sending.add_done_callback(partial(_finish, served))
        if self._ended:
            self.eof_received()
        return served

    def eof_received(self) -> None:
        """Reply to all calls sent before the caller closed its side; then close ours."""
        self._ended = True
        if not self._waiting:
            super().eof_received()

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Close the connection: a caller that sent no valid call would wait for a reply in vain."""
        self._waiting -= 1
        self._reject(f"not a call ({err})")

    def _reject(self, reason: str) -> None:
        """Shut the connection down: the transport then reads its end, whatever was still to be read."""
        if not self._rejected:
            self._rejected = True
            self._parts.clear()
            log.info("connection closed: %s", reason)
            with suppress(OSError):  # the caller closed it first
                self._watched.shutdown(socket.SHUT_RDWR)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection."""
        asyncio.get_running_loop().remove_reader(self._watched)
        self._watched.close()
        self._on_end()
        acts, self._when_closed = self._when_closed or [], None
        for act in acts:
            act()
        super().connection_lost(exc)

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> "asyncio.Future[None] | None":
        """Dispatch the call, with ``caller`` set."""
        caller.set(self)
        answer: asyncio.Future[None] | None = super().call_received(call, fds)
        return answer


def _finish(served: "asyncio.Future[None]", _sent: "asyncio.Future[None]") -> None:
    if not served.done():
        served.set_result(None)


def failed(error: DmemError) -> Failed:
    """Return the reply that carries an error."""
    return Failed(code=error.code, message=error.message, hint=error.hint)


def encoded(message: object) -> bytearray:
    """Return a message as sent over the socket; what is JSON already is copied once."""
    found = bytearray()
    try:
        _ENCODER.encode_into(message, found)
    except UnicodeEncodeError:  # it quotes what the caller sent, which was not valid Unicode
        _ENCODER.encode_into(_replaced(msgspec.to_builtins(message, enc_hook=_plain)), found)
    found.append(0)
    return found


def _replaced(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_replaced(key): _replaced(item) for key, item in value.items()}
    return [_replaced(item) for item in value] if isinstance(value, list) else value
