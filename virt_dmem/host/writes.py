# SPDX-License-Identifier: GPL-2.0-or-later
"""Hear of writes to files of /proc and /sys at once, by inotify(7): for whoever also looks at them periodically.

The kernel reports writes by processes; what it changes by itself is not reported. Of a file in /proc, a write by
another mount of procfs, as in a container, may not be either.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["heard"]

log = logging.getLogger(__name__)

_IN_MODIFY = 0x2  # linux/inotify.h
_BUFFER = 65536


@contextmanager
def heard(paths: Iterable[Path]) -> Iterator[asyncio.Event]:
    """Set the event each time one of the files was written; those that are missing are left out.

    Where the kernel has no inotify, or no watch left, it is never set, and the log says so.
    """
    written = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        libc = ctypes.CDLL(None, use_errno=True)
        notify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if notify < 0:
            log.warning("writes to huge pages are noticed later: inotify: %s", os.strerror(ctypes.get_errno()))
            yield written
            return
        stack.callback(os.close, notify)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                # kept open: the kernel may otherwise forget the inode of a file in /proc, and the watch with it
                stack.callback(os.close, os.open(path, os.O_PATH | os.O_CLOEXEC))
                if libc.inotify_add_watch(notify, os.fsencode(path), _IN_MODIFY) < 0:
                    log.warning("writes to %s are noticed later: %s", path, os.strerror(ctypes.get_errno()))

        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                while os.read(notify, _BUFFER):
                    written.set()

        loop.add_reader(notify, read)
        stack.callback(loop.remove_reader, notify)
        yield written
