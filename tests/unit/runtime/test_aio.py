# SPDX-License-Identifier: GPL-2.0-or-later
"""Work that is cancelled and ends all the same, and work that threads have done in the event loop."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from virt_dmem.runtime.aio import in_loop, uninterrupted


def test_what_a_worker_thread_has_done_in_the_loop_is_done_there_and_its_error_is_the_threads() -> None:
    def fails() -> None:
        raise OSError("disk full")

    async def story() -> None:
        assert await asyncio.to_thread(in_loop(threading.current_thread)) is threading.current_thread()
        with pytest.raises(OSError, match="disk full"):
            await asyncio.to_thread(in_loop(fails))

    asyncio.run(story())


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


def test_an_error_of_work_whose_caller_is_gone_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    unread = []

    async def work() -> None:
        await asyncio.sleep(0.02)
        raise OSError("disk full")

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, said: unread.append(said))
        with pytest.raises(OSError, match="disk full"):
            await uninterrupted(work())
        task = asyncio.create_task(uninterrupted(work()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()

    asyncio.run(story())
    assert not unread
    assert [record.getMessage() for record in caplog.records] == [
        "what was cancelled meanwhile failed, too: disk full"
    ]


def test_work_that_does_not_end_is_cancelled_some_time_after_its_caller() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")

    async def story() -> None:
        task = asyncio.create_task(uninterrupted(work(), 0.05))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert ended == ["cancelled"]

    asyncio.run(story())
