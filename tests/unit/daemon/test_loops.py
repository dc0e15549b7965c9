# SPDX-License-Identifier: GPL-2.0-or-later
"""Loops of the daemon continue after an unexpected error."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from virt_dmem.config.schema import AdoptRule, Config, DaemonConfig
from virt_dmem.daemon import loops
from virt_dmem.daemon.loops import restart_on_error
from virt_dmem.daemon.wiring import build
from virt_dmem.runtime.aio import cancel_and_wait


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


def test_the_marks_of_rules_that_somebody_removes_are_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(
        daemon=DaemonConfig(state_dir=str(tmp_path), run_dir=str(tmp_path)), adopt=(AdoptRule(domain="lab-*"),)
    )
    parts = build(config)
    loops.restore_marks(parts)
    caplog.clear()
    loops.restore_marks(parts)
    assert caplog.text == ""
    for what in ("nothing", ""):
        (tmp_path / "adopt").write_text(what)
        loops.restore_marks(parts)
        assert (tmp_path / "adopt").read_text() == "<name>lab-\n"
    assert "changed by others; written again" in caplog.text
    asyncio.run(parts.close())
