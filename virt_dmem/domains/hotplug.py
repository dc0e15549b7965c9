# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices of a domain that runs, from ``attach`` to ``detach``.

::

    attach   reserve, make, prefault                    → PLANNED     rolled back whole
             give to QEMU's user, link                  → ATTACHING   rolled back whole, once libvirt has refused
             libvirt attaches; verify, take back        → READY
    detach   ask the guest                              → DETACHING   pending for as long as the guest likes
             QEMU maps it no more                       → gone

QEMU throws away what is in the memory of a virtio-mem device when it makes it (``virtio_mem_device_realize`` in its
hw/virtio/virtio-mem.c): such a device is attached with nothing plugged, then prefaulted, then plugged.

Once libvirt was asked to attach, nobody who goes away stops it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from virt_dmem.aio import aside
from virt_dmem.allocation.models import Extent, ExtentState, Reservation
from virt_dmem.deadline import within
from virt_dmem.domain_xml.devices import Device, device_xml, find_device, free_alias, memory_of, require_room
from virt_dmem.domain_xml.reader import DomainMemory, read_domain, require_whole_pages
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
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.errors import DmemError, DomainRefused, ExtentError, HypervisorError, NotMapped
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.hypervisor.processes import find_qemu
from virt_dmem.hypervisor.qemu_user import placed
from virt_dmem.hypervisor.qmp import Monitors
from virt_dmem.pools import extent_files
from virt_dmem.units import MIB, format_size

__all__ = ["Hotplug"]

log = logging.getLogger(__name__)

_PLUG_SECONDS = 10.0
"""How long a guest may do nothing of what virtio-mem asks of it before its attach is called pending."""
_TAKE_AWAY_TRIES = 3
_TAKE_AWAY_SECONDS = 3.0
"""How long a guest may say nothing when an attach that failed is undone; libvirt waits for 5 s before that."""
_BLOCK_BYTES = 2 * MIB
"""What virtio-mem is plugged by at least: the size of a transparent huge page on x86 and of QEMU's default."""


