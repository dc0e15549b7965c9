# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve libvirt's hook operations: one domain's memory from start to stop.

::

    prepare   reserve, create, place, prefault       RESERVED → PREPARED    may refuse; rolled back whole
    start     grant access to QEMU's user, link      PREPARED → LINKED      may refuse
    started   verify, revoke access, unlink          LINKED   → RUNNING     may refuse; libvirt then stops it
    stopped   note it                                any      → STOPPED
    release   remove extents that nobody maps        any      → gone        mapped extents are quarantined

No method calls libvirt: libvirtd holds the domain's lock while it waits for the hook.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Phase, Reservation
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.elements import NOT_REWRITTEN
from virt_dmem.domain_xml.monitor import socket_of
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains import guest_ram
from virt_dmem.domains.admission import Admission
from virt_dmem.domains.extents import ExtentManager, ReportProgress, StepProgress
from virt_dmem.domains.parked.refusals import is_parked
from virt_dmem.domains.step_times import StepTimes
from virt_dmem.errors import Delayed, ExtentError, NotMapped, NotPermitted, NotRewritten
from virt_dmem.host.confinement import apparmor
from virt_dmem.hypervisor import dead_monitors
from virt_dmem.hypervisor.processes import find_qemu
from virt_dmem.hypervisor.qemu_user import placed
from virt_dmem.hypervisor.remedies import how_to_apply
from virt_dmem.pools import extent_files
from virt_dmem.runtime.deadline import within
from virt_dmem.units import format_size

__all__ = ["HookOperations", "Link"]

log = logging.getLogger(__name__)

_OR_AS_IT_IS = (
    ". Or start it from XML that needs no rewrite: with <source type='file'/> and <access mode='shared'/> in its"
    " <memoryBacking>."
)


@dataclass(frozen=True)
class Link:
    """A link that the hook must find in its own mount namespace, and the file that it must lead to."""

    path: str
    device: int
    inode: int


