# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's processors and memory as they come and go. The only module that imports pyudev.

What the kernel itself says is listened to, not what udevd passes on: that would not reach a network namespace of
ours, and nothing is asked here that only udevd's rules know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyudev

__all__ = ["SETTLE_SECONDS", "watched"]

log = logging.getLogger(__name__)

SUBSYSTEMS = ("cpu", "memory", "node")
"""Below ``/sys/devices/system`` (cputopology, memory-hotplug and numaperf in the kernel's Documentation)."""
SETTLE_SECONDS = 1.0
"""Memory comes in blocks, each with a word of its own, and one terabyte has 512 of them or more."""


@contextmanager
def watched(on_change: Callable[[], None]) -> Iterator[None]:
    """Call ``on_change`` in the event loop soon after processors, memory or nodes were added, removed or switched.

    Where the host has no libudev, or the kernel lets nobody listen, the log says so, and it is never called.
    """
    try:
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        for subsystem in SUBSYSTEMS:
            monitor.filter_by(subsystem)
        monitor.start()
    except (ImportError, OSError) as error:
        log.warning("what changes of the host's processors and memory is not seen: %s", error)
        yield
        return
    loop = asyncio.get_running_loop()
    due: asyncio.TimerHandle | None = None

    def read() -> None:
        nonlocal due
        some = False
        try:
            while monitor.poll(timeout=0) is not None:
                some = True
        except OSError:  # more than there is room for
            some = True
        if some and (due is None or due.when() <= loop.time()):
            due = loop.call_later(SETTLE_SECONDS, on_change)

    loop.add_reader(monitor.fileno(), read)
    try:
        yield
    finally:
        loop.remove_reader(monitor.fileno())
        if due is not None:
            due.cancel()
