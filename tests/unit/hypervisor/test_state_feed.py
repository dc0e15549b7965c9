# SPDX-License-Identifier: GPL-2.0-or-later
"""Nobody reads what is QEMU's before it is released, and whoever reads when it is over finds the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rig.processes import wait_for
from virt_dmem.hypervisor.saved_state import SavedState
from virt_dmem.hypervisor.state_feed import StateFeed, end_readers

OURS = b"header and XML of libvirt" * 8000
THEIRS = b"stream of QEMU" * 8000
"""More than a pipe holds, both."""


@contextmanager
def feeding(directory: Path) -> Iterator[tuple[StateFeed, Path]]:
    source, fifo = directory / "guest.state", directory / "guest.fifo"
    source.write_bytes(OURS + THEIRS)
    feed = StateFeed(source, SavedState(len(OURS), True, b""), fifo)
    thread = threading.Thread(target=feed.run)
    thread.start()
    try:
        yield feed, fifo
    finally:
        feed.finish()
        thread.join(30)
    assert not thread.is_alive()
    assert not fifo.exists()


def read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data


def nothing_to_read(fd: int) -> bool:
    """Return whether there is nothing, and it is not the end yet."""
    os.set_blocking(fd, False)
    time.sleep(0.1)
    try:
        return os.read(fd, 1) is None
    except BlockingIOError:
        return True
    finally:
        os.set_blocking(fd, True)


def test_nothing_of_qemu_is_read_before_it_is_released(tmp_path: Path) -> None:
    with feeding(tmp_path) as (feed, fifo):
        assert fifo.stat().st_mode & 0o777 == 0o600
        fd = os.open(fifo, os.O_RDONLY)
        assert read(fd, len(OURS)) == OURS
        assert nothing_to_read(fd)
        feed.begin()
        assert read(fd, 1) == THEIRS[:1]
        assert nothing_to_read(fd)
        feed.release()
        assert read(fd, len(THEIRS) + 1) == THEIRS[1:]
        os.close(fd)
        wait_for("the feed to know", lambda: feed.is_delivered)


@pytest.mark.parametrize("pause_seconds", [0.0, 0.002, 0.1])
def test_a_reader_that_comes_back_gets_all_of_it_again(tmp_path: Path, pause_seconds: float) -> None:
    """As libvirt from 11.2 on: it may be faster than anyone can see that nobody reads."""
    with feeding(tmp_path) as (feed, fifo):
        for _ in range(20):
            first = os.open(fifo, os.O_RDONLY)
            assert read(first, len(OURS)) == OURS
            os.close(first)
            time.sleep(pause_seconds)
        second = os.open(fifo, os.O_RDONLY)
        assert read(second, len(OURS)) == OURS
        feed.begin()
        feed.release()
        assert read(second, len(THEIRS) + 1) == THEIRS
        os.close(second)


def test_readers_find_the_end_after_an_abort(tmp_path: Path) -> None:
    with feeding(tmp_path) as (feed, fifo):
        fd = os.open(fifo, os.O_RDONLY)
        assert read(fd, len(OURS)) == OURS
        feed.begin()
        assert read(fd, 1) == THEIRS[:1]
        feed.abort()
        assert os.read(fd, 1) == b""
        os.close(fd)
        late = os.open(fifo, os.O_RDONLY)
        assert read(late, 10) == b""
        os.close(late)
        assert not feed.is_delivered


def test_a_fifo_that_was_left_keeps_nobody_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "guest.fifo"
    os.mkfifo(fifo)
    end_readers(fifo)
    assert not fifo.exists()
    end_readers(fifo)
    os.mkfifo(fifo)
    ended = threading.Event()

    def wait_for_content() -> None:
        fd = os.open(fifo, os.O_RDONLY)
        os.read(fd, 1)
        os.close(fd)
        ended.set()

    thread = threading.Thread(target=wait_for_content)
    thread.start()
    while not ended.wait(0.05):  # it may not have opened it yet
        if fifo.exists():
            end_readers(fifo)
            if not ended.wait(0.2):
                os.mkfifo(fifo)
    thread.join()
