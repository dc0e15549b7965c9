# SPDX-License-Identifier: GPL-2.0-or-later
"""Provide the operations that callers can request, whatever the wire. All run in one event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Parked, PoolStatus, Reservation, TimedStep
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.allocation.remembered import Remembered
from virt_dmem.config.schema import Config
from virt_dmem.daemon.events import Events
from virt_dmem.domain_xml.adoption.adopt import adopt
from virt_dmem.domain_xml.fields import MAX_BYTES
from virt_dmem.domain_xml.memory_backends import PLACED_MODELS
from virt_dmem.domain_xml.reader import DomainDocument, name_of
from virt_dmem.domain_xml.traces import find_trace
from virt_dmem.domains import adoption, migration, passthrough, postcopy
from virt_dmem.domains.apply import is_lost, request_lost
from virt_dmem.domains.device_ops import DeviceChange
from virt_dmem.domains.extents import ReportProgress
from virt_dmem.domains.hooks import HookOperations, Link
from virt_dmem.domains.hotplug import Hotplug
from virt_dmem.domains.parked.parking import ParkedChange, Parking
from virt_dmem.domains.parked.refusals import is_parked
from virt_dmem.domains.parked.restores import Restores
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.errors import DmemError, DomainRefused, DomainXmlInvalid, UsageError
from virt_dmem.hypervisor.qmp import Monitors, QemuMemoryBackend
from virt_dmem.monitoring.alert_tracker import APPLY, AlertTracker
from virt_dmem.monitoring.metrics import Metrics
from virt_dmem.runtime.aio import off_loop
from virt_dmem.text import clipped

__all__ = ["Service"]

log = logging.getLogger(__name__)

MOST_SECONDS = 10 * 365 * 86400
"""Limit of any duration in a request."""
_MOST_NODES = 1023
"""The kernel's largest CONFIG_NODES_SHIFT is 10; QEMU allows fewer cells."""
_NAME = re.compile(rb"<name>([^<]{1,1000})</name>")
_OPERATIONS = ("prepare", "start", "started", "stopped", "release")


