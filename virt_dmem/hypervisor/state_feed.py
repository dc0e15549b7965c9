# SPDX-License-Identifier: GPL-2.0-or-later
"""Feed a saved domain to libvirt through a FIFO, and hold back QEMU's part of it until that may be read.

A QEMU that is to take over memory that is there already must be told so before it reads the saved stream, and
libvirt starts it and has it read in one call. So libvirt gets the name of a FIFO: its own part (header and XML) is
written as soon as it reads; what QEMU reads follows, but for its first byte, only when ``release`` was called.
Nothing depends on who is faster, and whenever the writer ends before, killed or not, QEMU finds the end of a stream
and gives up.

libvirt up to 11.1 opens the file once (``qemuSaveImageOpen``), later ones a second time, within milliseconds of
closing it the first time and with no hook called in between (``qemuSaveImageGetMetadata``; seen with 11.3). A FIFO
keeps what nobody has read, and does not tell one reader from the next: inotify(7) tells that one has closed it. So
nothing of QEMU's is in it until QEMU is about to start, and whoever opened it after another one gets all that is
libvirt's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
import termios
import threading
import time
from pathlib import Path

from virt_dmem.hypervisor.saved_state import SavedState

__all__ = ["StateFeed", "end_readers"]

_POLL_SECONDS = 0.01
_CHUNK_BYTES = 1 << 16
_BEGIN_SECONDS = 5.0
_FIRST_BYTES = 1
"""Of QEMU's own, not held back: it does not notice the end of a stream that has not begun
(``fd_start_incoming_migration`` in its migration/fd.c waits for G_IO_IN alone). It says nothing: four of them are
the magic number, and the capabilities are compared behind it."""
_IN_CLOSE_NOWRITE = 0x10
"""linux/inotify.h: a reader closed it; a writer's is another event."""
_INT = struct.Struct("i")
_libc = ctypes.CDLL(None, use_errno=True)


class StateFeed:
    """Write a saved domain to a FIFO, in a thread (``run``); all other methods return at once, or soon.

    :param source: The file that libvirt saved the domain to.
    :param fifo: The FIFO, which is created.

    :raise OSError: When it cannot be created or watched.
    """

    def __init__(self, source: Path, state: SavedState, fifo: Path) -> None:
        self._source = source
        self._state = state
        self._fifo = fifo
        self._begun = threading.Event()
        self._has_begun = threading.Event()
        self._released = threading.Event()
        self._aborted = threading.Event()
        self._finished = threading.Event()
        self.is_delivered = False
        """Whether all of it was read."""
        end_readers(fifo)
        os.mkfifo(fifo, 0o600)
        self._closings = _watched(fifo)

    def begin(self) -> None:
        """Let QEMU find a stream that has begun: from now on libvirt does not open the FIFO again.

        Returns when it has; for worker threads, while libvirt waits for the hook, before it starts QEMU.
        """
        self._begun.set()
        self._has_begun.wait(_BEGIN_SECONDS)

    def release(self) -> None:
        """Let QEMU read."""
        self._begun.set()
        self._released.set()

    def abort(self) -> None:
        """Let whoever reads find the end of the file, now and until ``finish``."""
        self._aborted.set()

    def finish(self) -> None:
        """End the thread: nobody will read any more."""
        self._finished.set()

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
            self._has_begun.set()
            os.close(self._closings)
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
        time.sleep(_POLL_SECONDS)
        return None

    def _serve(self, fd: int, source: int) -> None:
        """Write libvirt's part, then QEMU's, if it may be read before the reader closes the FIFO."""
        ours, held_back = self._state.prefix_bytes, self._state.prefix_bytes + _FIRST_BYTES
        _drain(self._closings)
        if not self._write(fd, source, 0, ours):
            return
        while not self._begun.is_set():
            if not self._goes_on(fd):
                return
            # another one may have opened it before it was seen that nobody did
            if _drain(self._closings) and (_unread(fd) or not self._write(fd, source, 0, ours)):
                return
            time.sleep(_POLL_SECONDS)
        if not self._write(fd, source, ours, held_back):
            return
        self._has_begun.set()
        while not self._released.is_set():
            if not self._goes_on(fd):
                return
            time.sleep(_POLL_SECONDS)
        size_bytes = os.fstat(source).st_size
        self.is_delivered = self._write(fd, source, held_back, size_bytes)

    def _goes_on(self, fd: int) -> bool:
        return not self._is_over() and not self._aborted.is_set() and _has_reader(fd)

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


def _watched(fifo: Path) -> int:
    """Return the file descriptor of an inotify instance that hears of each reader who closes the FIFO."""
    inotify: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if inotify < 0 or _libc.inotify_add_watch(inotify, os.fsencode(fifo), ctypes.c_uint32(_IN_CLOSE_NOWRITE)) < 0:
        number = ctypes.get_errno()
        if inotify >= 0:
            os.close(inotify)
        raise OSError(number, f"inotify: {os.strerror(number)}", str(fifo))
    return inotify


def _drain(inotify: int) -> bool:
    """Return whether a reader has closed the FIFO since the last time."""
    found = False
    with contextlib.suppress(BlockingIOError):
        while os.read(inotify, 4096):
            found = True
    return found


def _unread(fd: int) -> int:
    """Return how many bytes wait in the FIFO (FIONREAD in pipe(7))."""
    return int(_INT.unpack(fcntl.ioctl(fd, termios.FIONREAD, _INT.pack(0)))[0])


def end_readers(fifo: Path) -> None:
    """Remove a FIFO that an interrupted feed left; whoever waits for its content finds the end of it."""
    with contextlib.suppress(OSError):  # nobody waits, or there is none
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
    fifo.unlink(missing_ok=True)


def _has_reader(fd: int) -> bool:
    ready = select.poll()
    ready.register(fd, select.POLLOUT)
    return not any(event & select.POLLERR for _, event in ready.poll(0))
