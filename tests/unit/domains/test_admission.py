# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify which domains and devices get memory of a pool, where their files lie, and what a refusal says."""

from __future__ import annotations

import asyncio
import mmap
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from virt_dmem.allocation.models import Phase
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains.extents import StepProgress
from virt_dmem.errors import NotEnoughMemory, PoolDraining
from virt_dmem.pools.segment_id import SegmentId

OTHER, SMALL = (f"{number}1111111-edaf-9455-926a-d65c16db1809" for number in (1, 2))


def ignore(_progress: StepProgress) -> None:
    """Report nothing."""


def another(size_bytes: int, uuid: str = OTHER) -> DomainMemory:
    """Return a domain beside the one of ``memory``."""
    return replace(memory(size_bytes), uuid=uuid, name="other")


@in_own_mount_namespace
def test_a_refusal_names_the_largest_domain_and_memory_that_is_not_free_until_it_is(tmp_path: Path) -> None:
    """A file that has no name and is open uses memory of the pool, as a pinned page does."""
    parts = Parts(tmp_path)

    async def story() -> None:
        await parts.admission.reserve(another(MIB, SMALL))
        await parts.admission.reserve(memory(20 * MIB))
        with (parts.config.pools_dir / "p" / "unlinked").open("w+b") as file:
            file.write(b"x" * 30 * MIB)
            file.flush()
            (parts.config.pools_dir / "p" / "unlinked").unlink()
            parts.operations.inventory.withhold(SegmentId("p"), 44 * MIB)
            with pytest.raises(NotEnoughMemory) as caught:
                await parts.admission.reserve(another(20 * MIB))
            assert "vm holds the most, 20 MiB." in caught.value.hint
            assert "30 MiB of p belong to no domain and are not free" in caught.value.hint
            assert parts.ledger.find(OTHER) is None
        assert (await parts.admission.reserve(another(20 * MIB))).size_bytes == 20 * MIB

    asyncio.run(story())


@in_own_mount_namespace
def test_a_draining_pool_gives_nothing_whether_the_domain_names_it_or_not(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.operations.inventory.drain("p")
    for pool in ("p", ""):
        with pytest.raises(PoolDraining, match="Pool p is draining"):
            asyncio.run(parts.admission.reserve(replace(memory(MIB), pool=pool)))
    assert parts.ledger.find(UUID) is None


@in_own_mount_namespace
def test_devices_of_a_running_domain_are_charged_all_or_none(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    asyncio.run(parts.admission.reserve(memory(MIB)))
    parts.ledger.set_phase(UUID, Phase.RUNNING)
    wanted = memory(MIB, 2 * MIB, 62 * MIB)
    with pytest.raises(NotEnoughMemory):
        asyncio.run(parts.admission.reserve_more(replace(wanted, cells=wanted.cells[1:])))
    assert parts.held().size_bytes == MIB
    (extent,) = asyncio.run(parts.admission.reserve_more(replace(wanted, cells=wanted.cells[1:2])))
    assert (extent.alias, extent.path.name) == ("ram-node1", "ram-node1")
    assert parts.held().size_bytes == 3 * MIB
    assert parts.held().phase is Phase.RUNNING


@in_own_mount_namespace
def test_another_extent_gets_a_path_that_no_quarantined_one_has(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    asyncio.run(parts.hooks.prepare(memory(MIB), ignore))
    (mapped,) = parts.held().extents
    with mapped.path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        asyncio.run(parts.hooks.release(UUID))
        asyncio.run(parts.hooks.prepare(memory(MIB), ignore))
        (extent,) = parts.held().extents
        assert extent.path == mapped.path.with_name("ram-node0+1")
