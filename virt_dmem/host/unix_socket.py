# SPDX-License-Identifier: GPL-2.0-or-later
"""Connect to unix sockets created by other users: without following links, and with the identity of the peer."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path

from virt_dmem.host import dirfd
from virt_dmem.host.kernel import ROOT

__all__ = ["bound_paths", "connect", "peer_pid", "remove_dead"]

_SO_PEERPIDFD = 77
"""Linux 6.5, asm-generic/socket.h; Python has no name for it yet."""
_PEERCRED = struct.Struct("3i")


def connect(path: Path) -> socket.socket:
    """Return a non-blocking connection to the socket at ``path``, which must not be a link.

    :raise OSError: When it does not exist, nothing listens, or its backlog is full.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _connect(fd, path)
    finally:
        os.close(fd)


def _connect(fd: int, path: Path | str) -> socket.socket:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise OSError(errno.ENOTSOCK, "It is not a socket", str(path))
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.setblocking(False)
    try:
        connected.connect(f"/proc/self/fd/{fd}")
    except BaseException:
        connected.close()
        raise
    return connected


def remove_dead(name: str, at: int, *, dry_run: bool = False) -> bool:
    """Remove a socket in an open directory, and nothing else, if nobody listens on it; return whether it is gone.

    ``dry_run``: return whether it would be removed.
    """
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        try:
            _connect(fd, name).close()
            return False
        except ConnectionRefusedError:
            before, now = os.fstat(fd), dirfd.status(name, at)
        finally:
            os.close(fd)
        if now is None or (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):  # QEMU replaced it
            return False
        if not dry_run:
            os.unlink(name, dir_fd=at)
    except OSError:
        return False
    return True


def bound_paths(*, root: Path = ROOT) -> set[str]:
    """Return the paths that sockets of this network namespace are bound to, listening or not yet."""
    lines = (root / "proc/net/unix").read_bytes().splitlines()[1:]
    return {os.fsdecode(fields[7]) for line in lines if len(fields := line.split(None, 7)) == 8}


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
