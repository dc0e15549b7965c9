# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of a segment: only its holder changes files, and what does not fit is evicted."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.prezero import ONE, PAGE, TWO, Rig
from virt_dmem.pools.prezeroed_files import Owner
from virt_dmem.pools.segment_id import SegmentId

P = SegmentId("p")


@in_own_mount_namespace
def test_one_at_a_time_changes_files(tmp_path: Path) -> None:
    cache = Rig(tmp_path).prezero.of(P)

    async def story() -> None:
        order = []

        async def change(name: str) -> None:
            async with cache:
                order.append(f"{name} begins")
                await asyncio.sleep(0.01)
                order.append(f"{name} ends")

        await asyncio.gather(change("one"), change("two"))
        assert order == ["one begins", "one ends", "two begins", "two ends"]

    asyncio.run(story())


@in_own_mount_namespace
def test_what_does_not_fit_is_evicted_and_a_new_scan_finds_the_same(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    cache = rig.prezero.of(P)

    async def story() -> None:
        for uuid in (ONE, TWO):
            assert cache.create("none", ((-1, 8 * PAGE),), Owner(uuid, "pc.ram"))
        while not all(extent.is_complete for extent in cache.extents()):
            await asyncio.sleep(0)
            assert await rig.worker._step() or cache.held()[-1] == 16 * PAGE
        async with cache:
            await cache.evict({-1: 11 * PAGE})
        assert cache.held() == {-1: 11 * PAGE}
        before = {extent.path for extent in cache.extents()}
        assert before == set(rig.mount.joinpath(".ready").iterdir())
        async with cache:
            await cache.invalidate()
        assert {extent.path for extent in cache.extents()} == before
        async with cache:
            await cache.clear()
        assert cache.extents() == []
        assert not cache.held().total()

    asyncio.run(story())
