# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger reconciled with pools and domains; items that fail are in tests/unit/test_one_bad_item.py."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from virt_dmem.allocation.models import Phase
from virt_dmem.attempts import Round
from virt_dmem.domains.device_reconcile import DeviceReconciler
from virt_dmem.domains.reconcile import ReconcileContext, from_host, from_libvirt
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.host import kernel


def context(parts: Parts, *, dry_run: bool = False) -> ReconcileContext:
    operations = parts.operations
    return ReconcileContext(
        config=parts.config,
        ledger=parts.ledger,
        inventory=operations.inventory,
        extents=parts.extents,
        devices=DeviceReconciler(operations, VirtioMem(operations)),
        boot_id=kernel.boot_id(),
        attempts=Round(),
        dry_run=dry_run,
    )


def started(directory: Path) -> Parts:
    """A domain that runs for the ledger."""
    parts = Parts(directory)
    asyncio.run(parts.hooks.prepare(memory(MIB), lambda _: None))
    parts.ledger.set_phase(UUID, Phase.RUNNING)
    return parts


@in_own_mount_namespace
def test_a_file_and_a_link_without_a_domain_are_removed(tmp_path: Path) -> None:
    parts = started(tmp_path)
    unknown = parts.config.pools_dir / "p" / "libvirt-other" / "pc.ram"
    unknown.parent.mkdir()
    unknown.write_bytes(b"x" * MIB)
    links = tmp_path / "libvirt" / "libvirt" / "qemu" / "1-vm"
    links.mkdir(parents=True)
    (links / "pc.ram").symlink_to(parts.config.pools_dir / "p" / "libvirt-gone" / "pc.ram")
    wanted = asyncio.run(from_host(context(parts, dry_run=True)))
    assert unknown.exists()
    assert asyncio.run(from_host(context(parts))) == wanted
    assert f"remove {unknown}: no reservation has it" in wanted
    assert not unknown.exists()
    assert parts.held()


@in_own_mount_namespace
def test_an_interrupted_start_is_freed_unless_it_goes_on(tmp_path: Path) -> None:
    parts = Parts(tmp_path)

    async def story() -> None:
        await parts.hooks.prepare(memory(MIB), lambda _: None)
        parts.ledger.set_phase(UUID, Phase.RESERVED)
        async with parts.extents.lock(UUID):
            assert await from_host(context(parts)) == []
        assert await from_host(context(parts)) == ["free 1 MiB of vm: interrupted while reserved"]
        assert parts.ledger.find(UUID) is None

    asyncio.run(story())


@in_own_mount_namespace
def test_a_domain_that_libvirt_does_not_run_is_freed_unless_it_changed_since(tmp_path: Path) -> None:
    parts = started(tmp_path)
    now = parts.ledger.sequence()
    assert asyncio.run(from_libvirt(context(parts), {UUID}, now)) == []
    assert asyncio.run(from_libvirt(context(parts), set(), now - 1)) == []
    freed = "free 1 MiB of vm: the domain is not running"
    assert asyncio.run(from_libvirt(context(parts, dry_run=True), set(), now)) == [freed]
    assert parts.held()
    assert asyncio.run(from_libvirt(context(parts), set(), now)) == [freed]
    assert parts.ledger.find(UUID) is None
