# SPDX-License-Identifier: GPL-2.0-or-later
"""The charge of a virtio-mem device, through resizes by virt-dmem and those that bypass it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.domain_documents import CELLS, domain
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from virt_dmem.allocation.models import Extent, ExtentState, Phase
from virt_dmem.domain_xml.devices import Device, device_xml
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.errors import DomainRefused

ALIAS = "ua-dmem0"
BLOCK = 2 * MIB


class Guest:
    """A fake libvirt, with a guest that plugs at once."""

    def __init__(self, current_bytes: int) -> None:
        self.current_bytes = current_bytes
        self.updates = 0

    def device(self) -> Device:
        return Device(ALIAS, "virtio-mem", 8 * MIB, 0, None, BLOCK, self.current_bytes, self.current_bytes)

    def live_xml(self, _uuid: str) -> bytes:
        element = device_xml(self.device()).replace(
            "</target>", f"<current unit='b'>{self.current_bytes}</current></target>"
        )
        return domain(f"<devices>{element}</devices>", cells=CELLS)

    def update(self, _uuid: str, xml: str) -> None:
        self.updates += 1
        self.current_bytes = int(xml.partition('<requested unit="KiB">')[2].partition("<")[0]) * 1024


async def running(directory: Path, guest: Guest) -> tuple[Parts, VirtioMem]:
    """A running domain with a virtio-mem device, populated and charged as far as its guest has plugged it."""
    parts = Parts(directory)
    await parts.hooks.prepare(memory(MIB), lambda _: None)
    parts.ledger.set_phase(UUID, Phase.RUNNING)
    more = (Cell(ALIAS, 0, 8 * MIB, (), "", BLOCK),)
    (extent,) = await parts.admission.reserve_more(
        DomainMemory(UUID, "vm", "p", more, True, True, None, None, None, None)
    )
    await parts.extents.create_empty(extent)
    parts.ledger.set_state(extent, ExtentState.POPULATED)
    virtio_mem = VirtioMem(parts.operations)
    virtio_mem.finish_resize(device_of(parts), guest.current_bytes)

    async def ask(question: Callable[[Guest], object]) -> object:
        return question(guest)

    parts.operations.ask_libvirt = ask  # type: ignore[method-assign,assignment]
    return parts, virtio_mem


def device_of(parts: Parts) -> Extent:
    (extent,) = (extent for extent in parts.held().extents if extent.alias == ALIAS)
    return extent


@in_own_mount_namespace
def test_all_of_a_device_is_populated_before_its_guest_plugs_more(tmp_path: Path) -> None:
    async def story() -> None:
        guest = Guest(0)
        parts, virtio_mem = await running(tmp_path, guest)
        assert device_of(parts).charged_bytes == 0
        change = await virtio_mem.resize("vm", ALIAS, 4 * MIB, lambda _: None, wait_seconds=5)
        assert (change.state, change.size_bytes, guest.updates) == ("resized", 4 * MIB, 1)
        extent = device_of(parts)
        assert (extent.charged_bytes, extent.state) == (8 * MIB, ExtentState.POPULATED)
        assert extent.path.stat().st_blocks * 512 == 8 * MIB, "QEMU frees what it discards, and nothing else"

    asyncio.run(story())


@in_own_mount_namespace
def test_memory_plugged_bypassing_virt_dmem_is_charged_when_it_is_seen(tmp_path: Path) -> None:
    async def story() -> None:
        guest = Guest(2 * MIB)
        parts, virtio_mem = await running(tmp_path, guest)
        guest.current_bytes = 6 * MIB
        (action,) = await virtio_mem.reconcile(parts.held(), device_of(parts), guest.device(), dry_run=True)
        assert (action.startswith("charge 6 MiB"), device_of(parts).charged_bytes) == (True, 2 * MIB)
        await virtio_mem.reconcile(parts.held(), device_of(parts), guest.device())
        assert device_of(parts).charged_bytes == 6 * MIB
        assert await virtio_mem.reconcile(parts.held(), device_of(parts), guest.device()) == []

    asyncio.run(story())


@in_own_mount_namespace
def test_sizes_that_a_device_cannot_have_are_refused(tmp_path: Path) -> None:
    async def story() -> None:
        guest = Guest(0)
        _, virtio_mem = await running(tmp_path, guest)
        for size_bytes in (3 * MIB, 10 * MIB):
            with pytest.raises(DomainRefused, match="ua-dmem0 cannot have"):
                await virtio_mem.resize("vm", ALIAS, size_bytes, lambda _: None, wait_seconds=0)
        assert guest.updates == 0

    asyncio.run(story())
