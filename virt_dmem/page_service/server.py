# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve requests for huge pages on a unix socket, one after another: all of them change the same records.

Only root is served (SO_PEERCRED). Whoever asks for pages and is gone before it has them gets none: they go back.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Callable

from virt_dmem.config.schema import Config
from virt_dmem.errors import DmemError, PoolError, PoolShort
from virt_dmem.ipc.peer import uid_of
from virt_dmem.os_errors import explained
from virt_dmem.pools.elastic import change
from virt_dmem.pools.elastic.wire import MOST_BYTES, Done, GiveBack, Progress, Refused, Reply, encode, read_request
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import format_size

__all__ = ["PageServer"]

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
"""Limit for a whole request, and for each reply to be accepted: meanwhile nobody else is served."""


class PageServer:
    """Serve a listening socket.

    :param ended: A file descriptor that becomes readable when the service is to end.
    :param idle_seconds: End after so long without a request; ``None``: never.
    """

    def __init__(self, config: Config, listener: socket.socket, ended: int, idle_seconds: float | None) -> None:
        self._config = config
        self._listener = listener
        self._ended = ended
        self._idle_seconds = idle_seconds
        listener.setblocking(False)

    def run(self) -> None:
        """Serve until the end, or nobody asks any more; a request under way is finished first."""
        waited_for = [self._listener.fileno(), self._ended]
        while True:
            ready, _, _ = select.select(waited_for, [], [], self._idle_seconds)
            if not ready or self._ended in ready:
                return
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it is gone already
                continue
            with connection:
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        if (uid := uid_of(connection)) != 0:
            log.warning("rejected: user %d may not ask for huge pages", uid)
            return
        connection.settimeout(REQUEST_SECONDS)
        try:
            line = _line(connection)
        except OSError as error:
            log.warning("no request came: %s", error)
            return
        if not line:  # someone looked whether it listens
            return
        try:
            reply = self._reply(connection, line)
        except _GoneError:
            log.warning("who asked for pages is gone: they were given back")
            return
        try:
            connection.sendall(encode(reply))
        except OSError as error:
            log.warning("the answer was not accepted: %s", error)
            if isinstance(reply, Done) and not isinstance(read_request(line), GiveBack):
                self._undo(SegmentId(reply.segment))

    def _reply(self, connection: socket.socket, line: bytes) -> Reply:
        """Do what a line asks for.

        :raise _GoneError: When the caller is gone before it has the pages that it asked for.
        """
        try:
            request = read_request(line)
        except ValueError as error:
            log.warning("rejected: %s", error)
            return Refused(PoolError.code, "That is not a request for huge pages.", "Install virt-dmem again.")
        try:
            if isinstance(request, GiveBack):
                segment = SegmentId(request.segment)
                change.give_back(self._config, segment)
                log.info("gave back segment %s", segment)
            else:
                segment = change.take(self._config, request.pool, request.nodes, report=_reporter(connection))
                log.info("took %s: segment %s", format_size(sum(request.nodes.values())), segment)
        except PoolShort as error:
            log.warning("%s", error)
            return Refused(error.code, error.message, error.hint, error.had)
        except DmemError as error:
            log.warning("%s", error)
            return Refused(error.code, error.message, error.hint)
        except OSError as error:  # a record that cannot be written, a node that went offline
            failure = explained(error, kind=PoolError)
            log.warning("%s", failure)
            return Refused(failure.code, failure.message, failure.hint)
        return Done(str(segment))

    def _undo(self, segment: SegmentId) -> None:
        try:
            change.give_back(self._config, segment)
        except (DmemError, OSError) as error:  # virt-dmemd tries again
            log.warning("%s", error)


class _GoneError(Exception):
    """The caller does not accept what it is sent."""


def _reporter(connection: socket.socket) -> Callable[[str, int, int], None]:
    def report(doing: str, done_bytes: int, total_bytes: int) -> None:
        try:
            connection.sendall(encode(Progress(doing, done_bytes, total_bytes)))
        except OSError as error:
            raise _GoneError from error

    return report


def _line(connection: socket.socket) -> bytes:
    """Return the line that a caller sends; empty: it sends none.

    :raise OSError: When it is too long, or does not come in time.
    """
    ends = time.monotonic() + REQUEST_SECONDS
    found = b""
    while not found.endswith(b"\n"):
        connection.settimeout(max(0.001, ends - time.monotonic()))
        more = connection.recv(MOST_BYTES)
        if not more:
            if found:
                raise OSError("it ended within a line")
            return b""
        found += more
        if len(found) > MOST_BYTES:
            raise OSError("it is too long")
    connection.settimeout(REQUEST_SECONDS)
    return found
