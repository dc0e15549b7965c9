# SPDX-License-Identifier: GPL-2.0-or-later
"""Identify who connected to a unix socket, by SO_PEERCRED: as it was when it connected."""

from __future__ import annotations

import socket
import struct

__all__ = ["credentials_of", "uid_of"]

_PEERCRED = struct.Struct("3i")


def credentials_of(connected: socket.socket) -> tuple[int, int]:
    """Return the user and group of the caller."""
    _pid, uid, gid = _PEERCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return uid, gid


def uid_of(connected: socket.socket) -> int:
    """Return the user of the caller."""
    return credentials_of(connected)[0]
