# SPDX-License-Identifier: GPL-2.0-or-later
"""How virt-dmemd ends."""

from __future__ import annotations

import asyncio

import pytest

from virt_dmem.daemon import in_good_order
from virt_dmem.ipc.server import Work
from virt_dmem.tasks import cancelled


def test_what_goes_on_is_ended_and_what_does_not_end_is_named_and_left(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        rolled_back, let_go = asyncio.Event(), asyncio.Event()

        async def interrupted() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                rolled_back.set()

        async def stubborn() -> None:
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue

        begun = [asyncio.create_task(interrupted()), asyncio.create_task(stubborn())]
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await in_good_order(cancelled(begun[:1]), cancelled(begun[1:]), asyncio.sleep(0), seconds=0.5)
        assert rolled_back.is_set()
        assert [task.done() for task in begun] == [True, False]
        let_go.set()
        await begun[1]

    asyncio.run(story())
    (said,) = [record.message for record in caplog.records if "mended" in record.message]
    assert "stubborn" in said


def test_what_is_asked_of_one_that_ends_is_never_begun() -> None:
    begun = []

    async def prepare() -> None:
        begun.append(True)

    async def story() -> None:
        work = Work()
        await work.begin(prepare())
        await work.give_up()
        with pytest.raises(asyncio.CancelledError):
            await work.begin(prepare())

    asyncio.run(story())
    assert begun == [True]
