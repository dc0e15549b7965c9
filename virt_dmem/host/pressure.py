# SPDX-License-Identifier: GPL-2.0-or-later
"""Wait until tasks of the host wait for memory: a trigger of the kernel (Documentation/accounting/psi.rst)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from pathlib import Path

from virt_dmem.host.kernel import ROOT

__all__ = ["MemoryPressure"]

_TRIGGERS = ("some 50000 500000", "some 200000 2000000")
"""10 % within half a second; or, without CAP_SYS_RESOURCE (since Linux 6.4), within two: microseconds both."""


class MemoryPressure:
    """Hold a trigger on ``/proc/pressure/memory``, where the kernel grants one.

    :ivar granted: Whether it does: without it, averages have to be looked at instead (``kernel.pressure``).
    """

    def __init__(self, *, root: Path = ROOT) -> None:
        self._event = asyncio.Event()
        self._epoll = select.epoll()
        self._file = _trigger(root / "proc/pressure/memory", self._epoll)
        self.granted = self._file is not None
        if self.granted:
            # the kernel forgets an event when it reports it: that the loop was woken is all there is
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._event.set)

    async def wait(self, seconds: float) -> bool:
        """Return whether tasks waited for memory, as soon as they do, or after ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        met = self._event.is_set()
        self._event.clear()
        return met

    def close(self) -> None:
        """Give the trigger up."""
        if self._file is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            os.close(self._file)
            self._file = None
        self._epoll.close()


def _trigger(path: Path, waiting: select.epoll) -> int | None:
    """Register a file with a trigger, and return it; ``None``: the kernel has none, or grants this process none."""
    for trigger in _TRIGGERS:
        file = -1
        try:
            file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
            os.write(file, trigger.encode() + b"\0")
            waiting.register(file, select.EPOLLPRI)  # for nothing else: it is always readable
        except OSError:
            if file >= 0:
                os.close(file)
        else:
            return file
    return None
