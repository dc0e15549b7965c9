# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``virt-dmemd`` can be asked, whatever the wire: the daemon's own objects behind plain methods."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from virt_dmem.aio import aside
from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Phase
from virt_dmem.allocation.prezero.worker import PrezeroWorker
from virt_dmem.attempts import Attempts, Round
from virt_dmem.config.schema import Config
from virt_dmem.daemon.domain_list import DomainList, view
from virt_dmem.domain_xml.fields import MAX_BYTES
from virt_dmem.domain_xml.memory_backends import PLACED_MODELS
from virt_dmem.domain_xml.reader import DomainDocument
from virt_dmem.domains import migration, passthrough, postcopy, reconcile
from virt_dmem.domains.admission import Admission
from virt_dmem.domains.device_ops import DeviceOperations
from virt_dmem.domains.device_reconcile import DeviceReconciler
from virt_dmem.domains.extents import ExtentManager, StepProgress
from virt_dmem.domains.hooks import HookOperations
from virt_dmem.domains.hotplug import Hotplug
from virt_dmem.domains.reconcile import ReconcileContext
from virt_dmem.domains.step_times import StepTimes
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.errors import DmemError, DomainRefused, UsageError
from virt_dmem.host.kernel import boot_id
from virt_dmem.hypervisor.connection import DomainInfo, Event, Hypervisor
from virt_dmem.hypervisor.processes import qemu_pid
from virt_dmem.hypervisor.qmp import Monitors
from virt_dmem.ipc.messages import (
    AlertView,
    AttachWish,
    BackendView,
    ChangeReply,
    ChangeView,
    DomainView,
    HookReply,
    Link,
    NodeView,
    PoolView,
)
from virt_dmem.monitoring.alert_codes import EXTENT_QUARANTINED, GUEST_OUTSIDE_POOL, RECONCILE_FAILED
from virt_dmem.monitoring.alert_tracker import APPLY, AlertTracker
from virt_dmem.monitoring.metrics import Metrics
from virt_dmem.rate_limit import RateLimitedLog
from virt_dmem.text import clipped, printable

__all__ = ["Service"]

log = logging.getLogger(__name__)
say = RateLimitedLog(log)

MOST_SECONDS = 10 * 365 * 86400
"""How long anything may be asked to last; what is to last for ever has a word of its own."""
_MOST_NODES = 1023
"""The kernel's largest CONFIG_NODES_SHIFT is 10; QEMU has fewer cells."""
_OPERATIONS = ("prepare", "start", "started", "stopped", "release")


