# SPDX-License-Identifier: GPL-2.0-or-later
"""Connect to unix sockets created by other users: without following links, and with the identity of the peer."""

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
    """Return a non-blocking connection to the socket at ``path``, which must not be a link.

    :raise OSError: When it does not exist, nothing listens, or its backlog is full.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConnectionRefusedError(f"{path} is not a socket")
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
    """Return the PID of the process that created the listening socket; 0 when it is gone.

    The kernel records it at ``listen()``, whichever process accepts now. From Linux 6.5 on it cannot be a later
    process with the same PID; before that, a process that exited and left its socket to another one could have
    had the PID that a QEMU got afterwards.
    """
    try:
        pidfd = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # the process is gone
            return 0
        return int(_PEERCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))[0])
    try:
        info = Path(f"/proc/self/fdinfo/{pidfd}").read_text("ascii")
    finally:
        os.close(pidfd)
    return max(0, next(int(line[4:]) for line in info.splitlines() if line.startswith("Pid:")))
