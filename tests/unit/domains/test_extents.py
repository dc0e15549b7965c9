# SPDX-License-Identifier: GPL-2.0-or-later
"""Extents: removed when no process maps them, else quarantined and tried again."""

from __future__ import annotations

import asyncio
import mmap
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from virt_dmem.allocation.models import Phase
from virt_dmem.domains.extents import StepProgress
from virt_dmem.errors import ExtentError
from virt_dmem.runtime.attempts import Round


def ignore(_progress: StepProgress) -> None:
    """Report nothing."""


@in_own_mount_namespace
def test_an_extent_that_a_process_maps_is_quarantined_until_it_does_no_more(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    asyncio.run(parts.hooks.prepare(memory(MIB, MIB), ignore))
    mapped, other = parts.held().extents
    with mapped.path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert not asyncio.run(parts.extents.remove(mapped))
        asyncio.run(parts.extents.release(parts.held()))
        assert not other.path.exists()
        assert [extent.path for extent in parts.ledger.quarantined()] == [mapped.path]
        assert asyncio.run(parts.extents.retry_quarantined(Round())) == []
    assert [extent.path for extent in asyncio.run(parts.extents.retry_quarantined(Round()))] == [mapped.path]
    assert not mapped.path.exists()
    assert not parts.ledger.reserved()


@in_own_mount_namespace
def test_an_abandoned_domain_is_released_unless_it_changed_or_is_served(tmp_path: Path) -> None:
    parts = Parts(tmp_path)

    async def story() -> None:
        await parts.hooks.prepare(memory(MIB), ignore)
        seen = parts.held()
        async with parts.extents.lock(UUID):
            assert parts.extents.is_locked(UUID)
            await parts.extents.release_abandoned(seen)
        assert not parts.extents.is_locked(UUID)
        parts.ledger.set_phase(UUID, Phase.LINKED)
        await parts.extents.release_abandoned(seen)
        assert parts.held()
        await parts.extents.release_abandoned(parts.held())
        assert parts.ledger.find(UUID) is None

    asyncio.run(story())


@in_own_mount_namespace
def test_an_empty_extent_has_its_size_and_no_memory_and_no_file_is_created_below_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(tmp_path)
    asyncio.run(parts.hooks.prepare(memory(MIB), ignore))
    parts.ledger.set_phase(UUID, Phase.RUNNING)
    more = memory(MIB, 2 * MIB)
    (extent,) = asyncio.run(parts.admission.reserve_more(replace(more, cells=more.cells[1:])))
    asyncio.run(parts.extents.create_empty(extent))
    found = extent.path.stat()
    assert (found.st_size, found.st_blocks) == (2 * MIB, 0)
    asyncio.run(parts.extents.populate(extent, ignore))
    assert extent.path.stat().st_blocks * 512 == 2 * MIB
    elsewhere = msgspec.structs.replace(parts.extents._inventory.record(extent.segment), mount=str(tmp_path))
    monkeypatch.setattr(parts.extents._inventory, "record", lambda _segment: elsewhere)
    with pytest.raises(ExtentError, match=r"Pool p, .* is not mounted any more"):
        asyncio.run(parts.extents.create_empty(extent))