@dataclass(frozen=True, kw_only=True)
class Service:
    """Check requests, and pass them to the parts that carry them out."""

    config: Config
    ledger: Ledger
    inventory: Inventory
    hooks: HookOperations
    parking: Parking
    restores: Restores
    prezero: PrezeroCache
    virtio_mem: VirtioMem
    hotplug: Hotplug
    monitors: Monitors
    alerts: AlertTracker
    metrics: Metrics
    remembered: Remembered
    events: Events
    on_resume: Callable[[], None]
    """Called when automatic apply is resumed, or pools have changed: all domains have to be considered again."""

    async def hook(
        self, operation: str, xml: bytes, report: ReportProgress, began: float | None = None
    ) -> Sequence[Link]:
        """Run a hook operation; do nothing for domains that neither ask for pool memory nor are adopted.

        :param began: When the hook began, in seconds since the epoch.
        :return: The links for the hook to verify.
        :raise UsageError: When the operation is unknown.
        """
        document = DomainDocument(xml)
        if operation == "prepare" and self.ledger.all_parked():
            uuid = await off_loop(_uuid_of, document)
            if parked := self.ledger.parked(uuid):
                await self._prepare_parked(parked, document, began)
                return []
        if not await off_loop(DomainDocument.is_managed, document):
            return await self._hook_without_request(operation, document, report, began)
        with self.metrics.hook(operation if operation in _OPERATIONS else "other"), self._told(operation, document):
            return await self._run_hook(operation, document, report, began)

    async def _prepare_parked(self, parked: Parked, document: DomainDocument, began: float | None) -> None:
        """Let a parked domain start if that is our own restore of it.

        :raise DomainParked: When it is anything else.
        """
        with self.metrics.hook("prepare"), self._told("prepare", document):
            if not self.restores.is_marked(parked.uuid, document.root):
                raise is_parked(name_of(document.xml), parked)
            await self.hooks.prepare_parked(parked.uuid, began=began)
            if feed := self.restores.feed_of(parked.uuid):  # its QEMU is about to start
                await asyncio.to_thread(feed.begin)

    async def _run_hook(
        self, operation: str, document: DomainDocument, report: ReportProgress, began: float | None
    ) -> Sequence[Link]:
        match operation:
            case "prepare":
                domain = await off_loop(DomainDocument.memory, document)
                await self.hooks.prepare(domain, report, began=began)
            case "start":
                domain = await off_loop(DomainDocument.memory, document)
                passthrough.refuse(self.ledger, self.inventory, domain)
                return await self.hooks.start(domain, began=began)
            case "started":
                domain = await off_loop(DomainDocument.memory, document)
                await postcopy.refuse(self.config, self.ledger, self.inventory, domain.uuid)
                await self.hooks.started(domain, began=began)
            # by hot-add, a running domain may have become one that could not be started: only its UUID is read
            case "stopped":
                await self.hooks.stopped(await off_loop(DomainDocument.uuid, document))
            case "release":
                await self.hooks.release(await off_loop(DomainDocument.uuid, document))
            case _:
                raise UsageError(
                    f"Unknown hook operation {operation!r}.",
                    hint="The installed hook is of another version; install virt-dmem again.",
                )
        return []

    async def _hook_without_request(
        self, operation: str, document: DomainDocument, report: ReportProgress, began: float | None
    ) -> Sequence[Link]:
        """Serve a domain that a rule takes, or took at its start; refuse the start of one that lost its request.

        A domain that lost it while it ran ends like any other.

        :raise AdoptionRefused: When a rule takes it, its memory cannot come from a pool, and the rule rejects that.
        :raise DomainRefused: When it was rewritten: its memory would be a file on a disk.
        """
        if operation == "prepare":
            await self._prepare_without_request(document, report, began)
            return []
        if self.ledger.find(await off_loop(_uuid_of, document)) is None:
            return []
        with self.metrics.hook(operation), self._told(operation, document):
            return await self._run_hook(operation, document, report, began)

    async def _prepare_without_request(
        self, document: DomainDocument, report: ReportProgress, began: float | None
    ) -> None:
        with self.metrics.hook("prepare"), self._told("prepare", document):
            domain = await off_loop(partial(adopt, self.config.adopt), document)
            if domain is not None:
                adoption.pool_of(self.config, domain)
                log.info("%s: adopted by rule %s", domain.name, domain.rule)
                await self.hooks.prepare(domain, report, began=began)
                return
        trace = await off_loop(lambda document: find_trace(document.xml), document)
        uuid = await off_loop(_uuid_of, document)
        if is_lost(trace, self.remembered.find(uuid)):
            with self._told("prepare", document):
                raise request_lost(uuid, name_of(document.xml), trace)
        if self.ledger.find(uuid):  # of an earlier start, during which libvirtd ended
            await self.hooks.release(uuid)

    @contextmanager
    def _told(self, operation: str, document: DomainDocument) -> Iterator[None]:
        """Log why a domain is rejected in this context: libvirt tells only who asked for its start."""
        try:
            yield
        except DmemError as error:
            named = _NAME.search(document.xml)  # parsing it may take long
            name = clipped(named[1].decode(errors="replace") if named else "?", 80)
            log.warning("domain %s: rejected at %s [%s]: %s", name, operation, error.code, error)
            self.events.rejected(name, operation, error)
            raise

    async def filter_xml(self, xml: bytes) -> bytes:
        """Return the XML of an incoming domain, by migration or restore, adapted to this host.

        :raise DmemError: When it cannot run here.
        """
        with self._told("migrate or restore", DomainDocument(xml)):
            if self.ledger.all_parked():
                uuid = await off_loop(_uuid_of, DomainDocument(xml))
                if parked := self.ledger.parked(uuid):
                    if self.restores.feed_of(uuid) is None:
                        raise is_parked(name_of(xml), parked)
                    return self.restores.mark(uuid, xml)
            adapted = await off_loop(lambda xml: migration.adapt(self.config, xml), xml)
        if adapted != xml and not await off_loop(DomainDocument.is_managed, DomainDocument(adapted)):
            # it was rewritten, and runs on ordinary memory here: its prepare must not take that for a loss
            uuid = await off_loop(DomainDocument.uuid, DomainDocument(adapted))
            try:
                self.remembered.forget(uuid)
            except OSError as error:
                log.warning("domain %s: its request cannot be forgotten: %s", uuid, error)
        return adapted

    async def attach(
        self,
        domain: str,
        size_bytes: int,
        *,
        model: str,
        cell: int,
        node: int,
        persistent: bool,
        report: ReportProgress,
    ) -> DeviceChange:
        """Attach a memory device to a running domain.

        :param cell: The guest's NUMA cell; ``node``: the host's, -1: any.
        :raise UsageError: When the model is unknown, or a number is out of range.
        """
        if model not in PLACED_MODELS:
            raise UsageError(
                f"Unknown memory model {clipped(model, 80)!r}.", hint=f"Use {' or '.join(PLACED_MODELS)}."
            )
        _require("size in bytes", size_bytes, 1, MAX_BYTES)
        _require("guest NUMA cell", cell, 0, _MOST_NODES)
        _require("host node", node, -1, _MOST_NODES)
        change = await self.hotplug.attach(
            domain,
            size_bytes,
            report,
            model=model,
            cell=cell,
            node=node if node >= 0 else None,
            persistent=persistent,
        )
        self.events.device_changed(change)
        return change

    async def detach(self, domain: str, alias: str, wait_seconds: float, report: ReportProgress) -> DeviceChange:
        """Ask a guest to hot-unplug a memory device, and wait up to ``wait_seconds``."""
        _require("time to wait in seconds", wait_seconds, 0, MOST_SECONDS)
        change = await self.hotplug.detach(domain, alias, report, wait_seconds=wait_seconds)
        self.events.device_changed(change)
        return change

    async def resize(
        self, domain: str, alias: str, size_bytes: int, wait_seconds: float, report: ReportProgress
    ) -> DeviceChange:
        """Ask a guest to plug or unplug blocks of virtio-mem, and wait up to ``wait_seconds``."""
        _require("size in bytes", size_bytes, 0, MAX_BYTES)
        _require("time to wait in seconds", wait_seconds, 0, MOST_SECONDS)
        change = await self.virtio_mem.resize(domain, alias, size_bytes, report, wait_seconds=wait_seconds)
        self.events.device_changed(change)
        return change

    async def park(self, domain: str, report: ReportProgress) -> ParkedChange:
        """Save a running domain, and keep its memory in the pool."""
        return await self.parking.park(domain, report)

    async def unpark(self, domain: str, report: ReportProgress, *, discard: bool) -> ParkedChange:
        """Restore a parked domain, or (``discard``) give it up."""
        return await (self.parking.discard(domain) if discard else self.parking.unpark(domain, report))

    async def refresh(self, domain: str, report: ReportProgress, *, dry_run: bool) -> ParkedChange:
        """Replace the QEMU of a running domain, or (``dry_run``) tell whether that is possible."""
        return await self.parking.refresh(domain, report, dry_run=dry_run)

    def show_domain(self, domain: str) -> tuple[Reservation, Sequence[TimedStep]]:
        """Return the memory of a domain, by UUID or name, and the steps of its last start.

        :raise DomainRefused: When it holds no memory of a pool.
        :raise UsageError: When several domains have that name.
        """
        reservation = self.ledger.find_named(domain)
        if reservation is None:
            raise DomainRefused(
                f"Domain {domain} holds no memory of a pool.", hint="'virt-dmem list' lists the domains that do."
            )
        return reservation, self.ledger.steps(reservation.uuid)

    async def show_backends(self, uuid: str) -> list[QemuMemoryBackend]:
        """Return QEMU's memory backends of a domain; empty where its monitor does not answer."""
        reservation = self.ledger.find(uuid)
        return (await self.monitors.backends(reservation.uuid) if reservation else None) or []

    def list_pools(self) -> list[PoolStatus]:
        """Return every pool, by name."""
        return self.prezero.pool_statuses()

    async def refresh_pools(self) -> None:
        """Read the records of the pools again, after a change of one ended or failed."""
        self.inventory.read_records()
        await self.prezero.reload()
        self.note_pools()
        self.on_resume()

    def note_pools(self) -> None:
        """Record how the pools changed; one that cannot be looked at keeps nothing from being done."""
        with suppress(DmemError, OSError):
            statuses = self.inventory.pool_statuses()
            self.events.pools_seen({one.name: (one.state, one.capacity_bytes) for one in statuses})

    def reread_nodes(self) -> None:
        """Read the host's NUMA nodes again, after its processors or memory changed."""
        log.info("the host's processors or memory changed")
        self.inventory.reload_nodes()
        self.prezero.invalidate()
        self.alerts.changed.set()

    def empty_pool(self, name: str, holder: Hashable) -> None:
        """Drain a pool as long as its caller waits for it to become empty.

        :param holder: That caller; see ``drop_claims``.
        :raise PoolNotFound: When it does not exist.
        """
        self.inventory.read_records()
        self.inventory.empty(name, holder)
        self.prezero.invalidate()
        self.note_pools()

    async def retire_pool(self, name: str, holder: Hashable) -> None:
        """Stop allocating from a pool (``POOL``) or one of its segments (``POOL+N``), and background work in it.

        :param holder: The caller that is about to remove it; see ``drop_claims``.
        :raise PoolBusy: When domains hold memory of it.
        """
        self.inventory.read_records()
        self.inventory.retire(name, holder)
        await self.prezero.quiesce()

    async def limit_pool(self, name: str, size_bytes: int, holder: Hashable) -> int:
        """Allocate no more than ``size_bytes`` of a pool that is about to shrink to that.

        :param holder: The caller that is about to shrink it; see ``drop_claims``.
        :return: The bytes reserved; if that is more, nothing is limited.
        """
        _require("size in bytes", size_bytes, 0, MAX_BYTES)
        self.inventory.read_records()
        reserved = self.inventory.limit(name, size_bytes, holder)
        await self.prezero.reload()
        return reserved

    async def drop_claims(self, holder: Hashable) -> None:
        """Allocate from pools again whose change ended, or whose changer did; read their records."""
        self.inventory.drop_claims(holder)
        try:
            await self.refresh_pools()
        except (DmemError, OSError) as error:
            log.warning("pools cannot be read again: %s", error)

    def drain_pool(self, name: str, *, undo: bool) -> None:
        """Stop allocating from a pool, or resume; persists until changed again.

        :raise PoolNotFound: When it does not exist.
        """
        self.inventory.read_records()
        self.inventory.drain(name, undo=undo)
        self.prezero.invalidate()
        self.note_pools()

    def pause_apply(self, seconds: float) -> None:
        """Pause automatic apply; 0: until ``resume_apply``."""
        _require("time to pause in seconds", seconds, 0, MOST_SECONDS)
        self.ledger.pause(APPLY, seconds or math.inf)
        self.alerts.changed.set()

    def resume_apply(self) -> None:
        """Resume automatic apply, also for domains defined meanwhile."""
        self.ledger.resume(APPLY)
        self.alerts.changed.set()
        self.on_resume()

    def end_due_pause(self) -> None:
        """Resume automatic apply if the time of its pause is over."""
        left = self.ledger.pause_left(APPLY)
        if left is not None and left <= 0:
            self.resume_apply()


def _uuid_of(document: DomainDocument) -> str:
    """Return the UUID of a domain that is perhaps not ours to judge; empty where it has none, or is no domain."""
    try:
        return document.uuid()
    except DomainXmlInvalid:
        return ""


def _require(what: str, number: float, least: int, most: int) -> None:
    """Reject a number out of range: those in JSON have no limit, and may be NaN.

    :raise UsageError: When it is.
    """
    if not least <= number <= most:
        shown = clipped(f"{number:g}", 80) if abs(number) < 1e300 else "The number given"
        raise UsageError(f"{shown} is not a valid {what}.", hint=f"Use a value from {least} to {most}.")
