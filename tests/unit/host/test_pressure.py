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


def test_where_the_kernel_grants_none_waiting_just_ends(tmp_path: Path) -> None:
    async def story() -> None:
        watched = MemoryPressure(root=tmp_path)
        assert not watched.granted
        assert not await watched.wait(0.01)
        watched.close()

    asyncio.run(story())


def test_the_longer_trigger_is_asked_for_where_the_shorter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "proc/pressure/memory", "")
    asked: list[bytes] = []
    write = os.write

    def refuse_the_first(file: int, text: bytes) -> int:
        if text.startswith(b"some"):
            asked.append(text)
            if len(asked) == 1:
                raise PermissionError
        return write(file, text)

    monkeypatch.setattr(pressure.os, "write", refuse_the_first)
    file = pressure._trigger(tmp_path / "proc/pressure/memory")
    assert file is not None
    os.close(file)
    assert asked == [b"some 50000 500000\0", b"some 200000 2000000\0"]


def test_an_event_of_the_kernel_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal stands for the kernel's file: packet mode has the same kind of event, which can be caused."""
    controller, terminal = os.openpty()
    monkeypatch.setattr(pressure, "_trigger", lambda _path: os.dup(controller))
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


@pytest.mark.skipif(
    not os.access("/proc/pressure/memory", os.W_OK), reason="this kernel has no PSI, or grants none"
)
def test_the_kernel_grants_a_trigger() -> None:
    file = pressure._trigger(Path("/proc/pressure/memory"))
    assert file is not None
    waiting = select.poll()
    waiting.register(file, select.POLLPRI)
    assert not any(event & (select.POLLERR | select.POLLNVAL) for _, event in waiting.poll(0))
    os.close(file)
