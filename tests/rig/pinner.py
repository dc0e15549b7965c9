# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a process that pins pages of a file without having it open or mapped, as after a QEMU was killed.

By vmsplice(2): a pipe holds a reference to each page. io_uring's fixed buffers, direct I/O and RDMA do the same.
``python -m tests.rig.pinner FILE OFFSET…`` pins them until it is ended, and prints a line when it has.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Pinner", "pinned"]

_BYTES = 4096
_SIZE_OF_PIPE = 1 << 20


class _Piece(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Pinner:
    """The process, with the first bytes of some pages of a file in its pipe."""

    def __init__(self, path: Path, offsets: list[int]) -> None:
        self._asked, ask = os.pipe()
        self.answers, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _pin(path, offsets, ask_from=self._asked, answer_to=answer)
            finally:
                os._exit(1)
        os.close(answer)
        os.close(self._asked)
        self._ask = ask
        assert os.read(self.answers, 6) == b"pinned"

    def read(self) -> bytes:
        """Return the current content of the pinned pages."""
        os.write(self._ask, b"r")
        found = b""
        while part := os.read(self.answers, 1 << 20):
            found += part
        return found

    def end(self) -> None:
        """Kill it, as the OOM killer would."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


def _pin(path: Path, offsets: list[int], *, ask_from: int, answer_to: int) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _SIZE_OF_PIPE)
    fd = os.open(path, os.O_RDWR)
    memory = mmap.mmap(fd, 0, mmap.MAP_SHARED)
    first = ctypes.c_char.from_buffer(memory)
    libc = ctypes.CDLL(None, use_errno=True)
    for offset in offsets:
        piece = _Piece(ctypes.addressof(first) + offset, _BYTES)
        if libc.vmsplice(writing, ctypes.byref(piece), ctypes.c_size_t(1), 0) != _BYTES:
            raise OSError(ctypes.get_errno(), "vmsplice")
    del first
    memory.close()
    os.close(fd)
    os.write(answer_to, b"pinned")
    if os.read(ask_from, 1) == b"r":
        os.set_blocking(reading, False)
        for _ in offsets:
            os.write(answer_to, os.read(reading, _BYTES))
        os.close(answer_to)
        signal.pause()


@contextmanager
def pinned(path: Path, offsets: list[int]) -> Iterator[Pinner]:
    """Pin pages of a file by a process, at offsets in bytes."""
    pinner = Pinner(path, offsets)
    try:
        yield pinner
    finally:
        pinner.end()


if __name__ == "__main__":
    with pinned(Path(sys.argv[1]), [int(offset) for offset in sys.argv[2:]]):
        print("pinned", flush=True)
        signal.pause()
