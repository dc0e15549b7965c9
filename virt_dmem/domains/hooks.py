# SPDX-License-Identifier: GPL-2.0-or-later
"""One domain's memory from start to stop: one method for each hook operation.

::

    prepare   reserve, make, place, prefault    RESERVED → PREPARED    may refuse; rolled back whole
    start     give to QEMU's user, link         PREPARED → LINKED      may refuse
    started   verify, take back, unlink         LINKED   → RUNNING     may refuse: libvirt then stops the domain
    stopped   note it                           any      → STOPPED
    release   remove what nobody maps           any      → gone        what is still mapped is quarantined

No method calls libvirt: libvirtd holds the domain's lock while it waits for the hook.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, Part, Phase, Reservation, TimedStep
from virt_dmem.allocation.plan import Plan, plan_domain
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.allocation.reclaim import Reclaimer
from virt_dmem.attempts import Round
from virt_dmem.config.schema import Config
from virt_dmem.deadline import within
from virt_dmem.domain_xml.monitor import socket_of
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.errors import (
    Delayed,
    DmemError,
    ExtentError,
    NotEnoughMemory,
    NotMapped,
    NotPermitted,
    NotRewritten,
    PrefaultFailed,
)
from virt_dmem.host import apparmor
from virt_dmem.hypervisor.processes import find_qemu
from virt_dmem.hypervisor.qemu_user import placed
from virt_dmem.ipc.messages import Link
from virt_dmem.pools import extent_files
from virt_dmem.pools.prefault import Mode, Progress, prefault
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import format_size

__all__ = ["Lifecycle", "Report", "Reporter"]

log = logging.getLogger(__name__)

_LONGEST_HOOK_SECONDS = 3600.0
"""A hook that says it began longer ago than this was told wrong."""


@dataclass(frozen=True)
class Report:
    """Progress of a long step, in bytes of the whole domain."""

    message: str
    done_bytes: int
    total_bytes: int


Reporter = Callable[[Report], None]
T = TypeVar("T")


class Lifecycle:
    """Serves hook operations; each domain's operations one after another."""

    def __init__(self, config: Config, ledger: Ledger, inventory: Inventory) -> None:
        self._config = config
        self._ledger = ledger
        self._inventory = inventory
        self.prezero = PrezeroCache(config, ledger, inventory)
        self.reclaim = Reclaimer(ledger, inventory, self.prezero)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._broken: set[int] = set()
        self._steps: dict[str, list[TimedStep]] = {}

    # Hook operations, in the order in which libvirt calls them

    async def prepare(self, domain: DomainMemory, report: Reporter, *, began: float | None = None) -> None:
        """Reserve all of a domain's memory and bring every page of it in, or do nothing.

        :raise NotRewritten: When the XML asks for pool memory and is not rewritten.
        :raise NotEnoughMemory: When it does not fit; says what is free and who holds the most.
        :raise PrefaultFailed: When the memory could not be brought in.
        """
        if not domain.applied:
            raise NotRewritten(
                f"Domain {domain.name} asks for pool memory, and its XML is not rewritten.",
                hint=f"Run: virt-dmem apply {domain.uuid}",
            )
        async with self._serving(domain.uuid, "prepare", began):
            left_over = self._ledger.find(domain.uuid)
            if left_over:  # libvirtd died between its prepare and its QEMU: no hook was called for it
                log.warning("%s: a reservation was left over from an interrupted start; freeing it", domain.name)
                await self._give_back(left_over)
            reservation = await self._reserve(domain)
            try:
                await self.fill(reservation.extents, report)
            except BaseException:
                await asyncio.shield(self._give_back(reservation))
                raise
            self._ledger.set_phase(domain.uuid, Phase.PREPARED)
            log.info("%s: %s prepared", domain.name, format_size(reservation.size_bytes))

    async def start(self, domain: DomainMemory, *, began: float | None = None) -> list[Link]:
        """Give the extents to QEMU's user and link them where QEMU will open them.

        :return: The links, for the hook to check in libvirtd's own mount namespace.
        :raise ExtentError: When a link cannot be made, or libvirt's sizes differ from what was prepared.
        :raise NotPermitted: When AppArmor would keep QEMU from its memory.
        """
        async with self._serving(domain.uuid, "start", began):
            reservation = self._require(domain, Phase.PREPARED)
            self._check_sizes(domain, reservation)
            self._check_apparmor(domain)
            find = partial(placed, self._config, domain)
            directory, (uid, gid) = await within(find, f"the directory of {domain.name}")
            self._ledger.set_links({extent.id: str(directory / extent.alias) for extent in reservation.extents})
            self._ledger.set_phase(domain.uuid, Phase.LINKED)

            def offer() -> list[Link]:
                links = []
                for extent in reservation.extents:
                    extent_files.grant_access(extent.path, uid, gid)
                    extent_files.link(extent.path, directory / extent.alias, users=(uid,))
                    file = extent_files.file_id(extent.path)
                    links.append(Link(str(directory / extent.alias), file.device, file.inode))
                return links

            with self._timed(domain.uuid, "start: link"):
                return await within(offer, f"links in {directory}")

    async def started(self, domain: DomainMemory, *, began: float | None = None) -> None:
        """Check that QEMU maps the whole of every extent, shared; then no path leads to them any more.

        :raise NotMapped: When it does not, or no QEMU is found; libvirt then ends the domain.
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
            with self._timed(domain.uuid, "started: verify"):
                wanted = [(item.alias, item.path, item.size_bytes) for item in reservation.extents]
                await within(partial(extent_files.check_mapped, pid, wanted), f"QEMU {pid} of {domain.name}")

            def close() -> None:
                for extent in reservation.extents:
                    extent_files.revoke_access(extent.path)
                    extent_files.unlink(Path(extent.link), extent.path)
                extent_files.close_socket(socket_of(domain.uuid))

            await within(close, f"extents and links of {domain.name}")
            await self.reclaim.truncate_surplus(reservation.extents)
            self._ledger.set_links({extent.id: "" for extent in reservation.extents})
            self._ledger.set_phase(domain.uuid, Phase.RUNNING)
            log.info("%s: QEMU %d runs on %s of pool memory", domain.name, pid, format_size(reservation.size_bytes))

    async def stopped(self, uuid: str) -> None:
        """Note that the domain stops; QEMU may still live, so nothing is freed."""
        async with self._serving(uuid, "stopped"):
            if self._ledger.find(uuid):
                self._ledger.set_phase(uuid, Phase.STOPPED)

    async def release(self, uuid: str) -> None:
        """Free what the domain held; an extent that some process still maps is quarantined."""
        async with self._serving(uuid, "release"):
            reservation = self._ledger.find(uuid)
            if reservation:
                await self._give_back(reservation)
                log.info("%s: released", reservation.name)

    # For reconcile

    def is_serving(self, uuid: str) -> bool:
        """Tell whether an operation on a domain goes on."""
        return self.lock(uuid).locked()

    async def abandon(self, reservation: Reservation) -> None:
        """Free what a domain held that is gone without a word; one that is being served is left alone."""
        if self.is_serving(reservation.uuid):
            return
        async with self.lock(reservation.uuid):
            current = self._ledger.find(reservation.uuid)
            if current and current.sequence == reservation.sequence:
                await self._give_back(current)

    async def retry_quarantined(self, tries: Round) -> list[Extent]:
        """Free the quarantined extents that nobody maps any more, and return them."""
        freed = []
        for extent in self._ledger.quarantined():
            with tries.trying(str(extent.path)):
                async with self.lock(extent.uuid):
                    if (
                        extent.id not in self._broken
                        and not await self._in_use(extent)
                        and await self._remove(extent)
                    ):
                        freed.append(extent)
        return freed

    # For hotplug

    def lock(self, uuid: str) -> asyncio.Lock:
        """Return what keeps operations on a domain apart; never to be held across a call of libvirt."""
        return self._locks.setdefault(uuid, asyncio.Lock())  # goes when nobody holds it or waits

    async def reserve_more(self, domain: DomainMemory) -> tuple[Extent, ...]:
        """Charge a domain that runs with memory backends more, of all that ``domain`` names.

        :raise NotEnoughMemory: When they do not fit.
        """

        def reserve(plan: Plan) -> tuple[Extent, ...]:
            return self._ledger.reserve_more(plan, self._paths(plan), self._inventory.capacity())

        return await self._planned(domain, reserve)

    async def free(self, extent: Extent) -> bool:
        """Remove an extent and its charge, unless a process still has it; return whether it is gone."""
        await self._unlink(extent)
        return not await self._in_use(extent) and await self._remove(extent)

    # Steps

    @asynccontextmanager
    async def _serving(self, uuid: str, operation: str, began: float | None = None) -> AsyncIterator[None]:
        """Serve one operation of a domain at a time. ``began``: when its hook did, in seconds since the epoch."""
        async with self.lock(uuid):
            self._steps[uuid] = []
            try:
                now = time.time()
                if began and 0 <= now - began < _LONGEST_HOOK_SECONDS:  # else the clock was set in between
                    self._steps[uuid].append(TimedStep(f"{operation}: hook", now, now - began))
                with self._timed(uuid, operation):
                    yield
            finally:
                steps = self._steps.pop(uuid)
            self._ledger.add_steps(uuid, steps)

    @contextmanager
    def _timed(self, uuid: str, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        took = TimedStep(step, time.time(), time.monotonic() - began)
        if uuid in self._steps:  # all at once, at the end of the operation
            self._steps[uuid].append(took)
        else:
            self._ledger.add_steps(uuid, [took])

    def _require(self, domain: DomainMemory, phase: Phase) -> Reservation:
        reservation = self._ledger.find(domain.uuid)
        if reservation is None or reservation.phase is not phase:
            found = f"is {reservation.phase.value}" if reservation else "has no reservation"
            raise ExtentError(
                f"Domain {domain.name} {found}, and this operation needs it {phase.value}.",
                hint="Start the domain again; virt-dmemd did not see the operation before this one.",
            )
        return reservation

    async def _reserve(self, domain: DomainMemory) -> Reservation:
        def reserve(plan: Plan) -> None:
            self._ledger.reserve(plan, self._paths(plan), self._inventory.capacity())

        with self._timed(domain.uuid, "prepare: plan and ledger"):
            await self._planned(domain, reserve)
        reservation = self._ledger.find(domain.uuid)
        assert reservation is not None  # noqa: S101 -- it was just written
        return reservation

    async def _planned(self, domain: DomainMemory, reserve: Callable[[Plan], T]) -> T:
        """Plan a domain and reserve that; a second time where what was withheld may have come back by now."""
        self._inventory.require_not_draining(domain.pool)
        try:
            return reserve(self._plan(domain))
        except NotEnoughMemory:
            withheld = list(self._inventory.withheld())
            for segment in withheld:
                await self.reclaim.settle(segment)
            if not withheld:
                raise
        return reserve(self._plan(domain))

    def _plan(self, domain: DomainMemory) -> Plan:
        try:
            return self.prezero.plan(domain) or plan_domain(
                domain, self._inventory.free(), self._config.default_pool
            )
        except NotEnoughMemory as error:
            raise NotEnoughMemory(
                error.message, hint=f"{self._largest_holder()}{self._pinned()}{error.hint}"
            ) from error

    def _paths(self, plan: Plan) -> dict[str, Path]:
        """Choose a path for each extent that no quarantined extent of an earlier run still has."""
        paths = {}
        for extent in plan.extents:
            path = extent_files.path_of(self._inventory.mount(extent.segment), plan.uuid, extent.alias)
            number = 1
            while self._ledger.has_path(path):
                path = path.with_name(f"{extent.alias}+{number}")
                number += 1
            paths[extent.alias] = path
        return paths

    def _largest_holder(self) -> str:
        largest = max(self._ledger.reservations(), key=lambda item: item.size_bytes, default=None)
        if largest is None:
            return ""
        return f"{largest.name} holds the most, {format_size(largest.size_bytes)}. "

    def _pinned(self) -> str:
        """Say what is free by the ledger and yet not to be had."""
        return "".join(
            f"{format_size(withheld.size_bytes)} of {segment} are no domain's and not free: most likely pinned. "
            for segment, withheld in sorted(self._inventory.withheld().items())
        )

    async def fill(self, wanted: Sequence[Extent], report: Reporter, *, gentle: bool = False) -> None:
        """Make extents and bring in all their memory; each is READY in the ledger when that is done.

        ``gentle``: see ``prefault``.

        :raise ExtentError: When one cannot be made or brought in.
        """
        for segment in {extent.segment for extent in wanted}:
            self._require_mounted(segment)
        with self._timed(wanted[0].uuid, "take what is ready"):
            clean = await self.prezero.take(wanted)
        total_bytes = sum(extent.size_bytes for extent in wanted)
        done_bytes = 0
        for extent in wanted:
            if extent.id not in clean:
                extent_files.create(extent.path, extent.size_bytes)
            mode: Mode = "populate" if self._inventory.zeroes_on_allocation(extent.segment) else "zero"
            ready_bytes = clean.get(extent.id, 0)
            if ready_bytes < extent.size_bytes:
                await self.populate(
                    extent, report, ready_bytes=ready_bytes, done_bytes=done_bytes, total_bytes=total_bytes,
                    gentle=gentle, mode=mode,
                )  # fmt: skip
            done_bytes += extent.size_bytes
        self._ledger.set_populated(wanted)

    async def make(self, extent: Extent) -> None:
        """Make the file of an extent, without its memory.

        :raise ExtentError: When the pool does not take it, or is not mounted any more.
        """
        self._require_mounted(extent.segment)
        await self.prezero.evict(extent.segment)
        extent_files.create(extent.path, extent.size_bytes)

    def _require_mounted(self, segment: SegmentId) -> None:
        """Refuse to make files on whatever file system is below a pool."""
        mount = self._inventory.mount(segment)
        if not mount.is_mount():
            raise ExtentError(
                f"Pool {segment} is not mounted at {mount} any more.",
                hint=f"Mount it with 'virt-dmem pool mount {segment.partition('+')[0]}'.",
            )

    async def populate(
        self,
        extent: Extent,
        report: Reporter,
        *,
        ready_bytes: int = 0,
        done_bytes: int = 0,
        total_bytes: int = 0,
        gentle: bool = False,
        mode: Mode = "populate",
    ) -> None:
        """Bring in all memory of an extent that is charged in full; what is there already stays as it is.

        But with ``mode`` "zero", for new extents where the kernel does not hand out clean memory: all is zeroed.
        ``ready_bytes``: so much at its beginning is there and clean.

        :raise PrefaultFailed: When it could not be brought in.
        """
        total_bytes = total_bytes or extent.size_bytes
        with self._timed(extent.uuid, f"prefault {extent.alias}"), self.reclaim.populating(extent.segment):
            done_bytes += ready_bytes
            report(Report(f"prefaulting {extent.alias}", done_bytes, total_bytes))
            for part in extent.parts(ready_bytes):
                async with self._helper(extent, mode, part, gentle=gentle) as progress:
                    async for step in progress:
                        done = done_bytes + step.done_bytes
                        report(Report(f"prefaulting {extent.alias}", done, total_bytes))
                done_bytes += part.size_bytes

    def _helper(
        self, extent: Extent, mode: Mode, part: Part | None = None, *, gentle: bool = False
    ) -> contextlib.aclosing[AsyncGenerator[Progress, None]]:
        """Run the helper over an extent, or over one part of it, placed as planned; leaving the context ends it."""
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

    def _check_sizes(self, domain: DomainMemory, reservation: Reservation) -> None:
        wanted = {cell.alias: cell.size_bytes for cell in domain.cells}
        held = {extent.alias: extent.size_bytes for extent in reservation.extents}
        if wanted != held:
            raise ExtentError(
                f"libvirt starts {domain.name} with memory backends {wanted}, and prepared were {held} (bytes).",
                hint="Make the domain's memory a multiple of the pool's page size, and start it again.",
            )

    def _check_apparmor(self, domain: DomainMemory) -> None:
        """Say here what QEMU's own "can't open backing store … Permission denied" leaves open."""
        pools_dir = self._config.pools_dir
        if domain.apparmor_label and not apparmor.lets_qemu_in(pools_dir):
            raise NotPermitted(
                f"AppArmor confines QEMU as {domain.apparmor_label}, and no rule lets it reach {pools_dir}.",
                hint=f"Install virt-dmem again, or write '{apparmor.rule(pools_dir)} rwk,' where 'virt-dmem check'"
                " says; no profile has to be loaded again.",
            )

    async def _give_back(self, reservation: Reservation) -> None:
        """Free all extents of a domain; one that cannot be freed is kept aside, and harms no other."""
        for extent in reservation.extents:
            try:
                gone = await self.free(extent)
                why = "a process still maps it"
            except (DmemError, OSError) as error:
                gone, why = False, str(error)
            if not gone:
                log.warning(
                    "%s: %s of %s is kept aside: %s",
                    reservation.name, extent.alias, format_size(extent.size_bytes), why,
                )  # fmt: skip
                self._ledger.quarantine(extent)
        self._ledger.forget(reservation.uuid)
        self.prezero.invalidate()

    async def _in_use(self, extent: Extent) -> bool:
        """Take an extent back to root, and tell whether a process still has it; whoever delays us has."""
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
        """Remove the link to an extent; one that cannot be does no harm."""
        if extent.link:
            try:
                await within(
                    lambda: extent_files.unlink(Path(extent.link), extent.path),
                    f"link {extent.link}",
                    of=extent.uuid,
                )
            except Delayed as delay:
                log.warning("%s", delay)

    async def _remove(self, extent: Extent) -> bool:
        """Give an extent's memory back to the kernel, then let go of its file and of its charge.

        One whose memory may have failed is read and zeroed first; if that fails too it stays, quarantined, and
        False is returned.
        """
        suspect = self._ledger.has_failed(extent)
        if extent.path.exists() and (suspect or not self._inventory.zeroes_on_allocation(extent.segment)):
            try:
                async with self._helper(extent, "scrub") as progress:
                    async for _ in progress:
                        pass
            except PrefaultFailed as failure:
                if not suspect:
                    raise
                log.warning("%s stays quarantined, for memory of it failed: %s", extent.path, failure)
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
