# SPDX-License-Identifier: GPL-2.0-or-later
"""Feed a saved domain to libvirt through a FIFO, and hold back QEMU's part of it until that may be read.

A QEMU that is to take over memory that is there already must be told so before it reads the saved stream, and
libvirt starts it and has it read in one call. So libvirt gets the name of a FIFO: its own part (header and XML) is
written as soon as it reads; what QEMU reads follows, but for its first byte, only when ``release`` was called.
Nothing depends on who is faster, and whenever the writer ends before, killed or not, QEMU finds the end of a stream
and gives up.

libvirt up to 11.1 opens the file once (``qemuSaveImageOpen``), later ones a second time after they have called the
hook with ``restore`` (``qemuSaveImageGetMetadata``): see ``note_hook``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from pathlib import Path

from virt_dmem.hypervisor.saved_state import SavedState

__all__ = ["StateFeed", "end_readers"]

_POLL_SECONDS = 0.01
_CHUNK_BYTES = 1 << 16
_FIRST_BYTES = 1
"""Of QEMU's own, not held back: it does not notice the end of a stream that has not begun
(``fd_start_incoming_migration`` in its migration/fd.c waits for G_IO_IN alone). It says nothing: four of them are
the magic number, and the capabilities are compared behind it."""


class StateFeed:
    """Write a saved domain to a FIFO, in a thread (``run``); all other methods return at once, or soon.

    :param source: The file that libvirt saved the domain to.
    :param fifo: The FIFO, which is created.
    """

    def __init__(self, source: Path, state: SavedState, fifo: Path) -> None:
        self._source = source
        self._state = state
        self._fifo = fifo
        self._released = threading.Event()
        self._aborted = threading.Event()
        self._finished = threading.Event()
        self._looked = threading.Event()
        self.is_delivered = False
        """Whether all of it was read."""
        end_readers(fifo)
        os.mkfifo(fifo, 0o600)

    def release(self) -> None:
        """Let QEMU read."""
        self._released.set()

    def abort(self) -> None:
        """Let whoever reads find the end of the file, now and until ``finish``."""
        self._aborted.set()

    def finish(self) -> None:
        """End the thread: nobody will read any more."""
        self._finished.set()

    def note_hook(self) -> None:
        """Wait until the thread has seen whether libvirt has closed the FIFO; for worker threads.

        While libvirt waits for the hook it does not open it again: so the second reader is not taken for the first.
        """
        self._looked.clear()
        self._looked.wait(5.0)

    def run(self) -> None:
        """Write to each reader, one after another, until ``finish``; then remove the FIFO."""
        try:
            with self._source.open("rb", buffering=0) as source:
                while not self._is_over():
                    fd = self._wait_for_reader()
                    if fd is None:
                        continue
                    try:
                        if not self.is_delivered:  # else it is still the reader who has all of it
                            self._serve(fd, source.fileno())
                    except BrokenPipeError:  # it closed the FIFO
                        pass
                    finally:
                        os.close(fd)
        finally:
            with contextlib.suppress(OSError):
                self._fifo.unlink()

    def _is_over(self) -> bool:
        return self._finished.is_set()

    def _wait_for_reader(self) -> int | None:
        """Return the FIFO, open for writing, once somebody reads."""
        try:
            return os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        self._looked.set()
        time.sleep(_POLL_SECONDS)
        return None

    def _serve(self, fd: int, source: int) -> None:
        """Write libvirt's part, then QEMU's, if it may be read before the reader closes the FIFO."""
        held_back = self._state.prefix_bytes + _FIRST_BYTES
        if not self._write(fd, source, 0, held_back):
            return
        while not self._released.is_set():
            if self._is_over() or self._aborted.is_set() or not _has_reader(fd):
                return
            self._looked.set()
            time.sleep(_POLL_SECONDS)
        size_bytes = os.fstat(source).st_size
        self.is_delivered = self._write(fd, source, held_back, size_bytes)

    def _write(self, fd: int, source: int, offset: int, end: int) -> bool:
        """Write a part of the file; return whether all of it was written."""
        ready = select.poll()
        ready.register(fd, select.POLLOUT)
        while offset < end:
            data = os.pread(source, min(_CHUNK_BYTES, end - offset), offset)
            if not data or self._is_over() or self._aborted.is_set():
                return False
            with contextlib.suppress(BlockingIOError):
                offset += os.write(fd, data)
                continue
            ready.poll(1000 * _POLL_SECONDS)
        return True


def end_readers(fifo: Path) -> None:
    """Remove a FIFO that an interrupted feed left; whoever waits for its content finds the end of it."""
    with contextlib.suppress(OSError):  # nobody waits, or there is none
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
    fifo.unlink(missing_ok=True)


def _has_reader(fd: int) -> bool:
    ready = select.poll()
    ready.register(fd, select.POLLOUT)
    return not any(event & select.POLLERR for _, event in ready.poll(0))
