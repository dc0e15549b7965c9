# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices in the ledger, reconciled with the kernel and with libvirt's live XML."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.domain_documents import CELLS, device, domain
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from virt_dmem.allocation.models import Extent, ExtentState, Phase
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains.device_reconcile import DeviceReconciler
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.runtime.attempts import Round

ALIAS = "ua-dmem0"


async def running(directory: Path, state: ExtentState) -> tuple[Parts, DeviceReconciler, Extent]:
    """A running domain with a memory device in a certain state."""
    parts = Parts(directory)
    await parts.hooks.prepare(memory(MIB), lambda _: None)
    parts.ledger.set_phase(UUID, Phase.RUNNING)
    more = (Cell(ALIAS, 0, 2 * MIB, (), ""),)
    (extent,) = await parts.admission.reserve_more(
        DomainMemory(UUID, "vm", "p", more, True, True, None, None, None, None)
    )
    await parts.extents.make([extent], lambda _: None)
    parts.ledger.set_state(extent, state)
    (extent,) = (found for found in parts.held().extents if found.alias == ALIAS)
    return parts, DeviceReconciler(parts.operations, VirtioMem(parts.operations)), extent


def answering(parts: Parts, monkeypatch: pytest.MonkeyPatch, *devices: str) -> None:
    """Have libvirt answer with a live XML that has these devices."""
    xml = domain(f"<devices>{''.join(devices)}</devices>", cells=CELLS)

    async def ask(_question: Callable[..., object]) -> bytes:
        return xml

    monkeypatch.setattr(parts.operations, "ask_libvirt", ask)


@pytest.mark.parametrize("state", [ExtentState.PLANNED, ExtentState.DETACHING])
@in_own_mount_namespace
def test_an_interrupted_attach_and_a_finished_detach_are_freed_without_libvirt(
    tmp_path: Path, state: ExtentState
) -> None:
    async def story() -> None:
        parts, reconciler, extent = await running(tmp_path, state)
        with extent.path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
            assert await reconciler.reconcile_host(Round()) == []
        with parts.operations.working_on(extent):
            assert await reconciler.reconcile_host(Round()) == []
        (action,) = await reconciler.reconcile_host(Round(), dry_run=True)
        assert action.startswith("free 2 MiB of vm, ua-dmem0: ")
        assert extent.path.exists()
        assert await reconciler.reconcile_host(Round()) == [action]
        assert not extent.path.exists()

    asyncio.run(story())


@in_own_mount_namespace
def test_a_device_that_libvirt_attached_after_its_command_ended_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        parts, reconciler, extent = await running(tmp_path, ExtentState.ATTACHING)
        answering(parts, monkeypatch, device("dimm", f"<alias name='{ALIAS}'/>"))
        with parts.operations.working_on(extent):
            assert reconciler.abandoned() == set()
        assert reconciler.abandoned() == {UUID}
        (action,) = await reconciler.reconcile_domain(UUID)
        assert reconciler.abandoned() == set()
        assert action.startswith("keep 2 MiB of vm, ua-dmem0")
        assert parts.operations.current(extent).state is ExtentState.POPULATED  # type: ignore[union-attr]
        assert await reconciler.reconcile_domain(UUID) == []

    asyncio.run(story())


@in_own_mount_namespace
def test_a_device_that_is_gone_is_freed_when_no_process_maps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        parts, reconciler, extent = await running(tmp_path, ExtentState.POPULATED)
        answering(parts, monkeypatch)
        with extent.path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
            assert await reconciler.reconcile_domain(UUID) == []
            assert parts.operations.current(extent).state is ExtentState.DETACHING  # type: ignore[union-attr]
        assert await reconciler.reconcile_domain(UUID, "why") == ["free 2 MiB of vm, ua-dmem0: why"]
        assert [found.alias for found in parts.held().extents] == ["ram-node0"]

    asyncio.run(story())
