# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of the host's processors and memory, as the kernel sends them, and repeats them on request."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import pyudev

from virt_dmem.host import uevents

PROCESSOR = Path("/sys/devices/system/cpu/cpu0/uevent")
NO_PROCESSOR = Path("/sys/devices/virtual/net/lo/uevent")


async def until(calls: list[None], count: int) -> None:
    async with asyncio.timeout(60):
        while len(calls) < count:
            await asyncio.sleep(0.02)


@pytest.mark.alone
def test_a_change_is_reported_once_however_many_events_there_are_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.access(PROCESSOR, os.W_OK):
        pytest.skip(f"needs root and {PROCESSOR}")
    monkeypatch.setattr(uevents, "SETTLE_SECONDS", 0.05)
    calls: list[None] = []

    async def story() -> None:
        with uevents.watched(lambda: calls.append(None)):
            NO_PROCESSOR.write_text("change")
            await asyncio.sleep(0.3)
            assert not calls
            for count in (1, 2):
                for _ in range(50):
                    PROCESSOR.write_text("change")
                await until(calls, count)
                await asyncio.sleep(0.3)
                assert len(calls) == count
            monkeypatch.setattr(uevents, "SETTLE_SECONDS", 600)
            PROCESSOR.write_text("change")
            await asyncio.sleep(0.05)
        PROCESSOR.write_text("change")  # this one is not received, nor the one before
        await asyncio.sleep(1)
        assert len(calls) == 2

    asyncio.run(story())


def test_without_libudev_nothing_is_seen_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise ImportError("No library named udev")

    monkeypatch.setattr(pyudev, "Context", refuse)

    async def story() -> None:
        with uevents.watched(lambda: None):
            pass

    asyncio.run(story())
    assert "cannot be watched: No library named udev" in caplog.text
