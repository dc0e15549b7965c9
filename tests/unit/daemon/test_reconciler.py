# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify what a reconciliation does in its two stages, counts, and reports as left; without domains of libvirt."""

from __future__ import annotations

import asyncio
import mmap
import re
from pathlib import Path

import pytest

from tests.rig.daemon_parts import hold_memory, parts_with_pools
from tests.rig.domain_documents import UUID
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.allocation.models import Phase
from virt_dmem.daemon.wiring import Components
from virt_dmem.errors import HypervisorError
from virt_dmem.pools import manage
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import MIB

UNREACHABLE = "qemu+unix:///system?socket=/nonexistent"


def unknown_file(parts: Components) -> Path:
    """Create a file in a pool that no domain has."""
    path = parts.config.pools_dir / "p/libvirt-other/pc.ram"
    path.parent.mkdir()
    path.write_bytes(b"x" * MIB)
    return path


def counted(parts: Components) -> dict[str, float]:
    """Return the corrections that the metrics count, by stage."""
    found = re.findall(r'reconcile\w*_total{stage="(\w+)"} (\S+)', parts.metrics.exposition().decode())
    return {stage: float(count) for stage, count in found}


@in_own_mount_namespace
def test_a_dry_run_names_what_a_run_then_does_in_both_stages_and_is_not_counted(tmp_path: Path) -> None:
    parts = parts_with_pools(tmp_path)

    async def story() -> None:
        await hold_memory(parts, Phase.RUNNING)
        unknown = unknown_file(parts)
        actions = await parts.reconciler.run(dry_run=True)
        assert actions == [
            f"remove {unknown}: no reservation has it",
            "free 1 MiB of vm: the domain is not running",
        ]
        assert unknown.exists()
        assert parts.ledger.find(UUID)
        assert counted(parts) == {"host": 0, "libvirt": 0}
        assert await parts.reconciler.run(dry_run=False) == actions
        assert not unknown.exists()
        assert parts.ledger.find(UUID) is None
        assert counted(parts) == {"host": 1, "libvirt": 1}
        assert await parts.reconciler.run(dry_run=False) == []
        await parts.close()

    asyncio.run(story())


@in_own_mount_namespace
def test_without_libvirt_the_first_stage_is_done_and_running_domains_are_kept(tmp_path: Path) -> None:
    parts = parts_with_pools(tmp_path, uri=UNREACHABLE)

    async def story() -> None:
        await hold_memory(parts, Phase.RUNNING)
        unknown = unknown_file(parts)
        with pytest.raises(HypervisorError):
            await parts.reconciler.run(dry_run=False)
        assert not unknown.exists()
        assert parts.ledger.find(UUID)
        await parts.close()

    asyncio.run(story())


@in_own_mount_namespace
def test_what_cannot_be_fixed_is_named_as_long_as_it_is_so(tmp_path: Path) -> None:
    parts = parts_with_pools(tmp_path)

    async def left() -> list[str]:
        actions = await parts.reconciler.run(dry_run=False)
        return [action for action in actions if action.startswith("leave as it is: ")]

    async def story() -> None:
        path = await hold_memory(parts, Phase.STOPPED)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
            for _ in range(2):
                (action,) = await left()
                assert f"A process still uses 1 MiB of pool p that belonged to domain {UUID}" in action
        assert await left() == []
        assert not path.exists()
        await parts.close()

    asyncio.run(story())


@in_own_mount_namespace
def test_a_pool_that_was_created_meanwhile_is_known_after_a_run(tmp_path: Path) -> None:
    parts = parts_with_pools(tmp_path)
    manage.create(parts.config, "new", sizes=MIB, backend="tmpfs")
    assert set(parts.inventory.free()) == {"p", "q"}
    asyncio.run(parts.reconciler.run(dry_run=True))
    assert set(parts.inventory.free()) == {"new", "p", "q"}


@in_own_mount_namespace
def test_memory_that_is_free_by_now_is_settled_and_a_pool_that_fails_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_with_pools(tmp_path)
    reclaim = parts.extents.reclaim
    settle = reclaim.settle

    async def failing(segment: SegmentId) -> None:
        if segment == "p":
            raise OSError("it cannot be scanned")
        await settle(segment)

    async def story() -> None:
        waiting = asyncio.create_task(parts.reconciler.wait_unsettled())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        for name in ("p", "q"):
            parts.inventory.withhold(SegmentId(name), MIB)
        reclaim.unsettled.set()
        await waiting
        monkeypatch.setattr(reclaim, "settle", failing)
        parts.alerts.changed.clear()
        await parts.reconciler.settle()
        assert set(parts.inventory.withheld()) == {"p"}
        assert parts.alerts.changed.is_set()
        assert [alert.subject for alert in parts.alerts.refresh()] == ["pool p"]
        monkeypatch.setattr(reclaim, "settle", settle)
        await parts.reconciler.settle()
        assert parts.inventory.withheld() == {}
        assert parts.alerts.refresh() == []
        assert not reclaim.unsettled.is_set(), "nothing is left to be settled"
        await parts.close()

    asyncio.run(story())
