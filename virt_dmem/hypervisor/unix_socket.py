# SPDX-License-Identifier: GPL-2.0-or-later
"""Unix sockets that others made: reached without following links, and whose they are."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path

__all__ = ["connect", "peer_pid"]

_SO_PEERPIDFD = 77
"""Linux 6.5, asm-generic/socket.h; Python has no name for it yet."""
_PEERCRED = struct.Struct("3i")


def connect(path: Path) -> socket.socket:
    """Return a connection, not blocking, to the socket that stands at ``path`` itself; no link there is followed.

    :raise OSError: When there is none, nobody listens, or too many wait there.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConnectionRefusedError(f"{path} is no socket")
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.setblocking(False)
        try:
            connected.connect(f"/proc/self/fd/{fd}")
        except BaseException:
            connected.close()
            raise
    finally:
        os.close(fd)
    return connected


def peer_pid(connected: socket.socket) -> int:
    """Return the process that listens at the other end; 0 when it is gone.

    The kernel notes it at ``listen()``, so that is who made the socket, whoever answers now. From Linux 6.5 on it
    cannot be a later process with the same number; before that, a process that went away and left its socket to
    another one could have had the number that a QEMU got afterwards.
    """
    try:
        pidfd = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # it is gone
            return 0
        return int(_PEERCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))[0])
    try:
        info = Path(f"/proc/self/fdinfo/{pidfd}").read_text("ascii")
    finally:
        os.close(pidfd)
    return max(0, next(int(line[4:]) for line in info.splitlines() if line.startswith("Pid:")))
