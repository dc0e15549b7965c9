# SPDX-License-Identifier: GPL-2.0-or-later
"""Background work is stopped at once, at all or at one extent, and says what it will hold."""

from __future__ import annotations

import asyncio

from virt_dmem.allocation.prezero.job import BackgroundJob


def test_a_chunk_is_stopped_only_for_its_subject() -> None:
    async def story() -> None:
        job = BackgroundJob()
        chunk = job.start(asyncio.sleep(60), subject="mine", growth={0: 4096})
        assert job.is_running
        assert (job.started, job.growth()) == (1, {0: 4096})
        await job.stop("yours")
        assert not chunk.done()
        await job.stop("mine")
        assert chunk.cancelled()
        assert await job.wait(chunk) is None
        assert not job.is_running
        assert not job.growth()

    asyncio.run(story())


def test_the_result_of_a_chunk_is_returned_and_cancelling_its_waiter_stops_it() -> None:
    async def story() -> None:
        job = BackgroundJob()
        assert await job.wait(job.start(asyncio.sleep(0, "done"), growth={})) == "done"
        chunk = job.start(asyncio.sleep(60), growth={})
        waiting = asyncio.create_task(job.wait(chunk))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert chunk.cancelled()
        assert not job.is_running

    asyncio.run(story())


def test_pauses_add_up() -> None:
    job = BackgroundJob()
    job.pause()
    job.pause()
    job.resume()
    assert job.is_paused
    job.resume()
    assert not job.is_paused
