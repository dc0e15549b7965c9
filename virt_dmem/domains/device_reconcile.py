# SPDX-License-Identifier: GPL-2.0-or-later
"""Reconcile the ledger's memory devices with those that running domains have.

Their state differs after an operation whose command is gone, after the daemon died in the middle of one, and after
changes that bypass virt-dmem, as with ``virsh``. libvirt says which devices there are; only the kernel says whether
memory may be freed: never while a process maps it.
"""

from __future__ import annotations

import asyncio

from virt_dmem.allocation.models import Extent, ExtentState, Phase, Reservation
from virt_dmem.domain_xml.devices import Device, find_devices, is_boot_backend
from virt_dmem.domains.device_ops import DeviceOperations
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.pools import extent_files
from virt_dmem.runtime.aio import off_loop
from virt_dmem.runtime.attempts import Round
from virt_dmem.units import format_size

__all__ = ["DeviceReconciler"]

_UNDER_WAY = (ExtentState.PLANNED, ExtentState.DETACHING)
"""States that can be reconciled without libvirt."""
_SETTLED_OR_RESIZING = (ExtentState.POPULATED, ExtentState.RESIZING)


class DeviceReconciler:
    """Bring the ledger's memory devices to their actual state, but for those that an operation works on."""

    def __init__(self, operations: DeviceOperations, virtio_mem: VirtioMem) -> None:
        self._operations = operations
        self._virtio_mem = virtio_mem
        self._ledger = operations.ledger
        self._extents = operations.extents

    def abandoned(self) -> set[str]:
        """Return the domains (UUID) with an attach that nobody works on: only libvirt knows how it ended."""
        return {
            reservation.uuid
            for reservation in self._ledger.unsettled()
            for extent in reservation.extents
            if extent.state is ExtentState.ATTACHING and not self._operations.is_busy(extent)
        }

    async def reconcile_host(self, attempts: Round, *, dry_run: bool = False) -> list[str]:
        """Reconcile the devices that need no libvirt; return the actions (``dry_run``: that would be done)."""
        actions = []
        for reservation in self._ledger.unsettled():
            for extent in reservation.extents:
                if self._operations.is_busy(extent) or extent.state not in _UNDER_WAY:
                    continue
                with attempts.trying(str(extent.path)):
                    if await _is_mapped(extent):
                        continue
                    if not dry_run:
                        await self._extents.remove(extent)
                    planned = extent.state is ExtentState.PLANNED
                    why = "attaching was interrupted" if planned else "the guest has unplugged it"
                    actions.append(f"free {_describe(extent, reservation)}: {why}")
        return actions

    async def reconcile_domain(
        self, uuid: str, why: str = "libvirt does not know it", *, dry_run: bool = False
    ) -> list[str]:
        """Reconcile the devices of a running domain with libvirt's live XML; return the actions.

        :raise HypervisorError: When libvirt does not answer.
        """
        reservation = self._ledger.find(uuid)
        if reservation is None or reservation.phase is not Phase.RUNNING:
            return []
        if all(is_boot_backend(extent.alias) for extent in reservation.extents):
            return []
        unsure = any(extent.state is ExtentState.ATTACHING for extent in reservation.extents)
        live = await self._operations.ask_libvirt(
            lambda libvirt: (libvirt.settled_xml if unsure else libvirt.live_xml)(uuid)
        )
        if live is None:
            return []
        aliases = {extent.alias for extent in reservation.extents}
        devices = await off_loop(lambda xml: find_devices(xml, aliases), live)
        actions = []
        for extent in reservation.extents:
            if (
                not self._operations.is_busy(extent)
                and not is_boot_backend(extent.alias)
                and extent.state is not ExtentState.PLANNED
            ):
                device = devices.get(extent.alias)
                actions += await self._reconcile_device(reservation, extent, device, why, dry_run=dry_run)
        return actions

    async def _reconcile_device(
        self, reservation: Reservation, extent: Extent, device: Device | None, why: str, *, dry_run: bool
    ) -> list[str]:
        if device is None:
            return await self._reconcile_missing(reservation, extent, why, dry_run=dry_run)
        if device.model == "virtio-mem" and extent.state in _SETTLED_OR_RESIZING:
            return await self._virtio_mem.reconcile(reservation, extent, device, dry_run=dry_run)
        if extent.state is ExtentState.ATTACHING:
            if not dry_run:
                await self._operations.finish_attach(reservation, extent)
            return [f"keep {_describe(extent, reservation)}: libvirt attached it after its command ended"]
        return []

    async def _reconcile_missing(
        self, reservation: Reservation, extent: Extent, why: str, *, dry_run: bool
    ) -> list[str]:
        """Remove an extent whose device is gone, or mark it DETACHING for as long as a process maps it."""
        if not await _is_mapped(extent):
            if not dry_run:
                await self._extents.remove(extent)
            return [f"free {_describe(extent, reservation)}: {why}"]
        if extent.state is not ExtentState.DETACHING and not dry_run:
            self._ledger.set_state(extent, ExtentState.DETACHING)
        return []


async def _is_mapped(extent: Extent) -> bool:
    return extent.path.exists() and await asyncio.to_thread(extent_files.in_use, extent.path)


def _describe(extent: Extent, reservation: Reservation) -> str:
    return f"{format_size(extent.charged_bytes)} of {reservation.name}, {extent.alias}"
