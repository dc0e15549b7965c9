# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting parties get the lock in rotation."""

from __future__ import annotations

import asyncio

from virt_dmem.ipc.fair_lock import FairLock


def test_the_lock_rotates_among_parties_also_when_one_gives_up() -> None:
    async def story() -> None:
        lock, had = FairLock(), []

        async def have(party: str, name: str) -> None:
            async with lock.of(party):
                had.append(name)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(have("a", f"a{number}")) for number in range(4)]
        tasks += [asyncio.create_task(have("b", "b0")), asyncio.create_task(have("c", "c0"))]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert had == ["a0", "b0", "c0", "a2", "a3"] or had == ["a0", "a2", "b0", "c0", "a3"]
        async with asyncio.timeout(60), lock.of("d"):
            pass

    asyncio.run(story())
