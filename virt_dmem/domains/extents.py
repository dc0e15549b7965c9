# SPDX-License-Identifier: GPL-2.0-or-later
"""Make, populate, remove and quarantine extents: the files in a pool that back the memory of a domain.

Hook operations, hotplug, virtio-mem and reconcile share this. No method calls libvirt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, Parked, ParkedStep, Part, Phase, Reservation
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.allocation.reclaim import Reclaimer
from virt_dmem.config.schema import Config
from virt_dmem.domains.step_times import StepTimes
from virt_dmem.errors import Delayed, DmemError, ExtentError, LedgerError, PrefaultFailed
from virt_dmem.pools import extent_files, mount_state
from virt_dmem.pools.backends.page_counts import describe_gone
from virt_dmem.pools.prefault import Mode, Progress, prefault
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.runtime.attempts import Round
from virt_dmem.runtime.deadline import within
from virt_dmem.units import format_size

__all__ = ["ExtentManager", "ReportProgress", "StepProgress"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepProgress:
    """Progress of a long step, in bytes of the whole domain."""

    message: str
    done_bytes: int
    total_bytes: int


ReportProgress = Callable[[StepProgress], None]


class ExtentManager:
    """Own the extents' files, from the moment that they are charged until their memory is the kernel's again."""

    def __init__(self, config: Config, ledger: Ledger, inventory: Inventory, times: StepTimes) -> None:
        self._config = config
        self._ledger = ledger
        self._inventory = inventory
        self._times = times
        self.prezero = PrezeroCache(config, ledger, inventory)
        self.reclaim = Reclaimer(ledger, inventory, self.prezero)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._broken: set[int] = set()
        """Extents (ids) whose memory failed and could not be zeroed."""

    def lock(self, uuid: str) -> asyncio.Lock:
        """Return the lock that serialises operations on a domain; never hold it across a call of libvirt."""
        return self._locks.setdefault(uuid, asyncio.Lock())  # goes when nobody holds it or waits

    def is_locked(self, uuid: str) -> bool:
        """Return whether an operation on a domain is in progress."""
        return self.lock(uuid).locked()

    # Make and populate

    async def make(self, wanted: Sequence[Extent], report: ReportProgress, *, gentle: bool = False) -> None:
        """Create extents of one domain and populate them; mark them POPULATED in the ledger when all is done.

        ``gentle``: see ``prefault``.

        :raise ExtentError: When one cannot be created or populated.
        """
        for segment in {extent.segment for extent in wanted}:
            self._require_mounted(segment)
        with self._times.step(wanted[0].uuid, "take pre-zeroed memory"):
            clean = await self.prezero.take(wanted)
        total_bytes = sum(extent.size_bytes for extent in wanted)
        done_bytes = 0
        for extent in wanted:
            if extent.id not in clean:
                extent_files.create(extent.path, extent.size_bytes)
            mode: Mode = "populate" if self._inventory.zeroes_on_allocation(extent.segment) else "zero"
            prezeroed_bytes = clean.get(extent.id, 0)
            if prezeroed_bytes < extent.size_bytes:
                await self.populate(
                    extent, report, prezeroed_bytes=prezeroed_bytes, done_bytes=done_bytes,
                    total_bytes=total_bytes, gentle=gentle, mode=mode,
                )  # fmt: skip
            done_bytes += extent.size_bytes
        self._ledger.set_populated(wanted)

    async def create_empty(self, extent: Extent) -> None:
        """Create the file of an extent, without its memory.

        :raise ExtentError: When the pool refuses it, or is not mounted any more.
        """
        self._require_mounted(extent.segment)
        await self.prezero.evict(extent.segment)
        extent_files.create(extent.path, extent.size_bytes)

    async def populate(
        self,
        extent: Extent,
        report: ReportProgress,
        *,
        prezeroed_bytes: int = 0,
        done_bytes: int = 0,
        total_bytes: int = 0,
        gentle: bool = False,
        mode: Mode = "populate",
    ) -> None:
        """Populate all memory of an extent that is charged in full; pages that are present keep their content.

        With ``mode`` "zero", for new extents where the kernel does not hand out clean memory, all is zeroed.
        ``prezeroed_bytes``: the length of its beginning that is present and clean. ``done_bytes``: of its domain,
        before it; ``total_bytes``: of its domain.

        :raise PrefaultFailed: When it could not be populated.
        """
        total_bytes = total_bytes or extent.size_bytes
        with self._times.step(extent.uuid, f"prefault {extent.alias}"), self.reclaim.populating(extent.segment):
            done_bytes += prezeroed_bytes
            report(StepProgress(f"prefaulting {extent.alias}", done_bytes, total_bytes))
            for part in extent.parts(prezeroed_bytes):
                try:
                    async with self._run_prefault(extent, mode, part, gentle=gentle) as progress:
                        async for step in progress:
                            done = done_bytes + step.done_bytes
                            report(StepProgress(f"prefaulting {extent.alias}", done, total_bytes))
                except PrefaultFailed as failure:
                    if gone := describe_gone(self._inventory.look_for_gone()):
                        raise PrefaultFailed(failure.message, hint=gone.strip()) from failure
                    raise
                done_bytes += part.size_bytes

    def require_reachable(self, extents: Iterable[Extent]) -> None:
        """Require that extents can be reached at the mount points of their pools; for worker threads.

        :raise ExtentError: When a pool is not mounted, is covered, or is read-only.
        """
        for segment in dict.fromkeys(extent.segment for extent in extents):
            self._require_mounted(segment)

    def _require_mounted(self, segment: SegmentId) -> None:
        """Refuse to create files on whatever file system is below a pool."""
        record = self._inventory.record(segment)
        if fault := mount_state.obstacle(record):
            raise ExtentError(
                f"Pool {segment}, mounted by virt-dmem at {record.mount}, {fault.what}.",
                hint=f"To fix it: {fault.fix}.",
            )

    def _run_prefault(
        self, extent: Extent, mode: Mode, part: Part | None = None, *, gentle: bool = False
    ) -> contextlib.aclosing[AsyncGenerator[Progress, None]]:
        """Run the helper over an extent, or one part of it, placed as planned; leaving the context ends it."""
        settings = self._config.prefault
        part = part or Part(0, extent.size_bytes, "none", ())
        return contextlib.aclosing(
            prefault(
                extent.path,
                offset_bytes=part.offset_bytes,
                size_bytes=part.size_bytes,
                page_size=extent.page_size,
                policy=part.policy,
                nodes=part.nodes,
                threads=settings.threads,
                mode=mode,
                helper=Path(settings.helper) if settings.helper else None,
                gentle=gentle,
            )
        )

    # Remove, release and quarantine

    async def remove(self, extent: Extent) -> bool:
        """Remove an extent and its charge unless a process has it open; return whether it is gone."""
        await self._unlink(extent)
        return not await self._is_in_use(extent) and await self._reclaim(extent)

    async def release(self, reservation: Reservation) -> None:
        """Remove all extents of a domain, and its reservation; quarantine each that cannot be removed.

        Of a domain that is parked, or about to be, everything is kept: this is the only way in which the memory of
        a domain is freed.

        :raise LedgerError: When the ledger cannot be written; may be repeated.
        """
        if parked := self._ledger.parked(reservation.uuid):
            if parked.step is not ParkedStep.RESUMING:
                await self.keep(reservation)
                return
            await self.forget_state(parked)
        for extent in reservation.extents:
            try:
                gone = await self.remove(extent)
                why = "a process still maps it"
            except (DmemError, OSError) as error:
                if isinstance(error, LedgerError) and error.is_unavailable:
                    raise  # so the rest is kept as it is, to be released later
                gone, why = False, str(error)
            if not gone:
                log.warning(
                    "%s: %s of %s is quarantined: %s",
                    reservation.name, extent.alias, format_size(extent.size_bytes), why,
                )  # fmt: skip
                self._ledger.quarantine(extent)
        self._ledger.forget(reservation.uuid)
        self.prezero.invalidate()

    async def keep(self, reservation: Reservation) -> None:
        """Keep the memory of a domain that is parked: nobody but root has a way to it. May be repeated."""
        for extent in reservation.extents:
            await self._unlink(extent)
            with contextlib.suppress(Delayed):
                await within(
                    partial(extent_files.revoke_access, extent.path), f"extent {extent.path}", of=extent.uuid
                )
        self._ledger.set_links({extent.id: "" for extent in reservation.extents})
        self._ledger.set_phase(reservation.uuid, Phase.PARKED)

    async def forget_state(self, parked: Parked) -> None:
        """Remove the state file of a domain, of no use any more, then the record that it is parked."""
        await asyncio.to_thread(partial(parked.state_file.unlink, missing_ok=True))
        self._ledger.forget_parked(parked.uuid)

    async def release_abandoned(self, reservation: Reservation) -> None:
        """Release a domain that ended unnoticed, unless it changed since or an operation is in progress."""
        if self.is_locked(reservation.uuid):
            return
        async with self.lock(reservation.uuid):
            current = self._ledger.find(reservation.uuid)
            if current and current.sequence == reservation.sequence:
                await self.release(current)

    async def retry_quarantined(self, attempts: Round) -> list[Extent]:
        """Remove the quarantined extents that no process maps any more, and return them."""
        freed = []
        for extent in self._ledger.quarantined():
            with attempts.trying(str(extent.path)):
                async with self.lock(extent.uuid):
                    if (
                        extent.id not in self._broken
                        and not await self._is_in_use(extent)
                        and await self._reclaim(extent)
                    ):
                        freed.append(extent)
        return freed

    async def _is_in_use(self, extent: Extent) -> bool:
        """Revoke access to an extent, and return whether a process has it open; a delay counts as use."""
        if not extent.path.exists():
            return False

        def look() -> bool:
            extent_files.revoke_access(extent.path)
            return extent_files.in_use(extent.path)

        try:
            return await within(look, f"extent {extent.path}", of=extent.uuid)
        except Delayed as delay:
            log.warning("%s", delay)
            return True

    async def _unlink(self, extent: Extent) -> None:
        """Remove the link to an extent; one that remains does no harm."""
        if extent.link:
            try:
                await within(
                    lambda: extent_files.unlink(Path(extent.link), extent.path),
                    f"link {extent.link}",
                    of=extent.uuid,
                )
            except Delayed as delay:
                log.warning("%s", delay)

    async def _reclaim(self, extent: Extent) -> bool:
        """Return an extent's memory to the kernel, then remove its file and its charge.

        Memory that may have failed is read and zeroed first; where that fails too the extent stays quarantined,
        and False is returned.
        """
        suspect = self._ledger.has_failed(extent)
        if extent.path.exists() and (suspect or not self._inventory.zeroes_on_allocation(extent.segment)):
            try:
                async with self._run_prefault(extent, "scrub") as progress:
                    async for _ in progress:
                        pass
            except PrefaultFailed as failure:
                if not suspect:
                    raise
                log.warning("%s stays quarantined, because its memory failed: %s", extent.path, failure)
                self._broken.add(extent.id)
                self._ledger.quarantine(extent)
                return False
        if extent.path.exists():
            await self.reclaim.release(extent)
        else:
            await asyncio.to_thread(extent_files.remove, extent.path)
        self._ledger.forget_extent(extent)
        if not suspect:
            self.prezero.note_release(extent)
        return True
