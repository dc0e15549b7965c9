# SPDX-License-Identifier: GPL-2.0-or-later
"""How virt-dmemd shuts down."""

from __future__ import annotations

import asyncio

import pytest

from virt_dmem.aio import cancel_and_wait
from virt_dmem.daemon.main import shut_down


def test_tasks_are_cancelled_and_one_that_does_not_end_is_named_and_left(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        rolled_back, released = asyncio.Event(), asyncio.Event()

        async def interrupted() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                rolled_back.set()

        async def stubborn() -> None:
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue

        begun = [asyncio.create_task(interrupted()), asyncio.create_task(stubborn())]
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await shut_down(cancel_and_wait(begun[:1]), cancel_and_wait(begun[1:]), asyncio.sleep(0), seconds=0.5)
        assert rolled_back.is_set()
        assert [task.done() for task in begun] == [True, False]
        released.set()
        await begun[1]

    asyncio.run(story())
    (said,) = [record.message for record in caplog.records if "timed out" in record.message]
    assert "stubborn" in said
