# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach memory devices to running domains, and detach them.

::

    attach   reserve, create, prefault                  → PLANNED     rolled back whole
             grant access to QEMU's user, link          → ATTACHING   rolled back whole, once libvirt has refused
             libvirt attaches; verify, revoke access    → POPULATED
    detach   ask the guest                              → DETACHING   pending until the guest unplugs the device
             QEMU maps it no more                       → gone

QEMU discards the memory of a virtio-mem device when it creates it (``virtio_mem_device_realize`` in its
hw/virtio/virtio-mem.c): such a device is attached with nothing plugged, then prefaulted, then plugged.

Once libvirt was asked to attach, cancelling the request does not stop it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from virt_dmem.allocation.models import Extent, ExtentState, Reservation
from virt_dmem.domain_xml.devices import Device, device_xml, find_device, free_alias, memory_of, require_room
from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.domain_xml.requirements import require_whole_pages
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
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.errors import DmemError, DomainRefused, ExtentError, HypervisorError, NotMapped
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.hypervisor.processes import find_qemu
from virt_dmem.hypervisor.qemu_user import placed_running
from virt_dmem.hypervisor.qmp import Monitors
from virt_dmem.os_errors import explained
from virt_dmem.pools import extent_files
from virt_dmem.runtime.aio import off_loop
from virt_dmem.runtime.deadline import within
from virt_dmem.units import MIB, format_size

__all__ = ["Hotplug"]

log = logging.getLogger(__name__)

_PLUG_SECONDS = 10.0
"""Without any plugging by the guest until the attach of a virtio-mem device is reported as pending."""
_UNDO_TRIES = 3
_UNDO_SECONDS = 3.0
"""Without an answer of the guest when a failed attach is undone; libvirt has waited for 5 s before that."""
_BLOCK_BYTES = 2 * MIB
"""The least block size of virtio-mem: a transparent huge page with base pages of 4 KiB, and QEMU's default there. A
pool with larger pages makes it theirs."""


