# SPDX-License-Identifier: GPL-2.0-or-later
"""Work that is cancelled, and ends all the same."""

from __future__ import annotations

import asyncio

import pytest

from virt_dmem.aio import uninterrupted


def test_work_on_files_is_not_left_half_done_by_a_cancelled_caller() -> None:
    steps = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        steps.append("done")

    async def cancelled() -> None:
        task = asyncio.create_task(uninterrupted(work()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        steps.append("cancelled")

    asyncio.run(cancelled())
    assert steps == ["done", "cancelled"]
