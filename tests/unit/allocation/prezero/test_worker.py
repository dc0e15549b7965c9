# SPDX-License-Identifier: GPL-2.0-or-later
"""The worker never delays a start or the destruction of a pool."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.prezero import ONE, PAGE, TWO, Rig, domain
from virt_dmem.allocation.models import Extent, ExtentState
from virt_dmem.host import kernel
from virt_dmem.pools import extent_files, prezeroed_files
from virt_dmem.pools.segment_id import SegmentId

P = SegmentId("p")


@in_own_mount_namespace
def test_in_a_pool_that_is_to_be_destroyed_no_earlier_target_is_begun(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def story() -> None:
        rig.prezero.set_domains([domain(ONE, 8)])
        await rig.prezero.update_targets()
        assert rig.prezero.targets()
        rig.inventory.retire("p", "somebody")
        await rig.prezero.quiesce()
        await asyncio.wait_for(rig.worker.run(), 60)

    asyncio.run(story())
    assert [path for path in rig.mount.rglob("*") if path.is_file()] == []


@in_own_mount_namespace
def test_a_start_gets_no_file_that_is_being_zeroed_or_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virt_dmem.allocation.prezero.worker._CHUNK", 2 * PAGE)
    rig = Rig(tmp_path)

    async def race() -> None:
        for uuid in (ONE, TWO):
            rig.release(uuid)
        zeroing = asyncio.create_task(rig.worker.run())
        await asyncio.sleep(0.15)  # into the second chunk or the third
        wanted = Extent(
            2, str(uuid4()), "pc.ram", P, extent_files.path_of(rig.mount, str(uuid4()), "pc.ram"), 8 * PAGE, PAGE,
            "none", ExtentState.PLANNED, kernel.boot_id(), "", {-1: 8 * PAGE},
        )  # fmt: skip
        zeroed = await rig.prezero.take([wanted])
        if zeroed:  # and now its guest writes
            wanted.path.write_bytes(b"g" * 8 * PAGE)
        await zeroing
        if zeroed:
            assert wanted.path.read_bytes() == b"g" * 8 * PAGE
            extent_files.remove(wanted.path)
        for extent in rig.prezero.of(P).extents():
            assert extent.path.read_bytes() == bytes(8 * PAGE)
            prezeroed_files.truncate(extent, 0)
        async with rig.prezero.of(P) as cache:
            await cache.invalidate()

    async def races() -> None:
        for _ in range(5):
            await race()

    asyncio.run(races())
    assert not rig.missed.exists()
