# SPDX-License-Identifier: GPL-2.0-or-later
"""Park domains, unpark them, and refresh their QEMU: the guest's memory stays in the pool meanwhile.

::

    park      recorded; QEMU told to leave the memory out; libvirt saves     RUNNING → PARKED
    unpark    recorded; libvirt restores from a feed; the new QEMU is told
              before it can read any of it; recorded; the guest goes on      PARKED  → RUNNING
    refresh   one after the other

Until ``ParkedStep.RESUMING`` is recorded, whatever fails leaves the domain parked or running; ``settle`` decides
which it is after a crash. libvirt is called under no lock but the one that serialises operations on the devices of
the domain.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from virt_dmem.allocation.models import Parked, ParkedStep, Phase, Reservation
from virt_dmem.domain_xml.devices import is_boot_backend
from virt_dmem.domain_xml.reader import DomainDocument
from virt_dmem.domains.device_ops import DeviceOperations
from virt_dmem.domains.extents import ReportProgress, StepProgress
from virt_dmem.domains.parked import state_files
from virt_dmem.domains.parked.refusals import file_gone, is_parked, refuse_devices, refuse_unsettled
from virt_dmem.domains.parked.restores import NAMESPACE, Restores
from virt_dmem.errors import DmemError, DomainParked, DomainRefused, HypervisorError
from virt_dmem.hypervisor import ignore_shared
from virt_dmem.hypervisor.processes import qemu_pid
from virt_dmem.hypervisor.qmp import Monitors, monitor_of
from virt_dmem.hypervisor.saved_state import SavedState, read_saved_state
from virt_dmem.hypervisor.state_feed import StateFeed, end_readers
from virt_dmem.os_errors import explained
from virt_dmem.pools import extent_files
from virt_dmem.runtime.aio import cancel_and_wait, off_loop
from virt_dmem.runtime.deadline import within
from virt_dmem.units import format_size

__all__ = ["Parking", "ParkedChange"]

log = logging.getLogger(__name__)

WIN_SECONDS = 120.0
"""Limit of the time from the start of a restoring QEMU until its monitor has answered."""
GIVE_UP_SECONDS = 10.0
"""Within which a QEMU ends that found no stream."""
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class ParkedChange:
    """The outcome for a domain."""

    uuid: str
    name: str
    state: str
    """parked, running, paused (as it was when it was parked), discarded, or possible (a dry run)."""
    state_file: str = ""
    """Of a parked domain."""
    pause_seconds: float = 0.0
    """How long the guest did not run, of a refresh."""


class Parking:
    """Park and unpark domains, one operation at a time for each."""

    def __init__(self, operations: DeviceOperations, monitors: Monitors, restores: Restores) -> None:
        self._operations = operations
        self._config = operations.config
        self._ledger = operations.ledger
        self._extents = operations.extents
        self._monitors = monitors
        self._restores = restores
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[ParkedChange]] = set()

    def is_busy(self, uuid: str) -> bool:
        """Return whether an operation of ours works on a domain."""
        return uuid in self._busy

    async def close(self) -> None:
        """Cancel all operations; the next start of virt-dmemd settles those left unfinished."""
        await cancel_and_wait(self._tasks)

    # Requests

    async def park(self, domain: str, report: ReportProgress) -> ParkedChange:
        """Save a running domain, and keep its memory where it is.

        :raise DomainRefused: When it does not run on pool memory, or cannot be parked.
        :raise HypervisorError: When libvirt or QEMU fail; the message says what is kept.
        """
        reservation = self._running(domain)
        return await self._run(reservation.uuid, lambda: self._park(reservation.uuid, report))

    async def unpark(self, domain: str, report: ReportProgress) -> ParkedChange:
        """Restore a parked domain, with its memory as it is.

        :raise DomainRefused: When it is not parked.
        :raise HypervisorError: When libvirt or QEMU fail; the message says what is kept.
        """
        reservation = self._parked(domain)
        return await self._run(reservation.uuid, lambda: self._unpark(reservation.uuid, report))

    async def discard(self, domain: str) -> ParkedChange:
        """Give up a parked guest: remove its state file, and free its memory.

        :raise DomainRefused: When it is not parked.
        """
        reservation = self._parked(domain)
        return await self._run(reservation.uuid, lambda: self._discard(reservation.uuid))

    async def refresh(self, domain: str, report: ReportProgress, *, dry_run: bool = False) -> ParkedChange:
        """Replace a domain's QEMU by the one that is installed now, or (``dry_run``) tell whether that is possible.

        :raise DomainRefused: When it cannot be parked, or the new QEMU lacks its machine type.
        :raise HypervisorError: When libvirt or QEMU fail; the message says what is kept.
        """
        reservation = self._running(domain)
        uuid = reservation.uuid

        async def work() -> ParkedChange:
            await self._operations.ask_libvirt(lambda libvirt: libvirt.require_machine(uuid))
            if dry_run:
                async with self._operations.lock(uuid):
                    await self._require_parkable(uuid)
                return ParkedChange(uuid, reservation.name, "possible")
            began = time.monotonic()
            await self._park(uuid, report)
            change = await self._unpark(uuid, report)
            return ParkedChange(uuid, change.name, change.state, pause_seconds=time.monotonic() - began)

        return await self._run(uuid, work)

    def _running(self, domain: str) -> Reservation:
        found = self._ledger.find_named(domain)
        if found and (parked := self._ledger.parked(found.uuid)):
            raise is_parked(found.name, parked)
        return self._operations.require_running_named(domain)

    def _parked(self, domain: str) -> Reservation:
        found = self._ledger.find_named(domain)
        if found is None or self._ledger.parked(found.uuid) is None:
            raise DomainRefused(
                f"Domain {domain} is not parked.",
                hint="'virt-dmem list' shows the domains that are, and the others.",
            )
        return found

    async def _run(self, uuid: str, work: Callable[[], Coroutine[Any, Any, ParkedChange]]) -> ParkedChange:
        """Run an operation to its end, whatever becomes of its request; one of a domain at a time."""
        if uuid in self._busy:
            raise DomainRefused(
                f"Domain {uuid} is being parked or unparked already.", hint="Wait until that has ended."
            )
        self._busy.add(uuid)

        async def run() -> ParkedChange:
            try:
                return await work()
            finally:
                self._busy.discard(uuid)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_outcome)
            raise

    # Park

    async def _park(self, uuid: str, report: ReportProgress) -> ParkedChange:
        async with self._operations.lock(uuid):
            report(StepProgress("checking", 0, 0))
            reservation = await self._require_parkable(uuid)
            state_file = state_files.file_of(self._config, uuid)
            await asyncio.to_thread(state_files.require_room, state_file.parent)
            self._ledger.set_parked(uuid, ParkedStep.PARKING, state_file)
            report(StepProgress("saving", 0, 0))
            try:
                async with self._monitors.commands(uuid) as command:
                    await ignore_shared.switch(command, on=True)
                await self._operations.ask_libvirt(lambda libvirt: libvirt.save(uuid, state_file))
                if await asyncio.to_thread(read_saved_state, state_file) is None:
                    raise HypervisorError(
                        f"libvirt saved domain {reservation.name}, and {state_file} is not complete.",
                        hint="Check the file system.",
                    )
                await self._note_parked(uuid)
            except DmemError as error:
                raise await self._settled_failure(reservation, error) from error
            log.info("%s: parked, %s kept", reservation.name, format_size(reservation.size_bytes))
            return ParkedChange(uuid, reservation.name, "parked", str(state_file))

    async def _require_parkable(self, uuid: str) -> Reservation:
        reservation = self._operations.require_running(uuid)
        refuse_unsettled(reservation)
        live = await self._operations.ask_libvirt(lambda libvirt: libvirt.live_xml(uuid))
        if live is None:
            raise DomainRefused(f"Domain {reservation.name} is not running.", hint="Start it first.")
        await off_loop(lambda xml: refuse_devices(reservation.name, xml.root), DomainDocument(live))
        await within(partial(self._require_memory, reservation), f"the memory of {reservation.name}")
        aliases = [extent.alias for extent in reservation.extents]
        ours = {alias if is_boot_backend(alias) else f"mem{alias}" for alias in aliases}
        async with self._monitors.commands(uuid) as command:
            await ignore_shared.require_kept(command, reservation.name, ours)
        return reservation

    def _require_memory(self, reservation: Reservation) -> None:
        """Require that the memory would be there without its QEMU: in files, and the same that it maps."""
        name = reservation.name
        self._extents.require_reachable(reservation.extents)
        if gone := [extent.path for extent in reservation.extents if not extent.path.is_file()]:
            raise file_gone(name, gone[0])
        pid = qemu_pid(Path(self._config.libvirt.run_dir), name)
        if pid is not None:
            mapped = [(extent.alias, extent.path, extent.size_bytes) for extent in reservation.extents]
            extent_files.check_mapped(pid, mapped)

    async def _note_parked(self, uuid: str) -> None:
        """Record that a domain is saved, and keep its memory, whether its hooks were served or not."""
        parked = self._ledger.parked(uuid)
        reservation = self._ledger.find(uuid)
        if parked is None or reservation is None:
            return
        self._ledger.set_parked(uuid, ParkedStep.PARKED, parked.state_file)
        async with self._extents.lock(uuid):
            await self._extents.keep(reservation)
        if parked.state_file.exists():
            await asyncio.to_thread(state_files.secure, parked.state_file)

    async def _settled_failure(self, reservation: Reservation, error: DmemError) -> DmemError:
        """Settle a domain after a failure; return the error with what is so now."""
        try:
            await self._settle(reservation.uuid)
        except DmemError as more:
            log.warning("%s: %s", reservation.name, more)
        parked = self._ledger.parked(reservation.uuid)
        if parked is None:
            found = self._ledger.find(reservation.uuid)
            now = "It runs on as before." if found else "It has ended meanwhile, and its memory is free."
        elif parked.step is ParkedStep.PARKED:
            now = (
                f"It is parked: its memory of {format_size(reservation.size_bytes)} and its state file"
                f" {parked.state_file} are kept; 'virt-dmem unpark {reservation.uuid}' tries again."
            )
        else:
            now = (
                f"Whether it runs is not known yet: its memory of {format_size(reservation.size_bytes)}, and"
                f" {parked.state_file} if there is one, are kept until libvirt and QEMU tell."
            )
        return type(error)(error.message, hint=f"{now} {error.hint}")

    # Unpark

    async def _unpark(self, uuid: str, report: ReportProgress) -> ParkedChange:
        async with self._operations.lock(uuid):
            parked, reservation = self._ledger.parked(uuid), self._ledger.find(uuid)
            if parked is None or reservation is None:
                raise DomainRefused(f"Domain {uuid} is not parked.", hint="'virt-dmem list' shows those that are.")
            if parked.step is not ParkedStep.PARKED:
                await self._settle(uuid)
                parked = self._ledger.parked(uuid)
                if parked is None:
                    return ParkedChange(
                        uuid, reservation.name, "running" if self._ledger.find(uuid) else "discarded"
                    )
                if parked.step is not ParkedStep.PARKED:
                    raise is_parked(reservation.name, parked)
            await self._require_name(reservation)
            await asyncio.to_thread(self._extents.require_reachable, reservation.extents)
            state = await asyncio.to_thread(state_files.require_state, reservation, parked)
            report(StepProgress("restoring", 0, 0))
            try:
                await self._restore(reservation, parked, state)
                await self._finish(uuid)
            except DmemError as error:
                raise await self._settled_failure(reservation, error) from error
            log.info("%s: unparked", reservation.name)
            return ParkedChange(uuid, reservation.name, "running" if state.was_running else "paused")

    async def _require_name(self, reservation: Reservation) -> None:
        """Refuse a domain that was renamed while it was parked: its state has the former name."""
        uuid, name = reservation.uuid, reservation.name
        now = await self._operations.ask_libvirt(lambda libvirt: libvirt.name_of(uuid))
        if now not in ("", name):
            raise DomainParked(
                f"Domain {name} was renamed while it was parked, to {now}, and libvirt restores it by its former"
                " name only.",
                hint=f"Run 'virsh domrename {uuid} {shlex.quote(name)}', and unpark it again. It can be renamed"
                " when it is shut down.",
            )

    async def _restore(self, reservation: Reservation, parked: Parked, state: SavedState) -> None:
        """Have libvirt restore a domain; its processors do not run yet.

        :raise DmemError: When it is not restored; everything is as before then, once its QEMU has ended.
        """
        uuid = reservation.uuid
        try:
            feed = StateFeed(parked.state_file, state, self._fifo(uuid))
        except OSError as error:
            raise explained(error) from error
        self._ledger.set_parked(uuid, ParkedStep.UNPARKING, parked.state_file)
        with self._restores.restoring(uuid, feed):
            feeding = asyncio.create_task(asyncio.to_thread(feed.run))
            restoring = asyncio.create_task(
                self._operations.ask_libvirt(lambda libvirt: libvirt.restore(self._fifo(uuid)))
            )
            winning = asyncio.create_task(self._win(reservation, feed))
            try:
                await asyncio.wait({restoring, winning}, return_when=asyncio.FIRST_COMPLETED)
                if winning.done() and winning.exception() is not None:
                    feed.abort()
                    await asyncio.wait({restoring}, timeout=GIVE_UP_SECONDS)
                    if not restoring.done():  # it waits for a stream that has ended; its guest never ran
                        await self._operations.ask_libvirt(lambda libvirt: libvirt.destroy(uuid))
                await asyncio.wait({restoring})
            finally:
                feed.abort()
                await cancel_and_wait([winning])
                if restoring.done():
                    feed.finish()
                    await asyncio.wait({feeding})
            lost = None if winning.cancelled() else winning.exception()
            if (failed := restoring.exception()) is not None:
                log.warning("%s: %s", reservation.name, failed)
                raise lost if isinstance(lost, DmemError) else failed

    async def _win(self, reservation: Reservation, feed: StateFeed) -> None:
        """Tell the new QEMU to leave the memory as it is, before anything that it restores can reach it.

        :raise HypervisorError: When it cannot be told.
        """
        uuid = reservation.uuid
        while (change := self._ledger.phases().get(uuid)) is None or change.phase is not Phase.LINKED:
            await asyncio.sleep(_POLL_SECONDS)
        deadline = time.monotonic() + WIN_SECONDS
        while True:
            try:
                pid = qemu_pid(Path(self._config.libvirt.run_dir), reservation.name)
                async with monitor_of(uuid, pid) as command:
                    await ignore_shared.require_waiting(command)
                    await ignore_shared.switch(command, on=True)
                break
            except HypervisorError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL_SECONDS)
        feed.release()

    async def _finish(self, uuid: str) -> None:
        """Let a restored domain go on: once QEMU would save it with its memory again. May be repeated.

        :raise DmemError: When that fails; it is tried again by reconcile.
        """
        parked = self._ledger.parked(uuid)
        if parked is None:
            return
        async with self._monitors.commands(uuid) as command:
            await ignore_shared.switch(command, on=False)
        past = parked.state_file
        if parked.step is ParkedStep.UNPARKING:
            past = state_files.past_of(parked.state_file)
            if parked.state_file.exists():
                parked.state_file.rename(past)
            self._ledger.set_parked(uuid, ParkedStep.RESUMING, past)
        state = await asyncio.to_thread(read_saved_state, past)
        if state is not None and state.was_running:
            await self._operations.ask_libvirt(lambda libvirt: libvirt.resume(uuid))
        await self._operations.ask_libvirt(lambda libvirt: libvirt.remove_metadata(uuid, NAMESPACE))
        await self._extents.forget_state(replace(parked, state_file=past))

    async def _discard(self, uuid: str) -> ParkedChange:
        async with self._operations.lock(uuid):
            await self._settle(uuid)
            parked, reservation = self._ledger.parked(uuid), self._ledger.find(uuid)
            if parked is None or reservation is None or parked.step is not ParkedStep.PARKED:
                raise DomainParked(
                    f"Domain {uuid} is not parked any more, or not yet.", hint="'virt-dmem list' shows its phase."
                )
            async with self._extents.lock(uuid):
                await self._extents.forget_state(parked)
                await self._extents.release(reservation)
            log.warning("%s: its guest was given up, and its memory is free", reservation.name)
            return ParkedChange(uuid, reservation.name, "discarded")

    # After a crash

    async def settle(self, uuid: str, *, dry_run: bool = False) -> list[str]:
        """Find out what became of a domain that was being parked or unparked, and finish that; return actions.

        :raise DmemError: When libvirt or QEMU do not answer; everything is kept then.
        """
        if self.is_busy(uuid) or dry_run:
            return []
        async with self._operations.lock(uuid):
            return await self._settle(uuid)

    async def _settle(self, uuid: str) -> list[str]:
        parked, reservation = self._ledger.parked(uuid), self._ledger.find(uuid)
        if parked is None or reservation is None:
            return []
        if parked.step is ParkedStep.PARKED and reservation.phase is Phase.PARKED:
            return []
        active = await self._operations.ask_libvirt(lambda libvirt: libvirt.may_run(uuid))
        if active:
            return await self._settle_active(reservation, parked)
        name = reservation.name
        if parked.step is ParkedStep.RESUMING:
            async with self._extents.lock(uuid):
                await self._extents.release(reservation)
            return [f"free {format_size(reservation.size_bytes)} of {name}: it has ended after it was unparked"]
        if parked.step is ParkedStep.PARKING:
            complete = await asyncio.to_thread(read_saved_state, parked.state_file) is not None
            by_others = not complete and await self._operations.ask_libvirt(lambda libvirt: libvirt.was_saved(uuid))
            if not complete and not by_others:
                async with self._extents.lock(uuid):
                    await self._extents.forget_state(parked)
                    await self._extents.release(reservation)
                return [f"free {format_size(reservation.size_bytes)} of {name}: it has ended while it was parked"]
        else:
            end_readers(self._fifo(uuid))
            state_files.put_back(parked.state_file)
        await self._note_parked(uuid)
        return [f"keep {format_size(reservation.size_bytes)} of {name}: it is parked, {parked.state_file}"]

    async def _settle_active(self, reservation: Reservation, parked: Parked) -> list[str]:
        """Settle a domain that libvirt calls active."""
        uuid, name = reservation.uuid, reservation.name
        if parked.step is ParkedStep.PARKED:
            return []  # not by us, and on other memory
        if parked.step is ParkedStep.UNPARKING and reservation.phase is not Phase.RUNNING:
            # its feed ended with the virt-dmemd before this one, and its guest did not run: QEMU may wait for ever
            await self._operations.ask_libvirt(lambda libvirt: libvirt.destroy(uuid))
            await self._note_parked(uuid)
            return [f"end the QEMU of {name}: restoring it had been interrupted, and it is parked as before"]
        if reservation.phase is not Phase.RUNNING:
            return []
        if await self._operations.ask_libvirt(lambda libvirt: libvirt.settled_xml(uuid)) is None:
            return []  # it ended
        if parked.step is ParkedStep.PARKING:
            async with self._monitors.commands(uuid) as command:
                await ignore_shared.switch(command, on=False)
            await self._extents.forget_state(parked)
            return [f"{name} runs on: parking it had been interrupted"]
        end_readers(self._fifo(uuid))
        await self._finish(uuid)
        return [f"{name} goes on: unparking it had been interrupted"]

    def _fifo(self, uuid: str) -> Path:
        return state_files.file_of(self._config, uuid).with_suffix(".fifo")


def _log_outcome(task: asyncio.Task[ParkedChange]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("%s", error)
