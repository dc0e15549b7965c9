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
import grp
import logging
import pwd
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from virt_dmem import extents
from virt_dmem.config import Config
from virt_dmem.domain_xml import DomainMemory
from virt_dmem.errors import ExtentError, NotEnoughMemory, NotMapped, NotRewritten
from virt_dmem.holding import Holding
from virt_dmem.host import find_qemu
from virt_dmem.inventory import Inventory
from virt_dmem.ipc.messages import Link
from virt_dmem.ledger import Extent, Ledger, Part, Phase, Reservation
from virt_dmem.libvirt_dirs import domain_directory
from virt_dmem.plan import Plan, plan_domain
from virt_dmem.prefault import Mode, Progress, prefault
from virt_dmem.units import format_size

__all__ = ["Lifecycle", "Report", "Reporter"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """Progress of a long step, in bytes of the whole domain."""

    message: str
    done_bytes: int
    total_bytes: int


Reporter = Callable[[Report], None]


class Lifecycle:
    """Serves hook operations; each domain's operations one after another."""

    def __init__(self, config: Config, ledger: Ledger, inventory: Inventory) -> None:
        self._config = config
        self._ledger = ledger
        self._inventory = inventory
        self.holding = Holding(config, ledger, inventory)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    # Hook operations, in the order in which libvirt calls them

    async def prepare(self, domain: DomainMemory, report: Reporter) -> None:
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
        async with self._serving(domain.uuid, "prepare"):
            left_over = self._ledger.find(domain.uuid)
            if left_over:  # libvirtd died between its prepare and its QEMU: no hook was called for it
                log.warning("%s: a reservation was left over from an interrupted start; freeing it", domain.name)
                await self._give_back(left_over)
            reservation = self._reserve(domain)
            try:
                await self._fill(reservation, report)
            except BaseException:
                await asyncio.shield(self._give_back(reservation))
                raise
            self._ledger.set_phase(domain.uuid, Phase.PREPARED)
            log.info("%s: %s prepared", domain.name, format_size(reservation.size_bytes))

    async def start(self, domain: DomainMemory) -> list[Link]:
        """Give the extents to QEMU's user and link them where QEMU will open them.

        :return: The links, for the hook to check in libvirtd's own mount namespace.
        :raise ExtentError: When a link cannot be made, or libvirt's sizes differ from what was prepared.
        """
        async with self._serving(domain.uuid, "start"):
            reservation = self._require(domain, Phase.PREPARED)
            self._check_sizes(domain, reservation)
            directory = domain_directory(self._config.libvirt, domain.domain_id)
            uid, gid = _qemu_user(domain, directory)
            self._ledger.set_links({extent.id: str(directory / extent.alias) for extent in reservation.extents})
            self._ledger.set_phase(domain.uuid, Phase.LINKED)
            links = []
            for extent in reservation.extents:
                extents.hand_over(extent.path, uid, gid)
                extents.link(extent.path, directory / extent.alias)
                file = extents.file_id(extent.path)
                links.append(Link(str(directory / extent.alias), file.device, file.inode))
            return links

    async def started(self, domain: DomainMemory) -> None:
        """Check that QEMU maps the whole of every extent, shared; then no path leads to them any more.

        :raise NotMapped: When it does not, or no QEMU is found; libvirt then ends the domain.
        """
        async with self._serving(domain.uuid, "started"):
            reservation = self._require(domain, Phase.LINKED)
            pid = find_qemu(Path(self._config.libvirt.run_dir), domain.name, domain.uuid)
            if pid is None:
                raise NotMapped(
                    f"No QEMU process of domain {domain.name} was found.",
                    hint="Look into libvirt's log of the domain for the reason why it ended.",
                )
            extents.check_mapped(pid, [(item.alias, item.path, item.size_bytes) for item in reservation.extents])
            for extent in reservation.extents:
                extents.take_back(extent.path)
                Path(extent.link).unlink(missing_ok=True)
            self._ledger.set_links({extent.id: "" for extent in reservation.extents})
            self._ledger.set_phase(domain.uuid, Phase.RUNNING)
            log.info("%s: QEMU %d runs on %s of ours", domain.name, pid, format_size(reservation.size_bytes))

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

    async def abandon(self, reservation: Reservation) -> None:
        """Free what a domain held that is gone without a word; one that is being served is left alone."""
        if self._locks[reservation.uuid].locked():
            return
        async with self._locks[reservation.uuid]:
            current = self._ledger.find(reservation.uuid)
            if current and current.phase == reservation.phase and current.since == reservation.since:
                await self._give_back(current)

    async def retry_quarantined(self) -> list[Extent]:
        """Free the quarantined extents that nobody maps any more, and return them."""
        freed = []
        for extent in self._ledger.quarantined():
            async with self._locks[extent.uuid]:
                if not await self._in_use(extent):
                    await self._remove(extent)
                    freed.append(extent)
        return freed

    # Steps

    @asynccontextmanager
    async def _serving(self, uuid: str, operation: str) -> AsyncIterator[None]:
        async with self._locks[uuid]:
            with self._timed(uuid, operation):
                yield

    @contextmanager
    def _timed(self, uuid: str, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._ledger.add_step(uuid, step, time.monotonic() - began)

    def _require(self, domain: DomainMemory, phase: Phase) -> Reservation:
        reservation = self._ledger.find(domain.uuid)
        if reservation is None or reservation.phase is not phase:
            found = f"is {reservation.phase.value}" if reservation else "has no reservation"
            raise ExtentError(
                f"Domain {domain.name} {found}, and this operation needs it {phase.value}.",
                hint="Start the domain again; virt-dmemd did not see the operation before this one.",
            )
        return reservation

    def _reserve(self, domain: DomainMemory) -> Reservation:
        self._inventory.refuse_draining(domain.pool)
        try:
            plan = plan_domain(domain, self._inventory.free(), self._config.default_pool)
            self._ledger.reserve(plan, self._paths(plan), self._inventory.capacity())
        except NotEnoughMemory as error:
            raise NotEnoughMemory(error.message, hint=f"{self._largest_holder()}{error.hint}") from error
        reservation = self._ledger.find(plan.uuid)
        assert reservation is not None  # noqa: S101 -- it was just written
        return reservation

    def _paths(self, plan: Plan) -> dict[str, Path]:
        """Choose a path for each extent that no quarantined extent of an earlier run still has."""
        paths = {}
        for extent in plan.extents:
            taken = {held.path for held in self._ledger.extents_in(extent.pool)}
            path = extents.path_of(self._inventory.mount(extent.pool), plan.uuid, extent.alias)
            number = 1
            while path in taken:
                path = path.with_name(f"{extent.alias}+{number}")
                number += 1
            paths[extent.alias] = path
        return paths

    def _largest_holder(self) -> str:
        holders = self._ledger.reservations()
        if not holders:
            return ""
        largest = max(holders, key=lambda item: item.size_bytes)
        return f"{largest.name} holds the most, {format_size(largest.size_bytes)}. "

    async def _fill(self, reservation: Reservation, report: Reporter) -> None:
        total_bytes = reservation.size_bytes
        done_bytes = 0
        for extent in reservation.extents:
            mount = self._inventory.mount(extent.pool)
            if not mount.is_mount():  # it would be made on whatever file system is below
                raise ExtentError(
                    f"Pool {extent.pool} is not mounted at {mount} any more.",
                    hint=f"Mount it with 'virt-dmem pool mount {extent.pool.partition('+')[0]}'.",
                )
            await self.holding.make_room(extent.pool)
            extents.create(extent.path, extent.size_bytes)
            with self._timed(reservation.uuid, f"prefault {extent.alias}"):
                for part in extent.parts():
                    async with self._helper(extent, "populate", part) as progress:
                        async for step in progress:
                            done = done_bytes + step.done_bytes
                            report(Report(f"prefaulting {extent.alias}", done, total_bytes))
                    done_bytes += part.size_bytes
            self._ledger.set_ready(extent)

    def _helper(
        self, extent: Extent, mode: Mode, part: Part | None = None
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

    async def _give_back(self, reservation: Reservation) -> None:
        for extent in reservation.extents:
            if extent.link and Path(extent.link).is_symlink():
                Path(extent.link).unlink(missing_ok=True)
            if await self._in_use(extent):
                log.warning(
                    "%s: %s of %s is still mapped by a process; kept aside until it is not",
                    reservation.name, extent.alias, format_size(extent.size_bytes),
                )  # fmt: skip
                self._ledger.quarantine(extent)
            else:
                await self._remove(extent)
        self._ledger.forget(reservation.uuid)

    async def _in_use(self, extent: Extent) -> bool:
        """Take an extent back to root, and tell whether a process still has it."""
        if not extent.path.exists():
            return False
        extents.take_back(extent.path)
        return await asyncio.to_thread(extents.in_use, extent.path)

    async def _remove(self, extent: Extent) -> None:
        """Remove an extent's file, then its charge. Freeing many pages takes long: not in the event loop."""
        if extent.path.exists() and not self._inventory.zeroes_on_allocation(extent.pool):
            async with self._helper(extent, "scrub") as progress:
                async for _ in progress:
                    pass
        await asyncio.to_thread(extents.remove, extent.path)
        self._ledger.forget_extent(extent)


def _qemu_user(domain: DomainMemory, directory: Path) -> tuple[int, int]:
    """Return the user and group that QEMU will run as.

    From the DAC label of the XML; a host without the DAC driver has none there, and then QEMU's user is the
    owner of the directory that libvirt made for it.
    """
    owner = directory.stat()
    uid, gid = owner.st_uid, owner.st_gid
    if domain.dac_user:
        uid = _number_or(domain.dac_user, lambda name: pwd.getpwnam(name).pw_uid)
    if domain.dac_group:
        gid = _number_or(domain.dac_group, lambda name: grp.getgrnam(name).gr_gid)
    return uid, gid


def _number_or(label: str, look_up: Callable[[str], int]) -> int:
    """Return the number of one half of a DAC label: ``+64055`` is one, anything else a name.

    :raise ExtentError: When nobody has that name.
    """
    if label.startswith("+"):
        return int(label[1:])
    try:
        return look_up(label)
    except KeyError as error:
        raise ExtentError(
            f"The domain's DAC label names {label!r}, whom this host does not know.",
            hint="Mend <seclabel model='dac'> of the domain, or user and group in qemu.conf.",
        ) from error
