# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel says who connected."""

from __future__ import annotations

import os
import socket

from virt_dmem.ipc.peer import credentials_of, uid_of


def test_who_connected_is_whom_the_kernel_names() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert credentials_of(one) == (os.getuid(), os.getgid())
        assert uid_of(other) == os.getuid()
