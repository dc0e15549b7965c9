# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the kernel's log, /dev/kmsg (``Documentation/ABI/testing/dev-kmsg`` of Linux)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from virt_dmem.host.kernel import ROOT

__all__ = ["following", "messages"]

_RECORD = 8192  # CONSOLE_EXT_LOG_MAX: a smaller read() fails


def messages(*, root: Path = ROOT) -> list[str]:
    """Return the messages that the log still has, oldest first; none where this user may not read it."""
    with _opened(root) as fd:
        return _read(fd)


@contextmanager
def following(*, root: Path = ROOT) -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns the messages since then; none where this user may not read the log."""
    with _opened(root) as fd:
        if fd is not None:
            os.lseek(fd, 0, os.SEEK_END)
        yield lambda: _read(fd)


@contextmanager
def _opened(root: Path) -> Iterator[int | None]:
    try:
        fd = os.open(root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _read(fd: int | None) -> list[str]:
    """Return the messages of the records from here on: ``PRIORITY,NUMBER,TIME,FLAGS;MESSAGE``, then details."""
    found = b""
    while fd is not None:
        try:
            record = os.read(fd, _RECORD)
        except BrokenPipeError:  # it was overwritten meanwhile; the next read is of the oldest that is left
            continue
        except OSError:
            break
        if not record:
            break
        found += record
    lines = (line for line in found.decode("utf-8", "replace").splitlines() if line and line[0] != " ")
    return [line.partition(";")[2] for line in lines]