class HookOperations:
    """The hook operations, in the order in which libvirt calls them; one at a time for each domain."""

    def __init__(
        self, config: Config, ledger: Ledger, admission: Admission, extents: ExtentManager, times: StepTimes
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._admission = admission
        self._extents = extents
        self._times = times

    async def prepare(self, domain: DomainMemory, report: ReportProgress, *, began: float | None = None) -> None:
        """Reserve all of a domain's memory and populate it, or change nothing.

        :raise NotRewritten: When the XML asks for pool memory and is not rewritten.
        :raise NotEnoughMemory: When it does not fit; names the free bytes and the largest reservation.
        :raise PrefaultFailed: When the memory could not be populated.
        """
        if not (domain.applied or domain.file_backed):
            raise NotRewritten(
                f"Domain {domain.name} asks for pool memory, and its XML {domain.lacks or NOT_REWRITTEN}.",
                hint=how_to_apply(domain.uuid, domain.name)
                + (_OR_AS_IT_IS if domain.lacks in ("", NOT_REWRITTEN) else ""),
            )
        async with self._serving(domain.uuid, "prepare", began):
            if parked := self._ledger.parked(domain.uuid):
                raise is_parked(domain.name, parked)
            left_over = self._ledger.find(domain.uuid)
            if left_over:  # libvirtd died between its prepare and its QEMU: no hook was called for it
                log.warning("%s: a reservation was left over from an interrupted start; freeing it", domain.name)
                await self._extents.release(left_over)
            with self._times.step(domain.uuid, "prepare: plan and ledger"):
                reservation = await self._admission.reserve(
                    domain, lambda doing, done, total: report(StepProgress(doing, done, total))
                )
            try:
                await self._extents.make(reservation.extents, report)
            except BaseException:
                await asyncio.shield(self._extents.release(reservation))
                self._admission.note_start(domain.uuid, succeeded=False)
                raise
            self._admission.note_start(domain.uuid, succeeded=True)
            self._ledger.set_phase(domain.uuid, Phase.PREPARED)
            log.info("%s: %s prepared", domain.name, format_size(reservation.size_bytes))

    async def prepare_parked(self, uuid: str, *, began: float | None = None) -> None:
        """Take the memory that is kept for a domain that is being restored: nothing is made, nor populated.

        :raise ExtentError: When it is not kept any more.
        """
        async with self._serving(uuid, "prepare", began):
            reservation = self._ledger.find(uuid)
            if reservation is None or reservation.phase is not Phase.PARKED:
                raise ExtentError(
                    f"Domain {uuid} has no memory that is kept for it.", hint="'virt-dmem list' shows what is kept."
                )
            for extent in reservation.extents:
                extent_files.file_id(extent.path)
            self._ledger.set_phase(uuid, Phase.PREPARED)

    async def start(self, domain: DomainMemory, *, began: float | None = None) -> list[Link]:
        """Grant QEMU's user access to the extents, and link them where QEMU will open them.

        :return: The links, for the hook to check in libvirtd's own mount namespace.
        :raise ExtentError: When a link cannot be made, or libvirt's sizes differ from the prepared ones.
        :raise NotPermitted: When AppArmor would keep QEMU from its memory.
        """
        async with self._serving(domain.uuid, "start", began):
            reservation = self._require(domain, Phase.PREPARED)
            _check_sizes(domain, reservation)
            self._check_apparmor(domain)
            find = partial(placed, self._config, domain)
            directory, (uid, gid) = await within(find, f"the directory of {domain.name}")
            self._ledger.set_links({extent.id: str(directory / extent.alias) for extent in reservation.extents})
            self._ledger.set_phase(domain.uuid, Phase.LINKED)

            def link_all() -> list[Link]:
                links = []
                for extent in reservation.extents:
                    extent_files.grant_access(extent.path, uid, gid, domain.selinux_imagelabel)
                    extent_files.link(extent.path, directory / extent.alias, users=(uid,))
                    file = extent_files.file_id(extent.path)
                    links.append(Link(str(directory / extent.alias), file.device, file.inode))
                return links

            with self._times.step(domain.uuid, "start: link"):
                return await within(link_all, f"links in {directory}")

    async def started(self, domain: DomainMemory, *, began: float | None = None) -> None:
        """Verify that every extent is mapped, and the guest's RAM; then remove every path to them.

        :raise NotMapped: When one is not, it has other RAM, or no QEMU is found; libvirt then ends the domain.
        """
        async with self._serving(domain.uuid, "started", began):
            reservation = self._require(domain, Phase.LINKED)
            run_dir = Path(self._config.libvirt.run_dir)
            find = partial(find_qemu, run_dir, domain.name, domain.uuid)
            pid = await within(find, f"QEMU of {domain.name}")
            if pid is None:
                raise NotMapped(
                    f"No QEMU process of domain {domain.name} was found.",
                    hint="Look into libvirt's log of the domain for the reason why it ended.",
                )
            with self._times.step(domain.uuid, "started: verify"):
                await within(partial(guest_ram.verify, reservation, pid), f"QEMU {pid} of {domain.name}")

            def close() -> None:
                for extent in reservation.extents:
                    extent_files.revoke_access(extent.path)
                    extent_files.unlink(Path(extent.link), extent.path)
                extent_files.close_socket(socket_of(domain.uuid))

            await within(close, f"extents and links of {domain.name}")
            await self._extents.reclaim.truncate_surplus(reservation.extents)
            self._ledger.set_links({extent.id: "" for extent in reservation.extents})
            self._ledger.set_phase(domain.uuid, Phase.RUNNING)
            log.info("%s: QEMU %d runs on %s of pool memory", domain.name, pid, format_size(reservation.size_bytes))

    async def stopped(self, uuid: str) -> None:
        """Note that the domain stops; free nothing, as QEMU may still be alive."""
        async with self._serving(uuid, "stopped"):
            if self._ledger.find(uuid) and not self._ledger.parked(uuid):
                self._ledger.set_phase(uuid, Phase.STOPPED)

    async def release(self, uuid: str) -> None:
        """Free the domain's memory; quarantine each extent that some process still maps. Its monitor is gone."""
        async with self._serving(uuid, "release"):
            reservation = self._ledger.find(uuid)
            if reservation:
                await self._extents.release(reservation)
                log.info("%s: released", reservation.name)
            with suppress(Delayed):  # reconcile removes it then
                await within(partial(dead_monitors.remove, uuid), f"the monitor of {uuid}", of=uuid)

    @asynccontextmanager
    async def _serving(self, uuid: str, operation: str, began: float | None = None) -> AsyncIterator[None]:
        """Serve one operation of a domain at a time. ``began``: when its hook did, in seconds since the epoch."""
        async with self._extents.lock(uuid):
            with self._times.operation(uuid, operation, began):
                yield

    def _require(self, domain: DomainMemory, phase: Phase) -> Reservation:
        reservation = self._ledger.find(domain.uuid)
        if reservation is None or reservation.phase is not phase:
            found = f"is {reservation.phase.value}" if reservation else "has no reservation"
            raise ExtentError(
                f"Domain {domain.name} {found}, and this operation needs it {phase.value}.",
                hint="Start the domain again; virt-dmemd did not see the operation before this one.",
            )
        return reservation

    def _check_apparmor(self, domain: DomainMemory) -> None:
        """Explain here what QEMU's own "can't open backing store … Permission denied" leaves open."""
        pools_dir = self._config.pools_dir
        if domain.apparmor_label and not apparmor.lets_qemu_in(pools_dir):
            raise NotPermitted(
                f"AppArmor confines QEMU as {domain.apparmor_label}, and no rule lets it reach {pools_dir}.",
                hint=f"Install virt-dmem again, or write '{apparmor.rule(pools_dir)} rwk,' where 'virt-dmem check'"
                " says; no profile has to be loaded again.",
            )


def _check_sizes(domain: DomainMemory, reservation: Reservation) -> None:
    wanted = {cell.alias: cell.size_bytes for cell in domain.cells}
    held = {extent.alias: extent.size_bytes for extent in reservation.extents}
    if wanted != held:
        raise ExtentError(
            f"libvirt starts {domain.name} with memory backends {wanted}, and prepared were {held} (bytes).",
            hint="Make the domain's memory a multiple of the pool's page size, and start it again.",
        )
