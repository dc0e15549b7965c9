# SPDX-License-Identifier: GPL-2.0-or-later
"""A trigger of the kernel tells that tasks wait for memory; without one nothing is reported, and nothing fails."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import struct
import termios
from pathlib import Path

import pytest

from tests.rig.fake_tree import put
from virt_dmem.host import pressure
from virt_dmem.host.pressure import MemoryPressure


@pytest.mark.parametrize("there", [False, True], ids=["no PSI", "a file that cannot be waited for"])
def test_where_the_kernel_grants_none_waiting_just_ends(tmp_path: Path, there: bool) -> None:
    if there:
        put(tmp_path / "proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")

    async def story() -> None:
        watched = MemoryPressure(root=tmp_path)
        assert not watched.granted
        assert not await watched.wait(0.01)
        watched.close()

    asyncio.run(story())


def test_the_longer_trigger_is_asked_for_where_the_shorter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "memory")  # which can be waited for
    asked: list[bytes] = []

    def refuse_the_first(_file: int, text: bytes) -> int:
        asked.append(text)
        if len(asked) == 1:
            raise PermissionError
        return len(text)

    monkeypatch.setattr(pressure.os, "write", refuse_the_first)
    with select.epoll() as waiting:
        file = pressure._trigger(tmp_path / "memory", waiting)
        assert file is not None
        os.close(file)
    assert asked == [b"some 50000 500000\0", b"some 200000 2000000\0"]


def test_an_event_of_the_kernel_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal stands for the kernel's file: packet mode has the same kind of event, which can be caused."""
    controller, terminal = os.openpty()

    def trigger(_path: Path, waiting: select.epoll) -> int:
        file = os.dup(controller)
        waiting.register(file, select.EPOLLPRI)
        return file

    monkeypatch.setattr(pressure, "_trigger", trigger)
    _turn_on_packet_mode(controller)

    async def story() -> None:
        watched = MemoryPressure()
        assert watched.granted
        assert not await watched.wait(0.01)
        asyncio.get_running_loop().call_later(0.01, _flush, terminal)
        assert await watched.wait(30)
        os.read(controller, 1)
        await watched.wait(0)  # the kernel forgets its own event by itself
        assert not await watched.wait(0.01)
        watched.close()

    asyncio.run(story())
    os.close(controller)
    os.close(terminal)


def _turn_on_packet_mode(controller: int) -> None:
    fcntl.ioctl(controller, termios.TIOCPKT, struct.pack("i", 1))


def _flush(terminal: int) -> None:
    termios.tcflush(terminal, termios.TCIFLUSH)


@pytest.mark.skipif(not os.access("/proc/pressure/memory", os.W_OK), reason="no PSI, or not granted")
def test_the_kernel_grants_a_trigger() -> None:
    with select.epoll() as waiting:
        file = pressure._trigger(Path("/proc/pressure/memory"), waiting)
        assert file is not None
        os.close(file)
