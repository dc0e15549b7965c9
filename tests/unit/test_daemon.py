# SPDX-License-Identifier: GPL-2.0-or-later
"""How virt-dmemd ends, and what it says in its log."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from virt_dmem import daemon
from virt_dmem.daemon import for_ever, in_good_order
from virt_dmem.ipc.server import Work
from virt_dmem.tasks import cancelled

REPOSITORY = Path(__file__).parents[2]


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
        async with asyncio.timeout(60):
            await in_good_order(cancelled(begun[:1]), cancelled(begun[1:]), asyncio.sleep(0), seconds=0.5)
        assert rolled_back.is_set()
        assert [task.done() for task in begun] == [True, False]
        let_go.set()
        await begun[1]

    asyncio.run(story())
    (said,) = [record.message for record in caplog.records if "mended" in record.message]
    assert "stubborn" in said


def test_work_that_ends_by_a_fault_of_ours_is_begun_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "AGAIN_SECONDS", 0.01)
    begun = 0

    async def story() -> None:
        all_well = asyncio.Event()

        async def faulty() -> None:
            nonlocal begun
            begun += 1
            if begun < 3:
                raise ValueError("nobody foresaw this")
            all_well.set()
            await asyncio.sleep(3600)

        task = asyncio.create_task(for_ever(faulty))
        async with asyncio.timeout(60):
            await all_well.wait()
        await cancelled([task])

    asyncio.run(story())
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "nobody foresaw this" in caplog.text


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


@pytest.mark.parametrize("journal", [False, True], ids=["terminal", "journal"])
def test_a_name_cannot_drive_who_reads_the_log_nor_write_lines_of_its_own(journal: bool) -> None:
    program = f"""
        import logging, os, sys
        os.environ.pop("JOURNAL_STREAM", None)
        if {journal}:
            os.environ["JOURNAL_STREAM"] = "1:1"
        from virt_dmem.daemon import _set_up_logging
        _set_up_logging("info")
        name = "a\\x9b2J\\u202eb\\n<0>all is lost\\r\\x1b[2Jé" + "n" * 1_000_000
        logging.getLogger("x").warning("%s: prepared", name)
        try:
            raise ValueError(name[:50])
        except ValueError:
            logging.getLogger("x").exception("failed")
        raise ValueError(name[:50])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=False, cwd=REPOSITORY
    )
    said = done.stderr.decode()
    assert [c for c in said if not c.isprintable() and c != "\n"] == []
    assert len(said) < 50_000
    assert "é" in said
    lines = said.splitlines()
    assert "prepared" not in lines[0]  # it is cut
    if journal:
        assert {line[:3] for line in lines} == {"<4>", "<3>", "<2>"}
    assert not any(line.startswith(("<0>", "all is lost")) for line in lines)
