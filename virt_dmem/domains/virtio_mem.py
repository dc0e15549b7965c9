# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-mem of a domain that runs: its guest plugs and unplugs, and the ledger charges what it can have.

All of a device is charged and present before its guest may plug more, so that it never faults on memory that the
pool no longer has; what the guest unplugged is the pool's again when it has done all that was asked. What is left
in the file then is charged, be it plugged or not: QEMU gives back what was plugged before, and nothing else.

Who resizes past us, by libvirt, lets a guest plug before we are told. It is charged as soon as it is seen, with or
without room for it, and no ballast is held in its place; what is unplugged past us stays charged until a resize.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from virt_dmem.aio import aside
from virt_dmem.allocation.models import Extent, ExtentState, Reservation
from virt_dmem.domain_xml.devices import Device, find_device, resized_xml
from virt_dmem.domains.device_ops import (
    POLL_SECONDS,
    Change,
    DeviceOperations,
    Progress,
    change_of,
    ended,
    extent_of,
)
from virt_dmem.domains.hooks import Report, Reporter
from virt_dmem.errors import DomainRefused
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.units import format_size

__all__ = ["VirtioMem"]

log = logging.getLogger(__name__)


class VirtioMem:
    """Change what a guest has of a virtio-mem device."""

    def __init__(self, changes: DeviceOperations) -> None:
        self._changes = changes
        self._ledger = changes.ledger
        self._lifecycle = changes.lifecycle

    async def resize(
        self, domain: str, alias: str, requested_bytes: int, report: Reporter, *, wait_seconds: float
    ) -> Change:
        """Have a guest plug or unplug blocks of a device, and wait so long for it while nothing moves.

        :raise DomainRefused: When that is no virtio-mem device of a pool, or no size for it.
        :raise NotEnoughMemory: When what it gave back before has been given to others.
        """
        reservation = self._changes.running_named(domain)
        extent = extent_of(reservation, alias)

        async def work(_progress: Progress) -> Change:
            async with self._changes.lock(reservation.uuid):
                live = await self._changes.ask(lambda libvirt: libvirt.live_xml(reservation.uuid))
                device = await aside(lambda xml: find_device(xml, alias), live or b"<domain/>")
                _require_resizable(reservation, alias, device, requested_bytes)
                assert device is not None  # noqa: S101 -- it was required
                self._changes.busy.add(extent.id)
                try:
                    return await self.plug(
                        reservation, extent, device, requested_bytes, report=report, wait_seconds=wait_seconds
                    )
                finally:
                    self._changes.busy.discard(extent.id)

        return await self._changes.whatever_the_caller_does(work)

    async def plug(
        self,
        reservation: Reservation,
        extent: Extent,
        device: Device,
        requested_bytes: int,
        *,
        report: Reporter,
        wait_seconds: float,
    ) -> Change:
        """Do what ``resize`` does with a device that may be resized; also with one that is being attached."""
        if requested_bytes > device.current_bytes:
            await self._make_whole(extent, device, report)

        def update(libvirt: Hypervisor) -> None:
            live = libvirt.live_xml(reservation.uuid) or b"<domain/>"
            libvirt.update(reservation.uuid, resized_xml(live, extent.alias, requested_bytes))

        if extent.state is ExtentState.POPULATED:  # else it is being attached
            self._ledger.set_state(extent, ExtentState.RESIZING)
        await self._changes.ask(update)
        now = await self._plugged(reservation, extent, requested_bytes, report=report, wait_seconds=wait_seconds)
        shown = replace(extent, size_bytes=now)
        if now != requested_bytes:
            charged = (self._changes.now(extent) or extent).charged_bytes
            message = (
                f"The guest has {format_size(now)} of {extent.alias}, and {format_size(requested_bytes)} were"
                f" asked for; {format_size(charged)} stay charged."
            )
            return change_of(reservation, shown, "pending", message=message)
        self.settle(extent, now)
        log.info("%s: %s has %s plugged", reservation.name, extent.alias, format_size(now))
        return change_of(reservation, shown, "resized")

    def settle(self, extent: Extent, plugged_bytes: int) -> None:
        """Come to the end of a resize: charge what the guest can have or has not given back."""
        self._charge(extent, min(extent.size_bytes, max(plugged_bytes, _present(extent))))
        if extent.state is ExtentState.RESIZING:
            self._ledger.set_state(extent, ExtentState.POPULATED)

    async def follow(
        self, reservation: Reservation, extent: Extent, device: Device, *, dry_run: bool = False
    ) -> list[str]:
        """Come to the end of a resize, or charge what was plugged past us; return what was done."""
        words = f"of {reservation.name}, {extent.alias}"
        if extent.state is ExtentState.RESIZING and device.current_bytes == device.requested_bytes:
            if not dry_run:
                self.settle(extent, device.current_bytes)
            return [f"charge {format_size(device.current_bytes)} {words}: its guest has done what was asked of it"]
        can_have = min(extent.size_bytes, max(device.current_bytes, device.requested_bytes, _present(extent)))
        if can_have <= extent.charged_bytes:
            return []
        if not dry_run:
            log.warning("%s: %s was plugged past us, and is charged again", reservation.name, extent.alias)
            self._charge(extent, can_have)
            await self._lifecycle.prezero.evict(extent.segment)
        return [f"charge {format_size(can_have)} {words}: its guest may have so much now"]

    async def _make_whole(self, extent: Extent, device: Device, report: Reporter) -> None:
        """Charge and bring in all of a device.

        :raise NotEnoughMemory: When the pool has not so much.
        """
        whole = _shares(extent, extent.size_bytes)
        if extent.charged_bytes < extent.size_bytes:
            self._ledger.recharge(extent, whole, self._changes.inventory.capacity())
        if _present(extent) < extent.size_bytes:
            try:
                await self._lifecycle.prezero.evict(extent.segment)
                await self._lifecycle.populate(replace(extent, shares=whole), report, gentle=True)
            except BaseException:
                self.settle(extent, device.current_bytes)
                raise

    async def _plugged(
        self, reservation: Reservation, extent: Extent, wanted: int, *, report: Reporter, wait_seconds: float
    ) -> int:
        """Wait until a guest has plugged as much as was asked for; return what it has."""
        deadline = time.monotonic() + wait_seconds
        last = -1
        while True:
            live = await self._changes.ask(lambda libvirt: libvirt.live_xml(reservation.uuid))
            device = await aside(lambda xml: find_device(xml, extent.alias), live) if live else None
            if device is None:
                raise ended(reservation)
            if device.current_bytes != last:  # it moves: wait for more
                deadline, last = time.monotonic() + wait_seconds, device.current_bytes
            if last == wanted or time.monotonic() > deadline:
                return last
            report(Report(f"the guest resizes {extent.alias}", min(last, wanted), max(last, wanted)))
            await asyncio.sleep(POLL_SECONDS)

    def _charge(self, extent: Extent, size_bytes: int) -> None:
        """Charge so much, whatever the pool has; of several nodes nobody knows which gave it: then all of it."""
        if len(extent.shares) == 1:
            charged_bytes = (self._changes.now(extent) or extent).charged_bytes
            self._lifecycle.reclaim.withhold(extent, charged_bytes - size_bytes)
            self._ledger.recharge(extent, _shares(extent, size_bytes))


def _require_resizable(reservation: Reservation, alias: str, device: Device | None, requested_bytes: int) -> None:
    if device is None or device.model != "virtio-mem":
        raise DomainRefused(
            f"Memory device {alias!r} of domain {reservation.name} is no virtio-mem, and only that can be resized.",
            hint="Attach another device, or detach this one.",
        )
    if requested_bytes > device.size_bytes or requested_bytes % device.block_bytes:
        raise DomainRefused(
            f"{format_size(requested_bytes)} is no size for {alias}, which has {format_size(device.size_bytes)} in"
            f" blocks of {format_size(device.block_bytes)}.",
            hint=f"Give a multiple of {format_size(device.block_bytes)}, up to {format_size(device.size_bytes)}.",
        )


def _present(extent: Extent) -> int:
    """Return the bytes of an extent that have pages now."""
    try:
        return extent.path.stat().st_blocks * 512
    except OSError:
        return 0


def _shares(extent: Extent, size_bytes: int) -> dict[int, int]:
    """Return what the nodes of an extent are charged with if it is so much in all; more goes to the first."""
    shares = dict(extent.shares)
    first = next(iter(shares))
    shares[first] += size_bytes - extent.charged_bytes
    return shares
