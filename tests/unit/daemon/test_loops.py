# SPDX-License-Identifier: GPL-2.0-or-later
"""Loops of the daemon continue after an unexpected error."""

from __future__ import annotations

import asyncio

import pytest

from virt_dmem.aio import cancel_and_wait
from virt_dmem.daemon import loops
from virt_dmem.daemon.loops import restart_on_error


def test_work_that_ends_by_a_bug_is_restarted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "RESTART_SECONDS", 0.01)
    begun = 0

    async def story() -> None:
        all_well = asyncio.Event()

        async def faulty() -> None:
            nonlocal begun
            begun += 1
            if begun < 3:
                raise ValueError("unforeseen")
            all_well.set()
            await asyncio.sleep(3600)

        task = asyncio.create_task(restart_on_error(faulty))
        async with asyncio.timeout(60):
            await all_well.wait()
        await cancel_and_wait([task])

    asyncio.run(story())
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "unforeseen" in caplog.text
