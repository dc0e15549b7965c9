# SPDX-License-Identifier: GPL-2.0-or-later
"""Accept connections on the control sockets, and identify the callers.

A caller is identified by SO_PEERCRED when it connects: root may call everything, members of the daemon's group may
read, all others are rejected.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import pwd
import socket
import struct
import time
from collections.abc import Callable

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from virt_dmem import __version__
from virt_dmem.ipc.connection import Connection
from virt_dmem.ipc.interface import Interface
from virt_dmem.ipc.peer import credentials_of
from virt_dmem.ipc.readers import REST, Readers
from virt_dmem.runtime.rate_limit import RateLimitedLog

__all__ = ["ControlServer"]

log = logging.getLogger(__name__)
limited_log = RateLimitedLog(log)

_SO_PEERGROUPS = 59
"""<asm-generic/socket.h>, since Linux 4.13; Python has no name for it."""

CONNECTIONS = 256
"""Limit of root's connections. Each takes two file descriptors, of the 1024 that a service has."""
ACCEPT_AT_ONCE = 64
READERS_AT_ONCE = 16
"""Connections that are accepted or rejected before the event loop serves anything else."""
PAUSE_SECONDS = 0.5
"""How long no connection is accepted after file descriptors or memory have run out."""


class _Socket(socket.socket):
    """Provide a cheap ``repr``: a selector that does not know a socket yet renders it for an exception."""

    __repr__ = object.__repr__


class _Listener:
    """Accept connections on a listening socket.

    :param at_once: Connections accepted before others are served; ``rest`` times as long as that took passes
        before the next ones.
    """

    def __init__(
        self, listener: socket.socket, on_connect: Callable[[socket.socket], None], at_once: int, rest: float
    ) -> None:
        self._listener = listener
        self._on_connect = on_connect
        self._at_once = at_once
        self._rest = rest
        self._closed = False

    def open(self) -> None:
        """Accept connections from now on."""
        if not self._closed:
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept no more connections."""
        self._closed = True
        self._pause()

    def _pause(self, seconds: float | None = None) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self.open)

    def _accept(self) -> None:
        began = time.perf_counter()
        try:
            for _ in range(self._at_once):
                self._on_connect(_Socket(fileno=self._listener.accept()[0].detach()))
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:  # out of file descriptors or memory; retried at once, this would spin
            log.warning("no connections are accepted for %g s: %s", PAUSE_SECONDS, error.strerror)
            self._pause(PAUSE_SECONDS)
        else:
            if self._rest:
                self._pause(self._rest * (time.perf_counter() - began))


class ControlServer:
    """Serve the interface on two listening unix sockets: root's, and that of the readers.

    :param group: Members of this group may read.
    """

    def __init__(self, listener: socket.socket, readers: socket.socket, interface: Interface, group: str) -> None:
        self._group = group
        try:
            self._gid = grp.getgrnam(group).gr_gid
        except KeyError:
            self._gid = -1
        self._connections = 0
        self._calls = interface.calls
        self._registry = VarlinkInterfaceRegistry()
        self._registry.register_interface(
            VarlinkServiceInterface("virt-dmem", "virt-dmemd", __version__, "https://virt-dmem.dev", self._registry)
        )
        self._registry.register_interface(interface)
        self._readers = Readers(self._registry, self._in_group)
        self._listeners = [self._listener(listener, readers=False), self._listener(readers, readers=True)]

    def _listener(self, listener: socket.socket, *, readers: bool) -> _Listener:
        if readers:
            return _Listener(listener, self._connected, READERS_AT_ONCE, rest=REST)
        return _Listener(listener, self._connected, ACCEPT_AT_ONCE, rest=0)

    def start(self) -> None:
        """Accept connections from now on."""
        for listener in self._listeners:
            listener.open()

    def listen_also(self, listener: socket.socket, readers: bool) -> None:
        """Accept connections on one more socket, from now on."""
        self._listeners.append(self._listener(listener, readers=readers))
        self._listeners[-1].open()

    async def stop(self) -> None:
        """Accept no more connections, and cancel the calls in progress; their callers are told."""
        for listener in self._listeners:
            listener.close()
        await self._calls.close()
        await self._readers.close()

    def _connected(self, connected: socket.socket) -> None:
        uid, gid = credentials_of(connected)
        if uid == 0:
            self._serve(connected)
        else:
            self._readers.accept(connected, uid, self._gid if self._gid in _more_groups(connected) else gid)

    def _serve(self, connected: socket.socket) -> None:
        """Serve a connection of root, or reject it."""
        if self._connections >= CONNECTIONS:
            limited_log(logging.WARNING, 0, "connection rejected: limit of %d reached", CONNECTIONS)
            connected.close()
            return

        def ended() -> None:
            self._connections -= 1

        connected.setblocking(False)
        try:
            connection = Connection(self._registry, connected, on_end=ended)
        except OSError as error:
            log.warning("connection rejected: %s", error.strerror)
            connected.close()
            return
        self._connections += 1
        VarlinkTransport(asyncio.get_running_loop(), connected, connected, connection)

    def _in_group(self, uid: int, gid: int) -> bool:
        try:
            group = grp.getgrnam(self._group)
            return gid == group.gr_gid or pwd.getpwuid(uid).pw_name in group.gr_mem
        except KeyError:
            return False


def _more_groups(connected: socket.socket) -> tuple[int, ...]:
    """Return the supplementary groups of the caller when it connected; empty if there are more than 256."""
    try:
        found = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:  # ERANGE
        return ()
    return struct.unpack(f"{len(found) // 4}I", found)