class Service:
    """The daemon's parts, put together. Everything runs in one event loop; no two things write at once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._boot_id = boot_id()
        self._ledger = Ledger(config.ledger_path, self._boot_id)
        self._listing = DomainList(self._ledger)
        self._inventory = Inventory(config, self._ledger)
        times = StepTimes(self._ledger)
        self._extents = ExtentManager(config, self._ledger, self._inventory, times)
        self.holding, accounts = self._extents.holding, self._extents.accounts
        admission = Admission(config, self._ledger, self._inventory, self.holding, accounts)
        self._hooks = HookOperations(config, self._ledger, admission, self._extents, times)
        self._readying = PrezeroWorker(config, self._inventory, self.holding)
        self.monitors = Monitors(self.monitor_event, self._qemu_of)
        self._changes = DeviceOperations(config, self._ledger, self._inventory, admission, self._extents)
        self._virtio_mem = VirtioMem(self._changes)
        self._hotplug = Hotplug(self._changes, self._virtio_mem, self.monitors)
        self._mender = DeviceReconciler(self._changes, self._virtio_mem)
        self.tries = Attempts()
        self.watch = AlertTracker(config, self._ledger, self._inventory, accounts, self.tries)
        self.metrics = Metrics(config, self._ledger, self.holding, self.watch)
        self.on_resume: Callable[[], None] = lambda: None
        """Called when automatic apply goes on: all that was defined meanwhile is to be looked at."""

    async def hook(
        self, operation: str, xml: bytes, report: Callable[[HookReply], None], began: float | None = None
    ) -> list[Link]:
        """Serve one hook operation; an operation that is not ours is answered with nothing done.

        ``began``: when the hook did, in seconds since the epoch.

        :raise UsageError: When the operation is none that we serve.
        """
        document = DomainDocument(xml)
        if not await aside(DomainDocument.is_managed, document):
            return []
        with self.metrics.hook(operation if operation in _OPERATIONS else "other"):
            return await self._serve(operation, document, report, began)

    async def _serve(
        self, operation: str, document: DomainDocument, report: Callable[[HookReply], None], began: float | None
    ) -> list[Link]:
        match operation:
            case "prepare":
                domain = await aside(DomainDocument.memory, document)
                await self._hooks.prepare(domain, lambda progress: report(_progress(progress)), began=began)
            case "start":
                domain = await aside(DomainDocument.memory, document)
                passthrough.refuse(self._ledger, self._inventory, domain)
                links = await self._hooks.start(domain, began=began)
                return [Link(**asdict(link)) for link in links]
            case "started":
                domain = await aside(DomainDocument.memory, document)
                await postcopy.refuse(self._config, self._ledger, self._inventory, domain.uuid)
                await self._hooks.started(domain, began=began)
            # what runs may have become, by hot-add, what would not be started: only who it is counts here
            case "stopped":
                await self._hooks.stopped(await aside(DomainDocument.uuid, document))
            case "release":
                await self._hooks.release(await aside(DomainDocument.uuid, document))
            case _:
                raise UsageError(
                    f"The hook operation {operation!r} is not served.",
                    hint="The installed hook is of another version; install virt-dmem again.",
                )
        return []

    async def filter_xml(self, xml: bytes) -> bytes:
        """Return the XML of a domain that comes here, by migration or restore, as it can run here.

        :raise DmemError: When it cannot.
        """
        return await aside(lambda xml: migration.adapt(self._config, xml), xml)

    async def attach(self, wish: AttachWish, report: Callable[[ChangeReply], None]) -> ChangeView:
        """Give a domain that runs a memory device.

        :raise UsageError: When there is no such model, or a number is none that can be.
        """
        if wish.model not in PLACED_MODELS:
            raise UsageError(
                f"There is no model {clipped(wish.model, 80)!r}.", hint=f"Take {' or '.join(PLACED_MODELS)}."
            )
        _require("size in bytes", wish.size_bytes, 1, MAX_BYTES)
        _require("guest NUMA cell", wish.cell, 0, _MOST_NODES)
        _require("host node", wish.node, -1, _MOST_NODES)
        change = await self._hotplug.attach(
            wish.domain,
            wish.size_bytes,
            lambda step: report(_step(step)),
            model=wish.model,
            cell=wish.cell,
            node=wish.node if wish.node >= 0 else None,
            persistent=wish.persistent,
        )
        return ChangeView(**asdict(change))

    async def detach(
        self, domain: str, alias: str, wait_seconds: float, report: Callable[[ChangeReply], None]
    ) -> ChangeView:
        """Ask a guest to let go of a memory device, and wait so long for it."""
        _require("time to wait in seconds", wait_seconds, 0, MOST_SECONDS)
        change = await self._hotplug.detach(
            domain, alias, lambda step: report(_step(step)), wait_seconds=wait_seconds
        )
        return ChangeView(**asdict(change))

    async def resize(
        self, domain: str, alias: str, size_bytes: int, wait_seconds: float, report: Callable[[ChangeReply], None]
    ) -> ChangeView:
        """Have a guest plug or unplug blocks of virtio-mem, and wait so long for it."""
        _require("size in bytes", size_bytes, 0, MAX_BYTES)
        _require("time to wait in seconds", wait_seconds, 0, MOST_SECONDS)
        change = await self._virtio_mem.resize(
            domain, alias, size_bytes, lambda step: report(_step(step)), wait_seconds=wait_seconds
        )
        return ChangeView(**asdict(change))

    async def device(self, uuid: str, event: Event, alias: str) -> None:
        """Take note of what libvirt, or QEMU, says of a device; of one that is not ours nothing follows."""
        try:
            if alias not in {extent.alias for extent in self._ledger.extents_of(uuid)}:
                return
            if event is Event.KEPT:
                self._changes.note_refusal(uuid, alias)
                return
            for action in await self._mender.reconcile_domain(uuid, f"libvirt says that {alias} is {event.value}"):
                log.info("domain %s: %s", uuid, action)
        except DmemError as error:
            say(logging.WARNING, uuid, "%s of domain %s: %s", alias, uuid, error)

    async def list_domains(self) -> bytes:
        """Return every domain that holds memory, by name, as JSON; without steps."""
        return await self._listing.json()

    def keep_listing(self) -> bool:
        """Bring a part of the list up to date before it is asked for; return whether there is more to do."""
        return self._listing.refresh()

    def show_domain(self, domain: str) -> DomainView:
        """Return one domain, by UUID or name.

        :raise DomainRefused: When it holds nothing.
        :raise UsageError: When several have that name.
        """
        reservation = self._ledger.find_named(domain)
        if reservation is None:
            raise DomainRefused(
                f"Domain {domain} holds no memory of a pool now.", hint="'virt-dmem list' shows those that do."
            )
        return view(reservation, self._ledger.steps(reservation.uuid))

    async def show_backends(self, uuid: str) -> list[BackendView]:
        """Return what QEMU says of a domain's memory backends; nothing where its monitor does not answer."""
        reservation = self._ledger.find(uuid)
        found = await self.monitors.backends(reservation.uuid) if reservation else None
        return [
            BackendView(**asdict(backend) | {"host_nodes": list(backend.host_nodes)}) for backend in found or ()
        ]

    def follow_monitors(self) -> None:
        """Be connected to the monitors of the domains that run on our memory."""
        standings = self._ledger.standings().items()
        self.monitors.follow({uuid for uuid, standing in standings if standing.phase is Phase.RUNNING})

    async def monitor_event(self, uuid: str, event: str, data: Mapping[str, Any]) -> None:
        """Take note of what QEMU says; libvirt says some of it as well, in its own time.

        It may say anything, and again and again: what it said before is not written down once more.
        """
        alias = _said(data.get("device") or data.get("id") or "")
        if event in ("SHUTDOWN", "RESUME"):
            say(logging.INFO, uuid, "domain %s: QEMU says %s", uuid, event)
            self.watch.changed.set()
        elif event == "MEMORY_FAILURE":
            self._memory_failed(uuid, f"{_known(data.get('recipient'))} {_known(data.get('action'))}")
        elif event in ("MEM_UNPLUG_ERROR", "DEVICE_UNPLUG_GUEST_ERROR") and alias:
            await self.device(uuid, Event.KEPT, alias)
        elif event in ("MEMORY_DEVICE_SIZE_CHANGE", "DEVICE_DELETED") and alias:
            await self.device(uuid, Event.RESIZED if event.startswith("MEMORY") else Event.REMOVED, alias)

    def _memory_failed(self, uuid: str, what: str) -> None:
        try:
            if all(map(self._ledger.has_failed, self._ledger.extents_of(uuid))):
                return
            say(logging.ERROR, uuid, "memory of domain %s failed: %s", self._ledger.add_failure(uuid, what), what)
        except DmemError as error:
            say(logging.ERROR, uuid, "memory of domain %s failed (%s): %s", uuid, what, error)
        self.watch.changed.set()

    def _qemu_of(self, uuid: str) -> int | None:
        """Return the PID of a domain's QEMU, by what libvirt wrote down."""
        held = self._ledger.find(uuid)
        return qemu_pid(Path(self._config.libvirt.run_dir), held.name) if held and held.uuid == uuid else None

    def list_pools(self) -> list[PoolView]:
        """Return every pool, by name."""
        return [
            PoolView(**vars(pool) | {"nodes": [NodeView(**vars(node)) for node in pool.nodes]})
            for pool in self.holding.views()
        ]

    async def refresh_pools(self) -> None:
        """Read the records of the pools again."""
        self._inventory.refresh()
        await self.holding.fit()

    def read_nodes_again(self) -> None:
        """Take note that the host has other processors or memory than before, and so maybe other nodes."""
        log.info("the host's processors or memory changed")
        self._inventory.read_nodes()
        self.holding.look_again()
        self.watch.changed.set()

    async def retire_pool(self, name: str) -> None:
        """Give no more memory from a pool (``POOL``) or from one of its segments (``POOL+N``), and be out of it.

        :raise PoolBusy: When domains hold memory of it.
        """
        self._inventory.read_records()
        self._inventory.retire(name)
        await self.holding.at_rest()

    async def make_ready(self) -> bool:
        """Make memory ready ahead until all is; return whether the host was too busy for that."""
        return await self._readying.run_dry()

    def drain_pool(self, name: str, *, undo: bool) -> None:
        """Give no more memory from a pool, or give it again; holds until it is said otherwise.

        :raise PoolNotFound: When there is none.
        """
        self._inventory.read_records()
        self._inventory.drain(name, undo=undo)
        self.holding.look_again()

    async def settle(self) -> None:
        """Find out what of the memory that guests gave back has come back by now."""
        accounts = self._extents.accounts
        accounts.unsettled.clear()
        with self.tries.round("settle") as tries:
            for segment in accounts.to_settle():
                with tries.trying(f"pool {segment}"):
                    await accounts.settle(segment)
        self.watch.changed.set()

    async def wait_unsettled(self) -> None:
        """Wait until something was given back that has not surely come back."""
        await self._extents.accounts.unsettled.wait()

    def list_alerts(self) -> list[AlertView]:
        """Return what is not as it should be now."""
        return self.watch.look()

    def show_metrics(self) -> str:
        """Return all metrics in Prometheus' text format."""
        return self.metrics.exposition().decode()

    def pause_apply(self, seconds: float) -> None:
        """Apply no domain without being asked to, for so long (0: until ``resume_apply``)."""
        _require("time to pause in seconds", seconds, 0, MOST_SECONDS)
        self._ledger.pause(APPLY, seconds or math.inf)
        self.watch.changed.set()

    def resume_apply(self) -> None:
        """Apply domains again, also those that were defined meanwhile."""
        self._ledger.resume(APPLY)
        self.watch.changed.set()
        self.on_resume()

    def keep_pause(self) -> None:
        """End a pause whose time is over."""
        left = self._ledger.pause_left(APPLY)
        if left is not None and left <= 0:
            self.resume_apply()

    async def reconcile(self, *, dry_run: bool) -> list[str]:
        """Run both stages, and say what is left that cannot be mended; libvirt is asked from a worker thread.

        :raise HypervisorError: When libvirt does not answer; what needs no libvirt is done by then.
        """
        self._inventory.read_records()
        actions = await self.reconcile_host(dry_run=dry_run)

        def listed() -> list[DomainInfo]:
            with Hypervisor(self._config.libvirt.uri) as hypervisor:
                return hypervisor.domains()

        listed_at = self.moment()
        domains = await asyncio.to_thread(listed)
        actions += await self.reconcile_domains(domains, listed_at, dry_run=dry_run)
        left = (GUEST_OUTSIDE_POOL, EXTENT_QUARANTINED, RECONCILE_FAILED)
        return actions + [
            f"leave as it is: {alert.message} {alert.hint}" for alert in self.watch.look() if alert.code in left
        ]

    async def reconcile_host(self, *, dry_run: bool = False) -> list[str]:
        """Mend what can be told without libvirt."""
        with self.tries.round("host") as tries:
            actions = await reconcile.from_host(self._reconcile_context(tries, dry_run=dry_run))
        self.metrics.reconciled.labels("host").inc(0 if dry_run else len(actions))
        return actions

    async def reconcile_domains(
        self, domains: list[DomainInfo], listed_at: int, *, dry_run: bool = False
    ) -> list[str]:
        """Mend what libvirt's list of domains tells, asked for at the moment ``listed_at``."""
        active = {domain.uuid for domain in domains if domain.active}
        with self.tries.round("libvirt") as tries:
            actions = await reconcile.from_libvirt(
                self._reconcile_context(tries, dry_run=dry_run), active, listed_at
            )
        self.metrics.reconciled.labels("libvirt").inc(0 if dry_run else len(actions))
        return actions

    def _reconcile_context(self, tries: Round, *, dry_run: bool) -> ReconcileContext:
        return ReconcileContext(
            config=self._config,
            ledger=self._ledger,
            inventory=self._inventory,
            extents=self._extents,
            devices=self._mender,
            boot_id=self._boot_id,
            tries=tries,
            dry_run=dry_run,
        )

    def moment(self) -> int:
        """Return what to order by whatever happens to domains here; see ``Ledger.moment``."""
        return self._ledger.moment()

    async def close(self) -> None:
        """Give up what goes on, and close the ledger."""
        await self._changes.close()
        await self.monitors.close()
        self._ledger.close()


def _said(word: object) -> str:
    """Return a word of QEMU's, which a guest may have taken over, as one that can be kept and shown."""
    return clipped(printable(str(word)), 128)


def _require(what: str, number: float, least: int, most: int) -> None:
    """Refuse a number that came over the socket and is not between these two: JSON has any, and NaN.

    :raise UsageError: When it is not.
    """
    if not least <= number <= most:
        raise UsageError(
            f"{clipped(f'{number:g}' if abs(number) < 1e300 else 'A number without end', 80)} is no {what}.",
            hint=f"Give one from {least} to {most}.",
        )


def _known(word: object) -> str:
    """Return a word of ``MEMORY_FAILURE`` (QEMU's qapi/run-state.json), if it is one."""
    return str(word) if word in ("hypervisor", "guest", "ignore", "inject", "fatal", "reset") else "unknown"


def _step(report: StepProgress) -> ChangeReply:
    return ChangeReply(False, report.message, report.done_bytes, report.total_bytes, None)


def _progress(report: StepProgress) -> HookReply:
    return HookReply(
        done=False, message=report.message, done_bytes=report.done_bytes, total_bytes=report.total_bytes, links=[]
    )
