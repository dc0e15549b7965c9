# SPDX-License-Identifier: GPL-2.0-or-later
"""Hook operations: prepared whole or not at all, in their order, and released."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from virt_dmem.allocation.models import Extent, ExtentState, Phase
from virt_dmem.domains.extents import StepProgress
from virt_dmem.errors import ExtentError, NotEnoughMemory, NotRewritten, PrefaultFailed


def ignore(_progress: StepProgress) -> None:
    """Report nothing."""


@in_own_mount_namespace
def test_a_prepared_domain_has_all_its_memory_and_releases_it(tmp_path: Path) -> None:
    parts, reports = Parts(tmp_path), []
    asyncio.run(parts.hooks.prepare(memory(MIB, 2 * MIB), reports.append))
    held = parts.held()
    assert held.phase is Phase.PREPARED
    assert [extent.state for extent in held.extents] == [ExtentState.POPULATED] * 2
    assert [extent.path.stat().st_blocks * 512 for extent in held.extents] == [MIB, 2 * MIB]
    assert reports[-1].total_bytes == 3 * MIB
    assert [step.step for step in parts.ledger.steps(UUID)][-1] == "prepare"
    asyncio.run(parts.hooks.stopped(UUID))
    assert parts.held().phase is Phase.STOPPED
    asyncio.run(parts.hooks.release(UUID))
    assert parts.ledger.find(UUID) is None
    assert not [extent for extent in held.extents if extent.path.exists()]


@in_own_mount_namespace
def test_a_domain_that_is_not_rewritten_or_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    with pytest.raises(NotRewritten, match="not rewritten"):
        asyncio.run(parts.hooks.prepare(memory(MIB, applied=False), ignore))
    with pytest.raises(NotEnoughMemory):
        asyncio.run(parts.hooks.prepare(memory(65 * MIB), ignore))
    assert parts.ledger.find(UUID) is None


@in_own_mount_namespace
def test_a_prepare_that_fails_half_way_is_rolled_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(tmp_path)
    populate = parts.extents.populate

    async def fail_at_second(extent: Extent, *args: object, **options: object) -> None:
        if extent.alias == "ram-node1":
            raise PrefaultFailed("no memory", hint="")
        await populate(extent, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(parts.extents, "populate", fail_at_second)
    with pytest.raises(PrefaultFailed):
        asyncio.run(parts.hooks.prepare(memory(MIB, MIB), ignore))
    assert parts.ledger.find(UUID) is None
    assert not parts.ledger.reserved()
    assert not list((parts.config.pools_dir / "p").glob("libvirt-*/*"))


@in_own_mount_namespace
def test_an_operation_out_of_order_is_refused(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    with pytest.raises(ExtentError, match="has no reservation"):
        asyncio.run(parts.hooks.start(memory(MIB)))
    asyncio.run(parts.hooks.prepare(memory(MIB), ignore))
    with pytest.raises(ExtentError, match="is prepared, and this operation needs it linked"):
        asyncio.run(parts.hooks.started(memory(MIB)))
    with pytest.raises(ExtentError, match="with memory backends"):
        asyncio.run(parts.hooks.start(memory(2 * MIB)))


@in_own_mount_namespace
def test_a_reservation_left_over_from_an_interrupted_start_is_replaced(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    asyncio.run(parts.hooks.prepare(memory(40 * MIB), ignore))
    asyncio.run(parts.hooks.prepare(memory(41 * MIB), ignore))
    assert parts.held().size_bytes == 41 * MIB
