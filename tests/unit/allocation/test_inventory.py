# SPDX-License-Identifier: GPL-2.0-or-later
"""Reloaded records update the free memory, and retired pools remain retired."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.plans import PAGE, make_plan, paths_of
from virt_dmem.allocation.plan import NO_NODE
from virt_dmem.config.schema import Config, DaemonConfig, LibvirtConfig
from virt_dmem.daemon.wiring import build
from virt_dmem.errors import NotEnoughMemory
from virt_dmem.pools import manage

MIB = 1 << 20


@in_own_mount_namespace
def test_a_pool_that_is_being_destroyed_gives_no_memory_whatever_is_done_with_another(tmp_path: Path) -> None:
    config = Config(
        daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")),
        libvirt=LibvirtConfig(uri="test:///default", run_dir=str(tmp_path)),
    )
    for name in ("goes", "stays"):
        manage.create(config, name, sizes=4 * MIB, backend="tmpfs")
    parts = build(config)

    async def story() -> None:
        await parts.service.retire_pool("goes", "one command")
        await parts.service.retire_pool("goes", "another")
        parts.service.drain_pool("stays", undo=False)
        parts.service.drain_pool("stays", undo=True)
        await parts.reconciler.host_stage()
        assert set(parts.inventory.free()) == {"stays"}
        await parts.service.refresh_pools()  # "stays" was resized meanwhile
        await parts.service.drop_claims("one command")
        assert set(parts.inventory.free()) == {"stays"}
        await parts.service.drop_claims("another")  # it was not destroyed after all
        assert set(parts.inventory.free()) == {"goes", "stays"}
        await parts.close()

    asyncio.run(story())


@in_own_mount_namespace
def test_a_pool_that_is_about_to_shrink_gives_no_more_than_its_new_size(tmp_path: Path) -> None:
    config = Config(
        daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")),
        libvirt=LibvirtConfig(uri="test:///default", run_dir=str(tmp_path)),
    )
    manage.create(config, "p", sizes=8 * MIB, backend="tmpfs")
    parts = build(config)

    def charge(size_bytes: int) -> None:
        plan = make_plan(1, (NO_NODE, size_bytes // PAGE), segment="p")
        parts.ledger.reserve(plan, paths_of(plan), parts.inventory.capacity())

    async def story() -> None:
        assert await parts.service.limit_pool("p", 4 * MIB, "a command") == 0
        with pytest.raises(NotEnoughMemory):
            charge(6 * MIB)
        await parts.service.drop_claims("a command")
        charge(6 * MIB)
        assert await parts.service.limit_pool("p", 4 * MIB, "a command") == 6 * MIB, "and nothing is limited"
        assert parts.service.list_pools()[0].capacity_bytes == 8 * MIB
        await parts.close()

    asyncio.run(story())
