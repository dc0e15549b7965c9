# SPDX-License-Identifier: GPL-2.0-or-later
"""Speak systemd's notification protocol (sd_notify(3)): datagrams to ``$NOTIFY_SOCKET``."""

from __future__ import annotations

import os
import socket

__all__ = ["notify", "watchdog_seconds"]


def notify(state: str) -> None:
    """Notify systemd of a change of state; do nothing without systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.sendall(state.encode())


def watchdog_seconds() -> float:
    """Return the interval of systemd's watchdog (sd_watchdog_enabled(3)); 0: it is disabled."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
