# SPDX-License-Identifier: GPL-2.0-or-later
"""Reloaded records update the free memory, and retired pools remain retired."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.config.schema import Config, DaemonConfig, LibvirtConfig
from virt_dmem.daemon.wiring import build
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
        await parts.service.retire_pool("goes")
        parts.service.drain_pool("stays", undo=False)
        parts.service.drain_pool("stays", undo=True)
        await parts.reconciler.host_stage()
        assert set(parts.inventory.free()) == {"stays"}
        await parts.service.refresh_pools("stays")  # that was resized meanwhile
        assert set(parts.inventory.free()) == {"stays"}
        await parts.service.refresh_pools("goes")  # it was not destroyed after all
        assert set(parts.inventory.free()) == {"goes", "stays"}
        await parts.close()

    asyncio.run(story())
