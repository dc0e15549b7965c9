# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices that changed while nobody of ours looked, or past us: the ledger follows what is.

What came to its end after its command was gone, what a daemon that died had begun, what ``virsh`` did. libvirt
says which devices there are; only the kernel says whether memory may be freed: never while a process maps it.
"""

from __future__ import annotations

import asyncio

from virt_dmem.aio import aside
from virt_dmem.allocation.models import Extent, ExtentState, Phase, Reservation
from virt_dmem.attempts import Round
from virt_dmem.domain_xml.devices import find_devices, is_boot_backend
from virt_dmem.domains.device_ops import DeviceOperations
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.pools import extent_files
from virt_dmem.units import format_size

__all__ = ["DeviceReconciler"]

_UNDER_WAY = (ExtentState.PLANNED, ExtentState.DETACHING)
"""What can come to its end without libvirt."""
_SETTLED_OR_RESIZING = (ExtentState.POPULATED, ExtentState.RESIZING)


class DeviceReconciler:
    """Brings the ledger's memory devices to what is there; what a command works on is left alone."""

    def __init__(self, changes: DeviceOperations, virtio_mem: VirtioMem) -> None:
        self._changes = changes
        self._virtio_mem = virtio_mem
        self._ledger = changes.ledger
        self._lifecycle = changes.lifecycle

    def kept(self, uuid: str, alias: str) -> None:
        """Take note that a guest refused to let go of a device."""
        reservation = self._ledger.find(uuid)
        if reservation and any(extent.alias == alias for extent in reservation.extents):  # else it may say anything
            self._changes.refused.add((uuid, alias))

    async def mend_host(self, tries: Round, *, dry_run: bool = False) -> list[str]:
        """Come to an end with what can be told without libvirt; return what was done (``dry_run``: would be)."""
        actions = []
        for reservation in self._ledger.unsettled():
            for extent in reservation.extents:
                if extent.id in self._changes.busy or extent.state not in _UNDER_WAY:
                    continue
                with tries.trying(str(extent.path)):
                    if extent.path.exists() and await asyncio.to_thread(extent_files.in_use, extent.path):
                        continue
                    if not dry_run:
                        await self._lifecycle.free(extent)
                    planned = extent.state is ExtentState.PLANNED
                    why = "attaching was interrupted" if planned else "the guest has let go"
                    actions.append(f"free {_words(extent, reservation)}: {why}")
        return actions

    async def mend(self, uuid: str, why: str = "libvirt does not know it", *, dry_run: bool = False) -> list[str]:
        """Come to an end with what only libvirt knows of a domain that runs; return what was done.

        :raise HypervisorError: When libvirt does not answer.
        """
        reservation = self._ledger.find(uuid)
        if reservation is None or reservation.phase is not Phase.RUNNING:
            return []
        if all(is_boot_backend(extent.alias) for extent in reservation.extents):
            return []
        unsure = any(extent.state is ExtentState.ATTACHING for extent in reservation.extents)
        live = await self._changes.ask(lambda libvirt: (libvirt.settled_xml if unsure else libvirt.live_xml)(uuid))
        if live is None:
            return []
        aliases = {extent.alias for extent in reservation.extents}
        devices = await aside(lambda xml: find_devices(xml, aliases), live)
        actions = []
        for extent in reservation.extents:
            if (
                extent.id in self._changes.busy
                or is_boot_backend(extent.alias)
                or extent.state is ExtentState.PLANNED
            ):
                continue
            device = devices.get(extent.alias)
            there = device is not None
            if device and device.model == "virtio-mem" and extent.state in _SETTLED_OR_RESIZING:
                actions += await self._virtio_mem.follow(reservation, extent, device, dry_run=dry_run)
            elif there and extent.state is ExtentState.ATTACHING:
                actions.append(f"keep {_words(extent, reservation)}: it was attached while nobody looked")
                if not dry_run:
                    await self._changes.commit(reservation, extent)
            elif not there and not (
                extent.path.exists() and await asyncio.to_thread(extent_files.in_use, extent.path)
            ):
                actions.append(f"free {_words(extent, reservation)}: {why}")
                if not dry_run:
                    await self._lifecycle.free(extent)
            elif not there and extent.state is not ExtentState.DETACHING and not dry_run:
                self._ledger.set_state(extent, ExtentState.DETACHING)
        return actions


def _words(extent: Extent, reservation: Reservation) -> str:
    return f"{format_size(extent.charged_bytes)} of {reservation.name}, {extent.alias}"