class Hotplug:
    """Attach and detach memory devices, one at a time for each domain."""

    def __init__(self, operations: DeviceOperations, virtio_mem: VirtioMem, monitors: Monitors) -> None:
        self._operations = operations
        self._virtio_mem = virtio_mem
        self._monitors = monitors
        self._ledger = operations.ledger
        self._extents = operations.extents

    async def attach(
        self,
        domain: str,
        size_bytes: int,
        report: ReportProgress,
        *,
        model: str = "dimm",
        cell: int = 0,
        node: int | None = None,
        persistent: bool = False,
    ) -> DeviceChange:
        """Attach a memory device, whose memory is populated first, to a running domain.

        A request cancelled before libvirt was asked is rolled back whole; afterwards it goes on to its end.

        :param cell: The guest NUMA cell that it belongs to.
        :param node: The host node to take the memory from; None: as the domain's XML says of that cell.
        :raise DomainRefused: When the domain does not run on pool memory or cannot have more.
        :raise NotEnoughMemory: When the pool has too little free memory.
        """
        reservation = self._operations.require_running_named(domain)

        async def work(cancellation: Cancellation) -> DeviceChange:
            async with self._operations.lock(reservation.uuid):
                live, inactive = await self._operations.ask_libvirt(
                    lambda libvirt: _documents(libvirt, reservation.uuid)
                )
                if persistent and not inactive:
                    raise DomainRefused(
                        f"Domain {reservation.name} is transient.", hint="Attach the memory without --persistent."
                    )
                document = DomainDocument(live)
                await off_loop(lambda parsed: require_room(parsed, model, size_bytes, cell), document)
                taken = "".join(f"{extent.alias}'" for extent in self._ledger.extents_of(reservation.uuid)).encode()
                alias = await off_loop(lambda xmls: free_alias(xmls, taken), live + inactive)
                device = Device(alias, model, size_bytes, cell, node)
                if model == "virtio-mem":
                    device = replace(device, block_bytes=_BLOCK_BYTES)
                return await self._attach(
                    reservation, document, device, report=report, cancellation=cancellation, persistent=persistent
                )

        return await self._operations.run_shielded(work)

    async def detach(self, domain: str, alias: str, report: ReportProgress, *, wait_seconds: float) -> DeviceChange:
        """Hot-unplug a memory device: ask the guest, and wait up to ``wait_seconds`` until its memory is free.

        A guest may refuse, or not answer: the change is then pending until it unplugs the device.

        :raise DomainRefused: When there is no such memory device, or its memory is not from a pool.
        """
        reservation = self._operations.require_running_named(domain)
        extent = require_device(reservation, alias)

        async def work(_cancellation: Cancellation) -> DeviceChange:
            async with self._operations.lock(reservation.uuid):
                _live, inactive = await self._operations.ask_libvirt(
                    lambda libvirt: _documents(libvirt, reservation.uuid)
                )
                found = await off_loop(lambda xml: find_device(xml, alias), inactive) if inactive else None
                persistent = found is not None
                self._operations.forget_refusal(reservation.uuid, alias)
                self._ledger.set_state(extent, ExtentState.DETACHING)
                try:
                    await self._operations.ask_libvirt(
                        lambda libvirt: libvirt.detach(reservation.uuid, alias, persistent=persistent)
                    )
                except HypervisorError:
                    if await self._operations.remove_if_unmapped(
                        extent
                    ):  # it was quicker, or another tool asked before
                        return describe_change(reservation, extent, "detached")
                    self._ledger.set_state(extent, ExtentState.POPULATED)
                    raise
                deadline = time.monotonic() + wait_seconds
                while not await self._operations.remove_if_unmapped(extent):
                    refused = self._operations.has_refused(reservation.uuid, alias)
                    if refused or time.monotonic() > deadline:
                        said = "refused" if refused else f"did not answer within {wait_seconds:.0f} s"
                        message = (
                            f"The guest {said}; {format_size(extent.size_bytes)} stay charged until it unplugs"
                            " the device."
                        )
                        log.warning("%s: %s: %s", reservation.name, alias, message)
                        return describe_change(reservation, extent, "pending", message=message)
                    report(StepProgress(f"waiting for the guest to unplug {alias}", 0, extent.size_bytes))
                    await asyncio.sleep(POLL_SECONDS)
                log.info("%s: %s detached, %s free", reservation.name, alias, format_size(extent.size_bytes))
                return describe_change(reservation, extent, "detached")

        return await self._operations.run_shielded(work)

    # Steps

    async def _attach(
        self,
        reservation: Reservation,
        live: DomainDocument,
        device: Device,
        *,
        report: ReportProgress,
        cancellation: Cancellation,
        persistent: bool,
    ) -> DeviceChange:
        memory = await off_loop(partial(memory_of, device=device), live)
        if not memory.managed:  # adopted: a rule named the pool when it started
            memory = replace(memory, pool=reservation.extents[0].segment.pool)
        async with self._extents.lock(reservation.uuid):
            self._operations.require_running(reservation.uuid)
            (extent,) = await self._operations.admission.reserve_more(memory)
        device = _with_pool_blocks(device, extent)
        with self._operations.working_on(extent):
            try:
                await self._make_extent(extent, memory, device, report)
                pid = await self._grant(reservation, extent, await off_loop(DomainDocument.memory, live))
            except BaseException:
                await asyncio.shield(self._extents.remove(extent))
                raise
            cancellation.forbid()
            report(StepProgress(f"attaching {extent.alias}", extent.size_bytes, extent.size_bytes))
            try:
                change = await self._attach_to_qemu(
                    reservation, extent, device, pid, report=report, persistent=persistent
                )
            except DmemError as error:
                raise await self._undo_attach(reservation, extent, error, persistent=persistent) from error
            except OSError as error:
                failed = explained(
                    error,
                    kind=ExtentError,
                    doing=f"{extent.alias} could not be attached",
                    otherwise="Look in virt-dmemd's log, and try again.",
                )
                raise await self._undo_attach(reservation, extent, failed, persistent=persistent) from error
            await self._operations.finish_attach(reservation, extent)
        log.info("%s: %s of %s attached", reservation.name, extent.alias, format_size(extent.size_bytes))
        return change if change.state == "pending" else replace(change, state="attached")

    async def _make_extent(
        self, extent: Extent, memory: DomainMemory, device: Device, report: ReportProgress
    ) -> None:
        """Create the file of a device, and populate it unless QEMU would discard its memory."""
        if not device.block_bytes:
            await self._extents.make([extent], report, gentle=True)
            return
        cell = replace(memory.cells[0], block_bytes=device.block_bytes)
        require_whole_pages(memory.name, (cell,), extent.page_size)
        await self._extents.create_empty(extent)

    async def _attach_to_qemu(
        self,
        reservation: Reservation,
        extent: Extent,
        device: Device,
        pid: int,
        *,
        report: ReportProgress,
        persistent: bool,
    ) -> DeviceChange:
        """Have libvirt attach a device, verify its memory, and plug all of it if it is virtio-mem."""
        await self._operations.ask_libvirt(
            lambda libvirt: libvirt.attach(reservation.uuid, device_xml(device), persistent=persistent)
        )
        wanted = [(extent.alias, extent.path, extent.size_bytes)]
        await within(partial(extent_files.check_mapped, pid, wanted), f"QEMU {pid} of {reservation.name}")
        await self._check_backend(extent)
        if not device.block_bytes:
            return describe_change(reservation, extent, "attached")
        await self._extents.populate(extent, report, gentle=True)
        return await self._virtio_mem.plug(
            reservation, extent, device, device.size_bytes, report=report, wait_seconds=_PLUG_SECONDS
        )

    async def _grant(self, reservation: Reservation, extent: Extent, running: DomainMemory) -> int:
        """Grant QEMU access to the extent, where libvirt will tell it to open it; return QEMU's PID."""
        config, name, uuid = self._operations.config, reservation.name, reservation.uuid
        pid = await within(partial(find_qemu, Path(config.libvirt.run_dir), name, uuid), f"QEMU of {name}")
        async with self._extents.lock(reservation.uuid):
            if pid is None or extent.id not in {
                held.id for held in self._operations.require_running(reservation.uuid).extents
            }:
                raise domain_ended(reservation)
            place = partial(placed_running, config, running, pid)
            directory, (uid, gid) = await within(place, f"the directory of {name}")
            link = directory / extent.alias
            self._ledger.set_state(extent, ExtentState.ATTACHING, link=str(link))

            def grant() -> None:
                extent_files.grant_access(extent.path, uid, gid, running.selinux_imagelabel)
                extent_files.link(extent.path, link, users=(uid,))
                extent_files.check_visible(pid, extent.path)

            await within(grant, f"QEMU {pid} of {name}")
        return pid

    async def _undo_attach(
        self, reservation: Reservation, extent: Extent, error: DmemError, *, persistent: bool
    ) -> DmemError:
        """Undo an attach that failed after libvirt was asked; return the error to report."""
        device = None
        try:
            live = await self._operations.ask_libvirt(lambda libvirt: libvirt.settled_xml(reservation.uuid))
            device = await off_loop(lambda xml: find_device(xml, extent.alias), live) if live else None
            if device is not None:
                link = (self._operations.current(extent) or extent).link
                self._ledger.set_state(extent, ExtentState.DETACHING, link=link)
                await self._unplug_again(extent, persistent=persistent)
        except HypervisorError as refusal:
            # before QEMU 8.2 virtio-mem cannot be hot-unplugged, and libvirt may be gone
            if device is not None and not await self._operations.remove_if_unmapped(extent):
                await self._operations.finish_attach(reservation, extent)
                if device.model == "virtio-mem":
                    self._virtio_mem.finish_resize(extent, device.current_bytes)
            hint = f"It could not be detached again: {refusal.message} 'virt-dmem show' tells what is attached."
            return HypervisorError(error.message, hint=hint)
        if not await self._operations.remove_if_unmapped(extent):
            self._ledger.set_state(extent, ExtentState.DETACHING)
            stay = f"{format_size(extent.size_bytes)} stay charged until the guest unplugs {extent.alias}."
            return type(error)(error.message, hint=f"{error.hint} {stay}")
        return error

    async def _unplug_again(self, extent: Extent, *, persistent: bool) -> None:
        """Ask a guest some times to unplug a device just attached: it refuses while it brings it online."""
        key = (extent.uuid, extent.alias)
        for number in range(_UNDO_TRIES):
            self._operations.forget_refusal(*key)

            def detach(libvirt: Hypervisor, *, both: bool = persistent and not number) -> None:
                libvirt.detach(*key, persistent=both)

            await self._operations.ask_libvirt(detach)
            deadline = time.monotonic() + _UNDO_SECONDS
            while not self._operations.has_refused(*key) and time.monotonic() < deadline:
                if await self._operations.remove_if_unmapped(extent):
                    return
                await asyncio.sleep(POLL_SECONDS)
            if not self._operations.has_refused(*key):  # no answer: asking again changes nothing
                return
            await asyncio.sleep(1)

    async def _check_backend(self, extent: Extent) -> None:
        """Verify the memory backend as QEMU's monitor reports it, where that answers."""
        for backend in await self._monitors.backends(extent.uuid) or ():
            wrong = (backend.kind, backend.size_bytes, backend.shared) != (
                "memory-backend-file", extent.size_bytes, True,
            )  # fmt: skip
            if backend.id == f"mem{extent.alias}" and wrong:
                raise NotMapped(
                    f"QEMU reports {extent.alias} as a {backend.kind} of {format_size(backend.size_bytes)}.",
                    hint="Look at <memoryBacking> of the domain, and apply it again.",
                )


def _documents(libvirt: Hypervisor, uuid: str) -> tuple[bytes, bytes]:
    """Return the live and the persistent XML; empty where there is none."""
    live = libvirt.live_xml(uuid) or b""
    if not live:
        raise DomainRefused(f"Domain {uuid} is not running.", hint="Start it first.")
    return live, libvirt.inactive_xml(uuid) if libvirt.is_persistent(uuid) else b""


def _with_pool_blocks(device: Device, extent: Extent) -> Device:
    """Return the device with blocks of whole pages of its pool."""
    return replace(device, block_bytes=max(device.block_bytes, extent.page_size)) if device.block_bytes else device
