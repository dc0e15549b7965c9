# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger reconciled with pools and domains; items that fail are in tests/unit/test_one_bad_item.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from virt_dmem.allocation.models import Phase
from virt_dmem.domains.device_reconcile import DeviceReconciler
from virt_dmem.domains.reconcile import ReconcileContext, doubtful, from_host, from_libvirt, item_of, with_libvirt
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.errors import LedgerError
from virt_dmem.host import kernel
from virt_dmem.runtime.attempts import Round


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


def says(active: bool | None) -> Callable[[str], Awaitable[bool | None]]:
    """Answer as libvirt does about any domain; ``None``: it does not."""

    async def answer(_uuid: str) -> bool | None:
        return active

    return answer


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = kernel.uptime()
    monkeypatch.setattr("virt_dmem.domains.reconcile.uptime", lambda: now + seconds)


@in_own_mount_namespace
def test_a_domain_is_in_doubt_if_it_is_not_running_for_long(tmp_path: Path) -> None:
    parts = started(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        assert doubtful(context(parts), set()) == set(), "libvirt may not have said yet that it runs"
        later(patch, 10)
        assert doubtful(context(parts), {UUID}) == set()
        assert doubtful(context(parts), set()) == {UUID}
        for phase in (Phase.RESERVED, Phase.PREPARED, Phase.LINKED, Phase.STOPPED):
            parts.ledger.set_phase(UUID, phase)
            later(patch, 1)
            assert doubtful(context(parts), {UUID}) == set()
            later(patch, 10)
            assert doubtful(context(parts), {UUID}) == {UUID}

        async def in_its_hook() -> None:
            async with parts.extents.lock(UUID):
                assert doubtful(context(parts), set()) == set()

        asyncio.run(in_its_hook())


@in_own_mount_namespace
def test_a_domain_in_doubt_is_freed_only_if_libvirt_says_that_it_does_not_run(tmp_path: Path) -> None:
    parts = started(tmp_path)
    for phase in (Phase.RUNNING, Phase.PREPARED, Phase.LINKED, Phase.STOPPED):
        parts.ledger.set_phase(UUID, phase)
        for active in (True, None):
            assert asyncio.run(with_libvirt(context(parts), [UUID], says(active))) == []
        assert parts.held().phase is phase

    async def starts_meanwhile(_uuid: str) -> bool:
        parts.ledger.set_phase(UUID, Phase.PREPARED)
        return False

    assert asyncio.run(with_libvirt(context(parts), [UUID], starts_meanwhile)) == []
    with pytest.MonkeyPatch.context() as patch:
        later(patch, 100)
        silent = context(parts)
        assert asyncio.run(with_libvirt(silent, [UUID], says(None))) == []
        assert "does not answer whether domain vm runs" in silent.attempts.failed[item_of(UUID)]
    freed = "free 1 MiB of vm: the domain is not running"
    assert asyncio.run(with_libvirt(context(parts), ["another", UUID], says(False))) == [freed]
    assert parts.ledger.find(UUID) is None


@in_own_mount_namespace
def test_a_start_whose_qemu_libvirt_does_not_know_keeps_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = started(tmp_path)
    parts.ledger.set_phase(UUID, Phase.LINKED)
    monkeypatch.setattr("virt_dmem.hypervisor.processes.find_qemu", lambda *_args: 77)
    found = context(parts)
    assert asyncio.run(with_libvirt(found, [UUID], says(False))) == []
    assert "QEMU 77 of domain vm is starting" in found.attempts.failed[item_of(UUID)]
    assert parts.held().phase is Phase.LINKED


@in_own_mount_namespace
def test_where_the_ledger_cannot_be_written_one_domain_is_tried_and_all_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = started(tmp_path)
    tried = []

    def full(*_args: object) -> None:
        tried.append(True)
        error = LedgerError("disk full", hint="")
        error.is_unavailable = True
        raise error

    monkeypatch.setattr(parts.ledger, "forget_extent", full)
    found = context(parts)
    assert asyncio.run(with_libvirt(found, [UUID, "another"], says(False))) == []
    assert found.attempts.failed == {item_of(UUID): "disk full", item_of("another"): "disk full"}
    assert len(tried) == 1
    assert parts.ledger.quarantined() == [], "nothing is wrong with it"
    monkeypatch.undo()
    assert len(asyncio.run(with_libvirt(context(parts), [UUID], says(False)))) == 1
    assert parts.operations.inventory.free_in(parts.operations.inventory.record("p").segment) == {-1: 64 * MIB}  # type: ignore[arg-type]