class Hotplug:
    """Attaches and detaches memory devices, one at a time for each domain."""

    def __init__(self, changes: DeviceOperations, virtio_mem: VirtioMem, monitors: Monitors) -> None:
        self._changes = changes
        self._virtio_mem = virtio_mem
        self._monitors = monitors
        self._ledger = changes.ledger
        self._lifecycle = changes.lifecycle

    async def attach(
        self,
        domain: str,
        size_bytes: int,
        report: Reporter,
        *,
        model: str = "dimm",
        cell: int = 0,
        node: int | None = None,
        persistent: bool = False,
    ) -> Change:
        """Give a domain that runs a memory device whose memory is there before QEMU hears of it.

        Who cancels this before libvirt was asked undoes it whole; afterwards it goes on to its end.

        :param cell: The guest NUMA cell that it belongs to.
        :param node: The host node to take the memory from; None: as the domain's XML says of that cell.
        :raise DomainRefused: When the domain does not run on pool memory or cannot be given more.
        :raise NotEnoughMemory: When the pool has not so much.
        """
        reservation = self._changes.running_named(domain)

        async def work(progress: Progress) -> Change:
            async with self._changes.lock(reservation.uuid):
                live, inactive = await self._changes.ask(lambda libvirt: _documents(libvirt, reservation.uuid))
                if persistent and not inactive:
                    raise DomainRefused(
                        f"Domain {reservation.name} is transient.", hint="Attach the memory without --persistent."
                    )
                await aside(lambda xml: require_room(xml, model, size_bytes, cell), live)
                taken = "".join(f"{extent.alias}'" for extent in self._ledger.extents_of(reservation.uuid)).encode()
                alias = await aside(lambda xmls: free_alias(xmls, taken), live + inactive)
                device = Device(alias, model, size_bytes, cell, node)
                if model == "virtio-mem":
                    device = replace(device, block_bytes=_BLOCK_BYTES)
                return await self._attach(
                    reservation, live, device, report=report, progress=progress, persistent=persistent
                )

        return await self._changes.whatever_the_caller_does(work)

    async def detach(self, domain: str, alias: str, report: Reporter, *, wait_seconds: float) -> Change:
        """Ask a guest to let go of a memory device, and wait so long for it; what is free is free then.

        A guest may refuse, or say nothing: the change is then pending, and comes to its end whenever it lets go.

        :raise DomainRefused: When that is no memory device, or none of a pool.
        """
        reservation = self._changes.running_named(domain)
        extent = extent_of(reservation, alias)

        async def work(_progress: Progress) -> Change:
            async with self._changes.lock(reservation.uuid):
                _live, inactive = await self._changes.ask(lambda libvirt: _documents(libvirt, reservation.uuid))
                found = await aside(lambda xml: find_device(xml, alias), inactive) if inactive else None
                persistent = found is not None
                self._changes.refused.discard((reservation.uuid, alias))
                self._ledger.set_state(extent, ExtentState.DETACHING)
                try:
                    await self._changes.ask(
                        lambda libvirt: libvirt.detach(reservation.uuid, alias, persistent=persistent)
                    )
                except HypervisorError:
                    if await self._changes.let_go(extent):  # it was quicker, or somebody else asked before us
                        return change_of(reservation, extent, "detached")
                    self._ledger.set_state(extent, ExtentState.POPULATED)
                    raise
                deadline = time.monotonic() + wait_seconds
                while not await self._changes.let_go(extent):
                    refused = (reservation.uuid, alias) in self._changes.refused
                    if refused or time.monotonic() > deadline:
                        said = "refused" if refused else f"did not answer within {wait_seconds:.0f} s"
                        message = (
                            f"The guest {said}; {format_size(extent.size_bytes)} stay charged, and are free as soon"
                            " as it lets go of them."
                        )
                        log.warning("%s: %s: %s", reservation.name, alias, message)
                        return change_of(reservation, extent, "pending", message=message)
                    report(Report(f"waiting for the guest to let go of {alias}", 0, extent.size_bytes))
                    await asyncio.sleep(POLL_SECONDS)
                log.info("%s: %s detached, %s free", reservation.name, alias, format_size(extent.size_bytes))
                return change_of(reservation, extent, "detached")

        return await self._changes.whatever_the_caller_does(work)

    # Steps

    async def _attach(
        self,
        reservation: Reservation,
        live: bytes,
        device: Device,
        *,
        report: Reporter,
        progress: Progress,
        persistent: bool,
    ) -> Change:
        memory = await aside(partial(memory_of, device=device), live)
        async with self._lifecycle.lock(reservation.uuid):
            self._changes.running(reservation.uuid)
            (extent,) = await self._lifecycle.reserve_more(memory)
        device = _fitting(device, extent)
        self._changes.busy.add(extent.id)
        try:
            try:
                if device.block_bytes:
                    require_whole_pages(
                        reservation.name,
                        (replace(memory.cells[0], block_bytes=device.block_bytes),),
                        extent.page_size,
                    )
                    await self._lifecycle.make(extent)
                else:
                    await self._lifecycle.fill([extent], report, gentle=True)
                pid = await self._offer(reservation, extent, await aside(read_domain, live))
            except BaseException:
                await asyncio.shield(self._lifecycle.free(extent))
                raise
            progress.offered = True
            report(Report(f"attaching {extent.alias}", extent.size_bytes, extent.size_bytes))
            try:
                await self._changes.ask(
                    lambda libvirt: libvirt.attach(reservation.uuid, device_xml(device), persistent=persistent)
                )
                wanted = [(extent.alias, extent.path, extent.size_bytes)]
                await within(partial(extent_files.check_mapped, pid, wanted), f"QEMU {pid} of {reservation.name}")
                await self._check_backend(extent)
                change = change_of(reservation, extent, "attached")
                if device.block_bytes:
                    await self._lifecycle.populate(extent, report, gentle=True)
                    change = await self._virtio_mem.plug(
                        reservation, extent, device, device.size_bytes, report=report, wait_seconds=_PLUG_SECONDS
                    )
            except DmemError as error:
                raise await self._undone(reservation, extent, error, persistent=persistent) from error
            except OSError as error:
                failed = ExtentError(
                    f"{extent.alias} could not be attached: {error.strerror or error}.",
                    hint="Look in virt-dmemd's log, and try again.",
                )
                raise await self._undone(reservation, extent, failed, persistent=persistent) from error
            await self._changes.commit(reservation, extent)
        finally:
            self._changes.busy.discard(extent.id)
        log.info("%s: %s of %s attached", reservation.name, extent.alias, format_size(extent.size_bytes))
        return change if change.state == "pending" else replace(change, state="attached")

    async def _offer(self, reservation: Reservation, extent: Extent, running: DomainMemory) -> int:
        """Let QEMU, whose PID is returned, open the extent where libvirt will tell it to."""
        config, name, uuid = self._changes.config, reservation.name, reservation.uuid
        pid = await within(partial(find_qemu, Path(config.libvirt.run_dir), name, uuid), f"QEMU of {name}")
        async with self._lifecycle.lock(reservation.uuid):
            if pid is None or extent.id not in {
                held.id for held in self._changes.running(reservation.uuid).extents
            }:
                raise ended(reservation)
            directory, (uid, gid) = await within(partial(placed, config, running), f"the directory of {name}")
            link = directory / extent.alias
            self._ledger.set_state(extent, ExtentState.ATTACHING, link=str(link))

            def offer() -> None:
                extent_files.grant_access(extent.path, uid, gid)
                extent_files.link(extent.path, link, users=(uid,))
                extent_files.check_visible(pid, extent.path)

            await within(offer, f"QEMU {pid} of {name}")
        return pid

    async def _undone(
        self, reservation: Reservation, extent: Extent, error: DmemError, *, persistent: bool
    ) -> DmemError:
        """Undo an attach that failed after libvirt was asked; return what to tell of it."""
        device = None
        try:
            live = await self._changes.ask(lambda libvirt: libvirt.settled_xml(reservation.uuid))
            device = await aside(lambda xml: find_device(xml, extent.alias), live) if live else None
            if device is not None:
                link = (self._changes.now(extent) or extent).link
                self._ledger.set_state(extent, ExtentState.DETACHING, link=link)
                await self._take_away(extent, persistent=persistent)
        except HypervisorError as refusal:
            # before QEMU 8.2 a virtio-mem device cannot be taken away, and libvirt may be gone
            if device is not None and not await self._changes.let_go(extent):
                await self._changes.commit(reservation, extent)
                if device.model == "virtio-mem":
                    self._virtio_mem.settle(extent, device.current_bytes)
            hint = f"It could not be taken away again: {refusal.message} 'virt-dmem show' tells what is there."
            return HypervisorError(error.message, hint=hint)
        if not await self._changes.let_go(extent):
            self._ledger.set_state(extent, ExtentState.DETACHING)
            stay = f"{format_size(extent.size_bytes)} stay charged until the guest lets go of {extent.alias}."
            return type(error)(error.message, hint=f"{error.hint} {stay}")
        return error

    async def _take_away(self, extent: Extent, *, persistent: bool) -> None:
        """Ask a guest some times to let go of what it was just given: while it takes it in, it refuses."""
        key = (extent.uuid, extent.alias)
        for number in range(_TAKE_AWAY_TRIES):
            self._changes.refused.discard(key)

            def detach(libvirt: Hypervisor, *, both: bool = persistent and not number) -> None:
                libvirt.detach(*key, persistent=both)

            await self._changes.ask(detach)
            deadline = time.monotonic() + _TAKE_AWAY_SECONDS
            while key not in self._changes.refused and time.monotonic() < deadline:
                if await self._changes.let_go(extent):
                    return
                await asyncio.sleep(POLL_SECONDS)
            if key not in self._changes.refused:  # it says nothing: asking again changes nothing
                return
            await asyncio.sleep(1)

    async def _check_backend(self, extent: Extent) -> None:
        """Look whether QEMU calls its memory backend what it has to be, where its monitor answers."""
        for backend in await self._monitors.backends(extent.uuid) or ():
            wrong = (backend.kind, backend.size_bytes, backend.shared) != (
                "memory-backend-file", extent.size_bytes, True,
            )  # fmt: skip
            if backend.id == f"mem{extent.alias}" and wrong:
                raise NotMapped(
                    f"QEMU calls {extent.alias} a {backend.kind} of {format_size(backend.size_bytes)}.",
                    hint="Look at <memoryBacking> of the domain, and apply it again.",
                )


def _documents(libvirt: Hypervisor, uuid: str) -> tuple[bytes, bytes]:
    """Return live and persistent XML; empty where there is none."""
    live = libvirt.live_xml(uuid) or b""
    if not live:
        raise DomainRefused(f"Domain {uuid} does not run.", hint="Start it first.")
    return live, libvirt.inactive_xml(uuid) if libvirt.is_persistent(uuid) else b""


def _fitting(device: Device, extent: Extent) -> Device:
    """Return the device with blocks that are whole pages of its pool."""
    return replace(device, block_bytes=max(device.block_bytes, extent.page_size)) if device.block_bytes else device
