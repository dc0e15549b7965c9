# SPDX-License-Identifier: GPL-2.0-or-later
"""Resize the virtio-mem devices of running domains, and charge the memory that their guests may have.

All of a device is charged and populated before its guest may plug more, so that the guest never faults on memory
that the pool no longer has; unplugged memory is the pool's again once the guest has done all that was requested.
What is left in the file then is charged, whether plugged or not: QEMU returns memory that was plugged before, and
nothing else.

A resize that bypasses virt-dmem, by libvirt, lets a guest plug before the daemon knows. The memory is charged as
soon as it is seen, with or without room for it, and ballast makes way for it; memory that is unplugged that way
stays charged until a resize.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from virt_dmem.allocation.models import Extent, ExtentState, Reservation
from virt_dmem.domain_xml.devices import Device, find_device, resized_xml
from virt_dmem.domains.device_ops import (
    POLL_SECONDS,
    Cancellation,
    DeviceChange,
    DeviceOperations,
    describe_change,
    domain_ended,
    require_device,
)
from virt_dmem.domains.extents import ReportProgress, StepProgress
from virt_dmem.errors import DomainRefused
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.runtime.aio import off_loop
from virt_dmem.units import format_size

__all__ = ["VirtioMem"]

log = logging.getLogger(__name__)


class VirtioMem:
    """Resize virtio-mem devices, and keep their charge in the ledger."""

    def __init__(self, operations: DeviceOperations) -> None:
        self._operations = operations
        self._ledger = operations.ledger
        self._extents = operations.extents

    async def resize(
        self, domain: str, alias: str, requested_bytes: int, report: ReportProgress, *, wait_seconds: float
    ) -> DeviceChange:
        """Have a guest plug or unplug blocks of a device; wait up to ``wait_seconds`` without any change.

        :raise DomainRefused: When it is no virtio-mem device from a pool, or the size does not fit it.
        :raise NotEnoughMemory: When memory that it returned before is reserved for other domains.
        """
        reservation = self._operations.require_running_named(domain)
        extent = require_device(reservation, alias)

        async def work(_cancellation: Cancellation) -> DeviceChange:
            async with self._operations.lock(reservation.uuid):
                live = await self._operations.ask_libvirt(lambda libvirt: libvirt.live_xml(reservation.uuid))
                device = await off_loop(lambda xml: find_device(xml, alias), live or b"<domain/>")
                _require_resizable(reservation, alias, device, requested_bytes)
                assert device is not None  # noqa: S101 -- it was required
                with self._operations.working_on(extent):
                    return await self.plug(
                        reservation, extent, device, requested_bytes, report=report, wait_seconds=wait_seconds
                    )

        return await self._operations.run_shielded(work)

    async def plug(
        self,
        reservation: Reservation,
        extent: Extent,
        device: Device,
        requested_bytes: int,
        *,
        report: ReportProgress,
        wait_seconds: float,
    ) -> DeviceChange:
        """Resize a device that was found to be resizable; also one that is being attached."""
        if requested_bytes > device.current_bytes:
            await self._charge_and_populate(extent, device, report)

        def update(libvirt: Hypervisor) -> None:
            live = libvirt.live_xml(reservation.uuid) or b"<domain/>"
            libvirt.update(reservation.uuid, resized_xml(live, extent.alias, requested_bytes))

        if extent.state is ExtentState.POPULATED:  # else it is being attached
            self._ledger.set_state(extent, ExtentState.RESIZING)
        await self._operations.ask_libvirt(update)
        now = await self._wait_plugged(
            reservation, extent, requested_bytes, report=report, wait_seconds=wait_seconds
        )
        shown = replace(extent, size_bytes=now)
        if now != requested_bytes:
            charged = (self._operations.current(extent) or extent).charged_bytes
            message = (
                f"The guest has {format_size(now)} of {extent.alias}, and {format_size(requested_bytes)} were"
                f" requested; {format_size(charged)} stay charged."
            )
            return describe_change(reservation, shown, "pending", message=message)
        self.finish_resize(self._operations.current(extent) or extent, now)
        log.info("%s: %s has %s plugged", reservation.name, extent.alias, format_size(now))
        return describe_change(reservation, shown, "resized")

    def finish_resize(self, extent: Extent, plugged_bytes: int) -> None:
        """Finish a resize: charge the memory that the guest has plugged or has not returned."""
        self._charge(extent, min(extent.size_bytes, max(plugged_bytes, _present(extent))))
        if extent.state is ExtentState.RESIZING:
            self._ledger.set_state(extent, ExtentState.POPULATED)

    async def reconcile(
        self, reservation: Reservation, extent: Extent, device: Device, *, dry_run: bool = False
    ) -> list[str]:
        """Finish a resize, or charge memory that was plugged bypassing virt-dmem; return the actions."""
        words = f"of {reservation.name}, {extent.alias}"
        if extent.state is ExtentState.RESIZING and device.current_bytes == device.requested_bytes:
            if not dry_run:
                self.finish_resize(extent, device.current_bytes)
            return [f"charge {format_size(device.current_bytes)} {words}: its guest has completed the resize"]
        can_have = min(extent.size_bytes, max(device.current_bytes, device.requested_bytes, _present(extent)))
        if can_have <= extent.charged_bytes:
            return []
        if not dry_run:
            log.warning("%s: %s was plugged bypassing virt-dmem; charging it", reservation.name, extent.alias)
            self._charge(extent, can_have)
            await self._extents.prezero.evict(extent.segment)
        return [f"charge {format_size(can_have)} {words}: its guest may have it now"]

    async def _charge_and_populate(self, extent: Extent, device: Device, report: ReportProgress) -> None:
        """Charge and populate all of a device.

        :raise NotEnoughMemory: When the pool has too little free memory.
        """
        whole = _shares(extent, extent.size_bytes)
        if extent.charged_bytes < extent.size_bytes:
            self._ledger.recharge(extent, whole, self._operations.inventory.capacity())
        if _present(extent) < extent.size_bytes:
            try:
                await self._extents.prezero.evict(extent.segment)
                await self._extents.populate(replace(extent, shares=whole), report, gentle=True)
            except BaseException:
                self.finish_resize(extent, device.current_bytes)
                raise

    async def _wait_plugged(
        self, reservation: Reservation, extent: Extent, wanted: int, *, report: ReportProgress, wait_seconds: float
    ) -> int:
        """Wait until a guest has plugged the ``wanted`` bytes; return the bytes that it has."""
        deadline = time.monotonic() + wait_seconds
        last = -1
        while True:
            live = await self._operations.ask_libvirt(lambda libvirt: libvirt.live_xml(reservation.uuid))
            device = await off_loop(lambda xml: find_device(xml, extent.alias), live) if live else None
            if device is None:
                raise domain_ended(reservation)
            if device.current_bytes != last:  # it goes on: wait for more
                deadline, last = time.monotonic() + wait_seconds, device.current_bytes
            if last == wanted or time.monotonic() > deadline:
                return last
            report(StepProgress(f"the guest resizes {extent.alias}", min(last, wanted), max(last, wanted)))
            await asyncio.sleep(POLL_SECONDS)

    def _charge(self, extent: Extent, size_bytes: int) -> None:
        """Charge ``size_bytes``, whether the pool has them or not; with several nodes always all of the extent.

        Of several nodes it is not known which of them the guest's part comes from.
        """
        if len(extent.shares) == 1:
            charged_bytes = (self._operations.current(extent) or extent).charged_bytes
            self._extents.reclaim.withhold(extent, charged_bytes - size_bytes)
            self._ledger.recharge(extent, _shares(extent, size_bytes))


def _require_resizable(reservation: Reservation, alias: str, device: Device | None, requested_bytes: int) -> None:
    if device is None or device.model != "virtio-mem":
        raise DomainRefused(
            f"Memory device {alias!r} of domain {reservation.name} cannot be resized: it is not virtio-mem.",
            hint="Attach another device, or detach this one.",
        )
    if requested_bytes > device.size_bytes or requested_bytes % device.block_bytes:
        raise DomainRefused(
            f"{alias} cannot have {format_size(requested_bytes)}: it has {format_size(device.size_bytes)} in blocks"
            f" of {format_size(device.block_bytes)}.",
            hint=f"Give a multiple of {format_size(device.block_bytes)}, up to {format_size(device.size_bytes)}.",
        )


def _present(extent: Extent) -> int:
    """Return the bytes of an extent that are populated."""
    try:
        return extent.path.stat().st_blocks * 512
    except OSError:
        return 0


def _shares(extent: Extent, size_bytes: int) -> dict[int, int]:
    """Return the charge of each node for ``size_bytes`` in all; the difference goes to the first node."""
    shares = dict(extent.shares)
    first = next(iter(shares))
    shares[first] += size_bytes - extent.charged_bytes
    return shares
