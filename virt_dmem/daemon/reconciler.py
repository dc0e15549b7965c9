# SPDX-License-Identifier: GPL-2.0-or-later
"""Reconcile the ledger with pools and running domains: on request, periodically, and when libvirt appears."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.config.schema import Config
from virt_dmem.domains import reconcile
from virt_dmem.domains.device_reconcile import DeviceReconciler
from virt_dmem.domains.extents import ExtentManager
from virt_dmem.domains.parked.parking import Parking
from virt_dmem.domains.reconcile import ReconcileContext
from virt_dmem.errors import Delayed
from virt_dmem.hypervisor.connection import DomainInfo, Hypervisor
from virt_dmem.monitoring.alert_codes import EXTENT_QUARANTINED, GUEST_OUTSIDE_POOL, RECONCILE_FAILED
from virt_dmem.monitoring.alert_tracker import AlertTracker
from virt_dmem.monitoring.metrics import Metrics
from virt_dmem.runtime.attempts import Attempts, Round
from virt_dmem.runtime.deadline import within

__all__ = ["Reconciler"]

MOST_DOUBTFUL = 20
"""Domains that libvirt is asked about in one round."""


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    """Run the two stages: what needs no libvirt, and what does. Each returns what it did, for the log."""

    config: Config
    ledger: Ledger
    inventory: Inventory
    extents: ExtentManager
    device_reconciler: DeviceReconciler
    attempts: Attempts
    alerts: AlertTracker
    metrics: Metrics
    boot_id: str
    parking: Parking
    doubts: set[str] = field(default_factory=set)
    """Domains (UUID) of which an event could not be handled."""
    tried: dict[str, float] = field(default_factory=dict)
    """When each doubtful domain was tried last, by the monotonic clock: the others go first."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a domain may have become doubtful."""

    async def run(self, *, dry_run: bool) -> list[str]:
        """Run both stages; name what could not be fixed. libvirt is called from a worker thread.

        :raise HypervisorError: When libvirt does not answer; the first stage is done by then.
        """
        self.inventory.read_records()
        actions = await self.host_stage(dry_run=dry_run)

        def listed() -> list[DomainInfo]:
            with Hypervisor(self.config.libvirt.uri) as hypervisor:
                return hypervisor.domains()

        listed_at = self.ledger.sequence()
        domains = await asyncio.to_thread(listed)
        actions += await self.libvirt_stage(domains, listed_at, dry_run=dry_run)
        left = (GUEST_OUTSIDE_POOL, EXTENT_QUARANTINED, RECONCILE_FAILED)
        return actions + [
            f"leave as it is: {alert.message} {alert.hint}" for alert in self.alerts.refresh() if alert.code in left
        ]

    async def host_stage(self, *, dry_run: bool = False) -> list[str]:
        """Reconcile what can be without libvirt."""
        with self.attempts.round("host") as attempts:
            actions = await reconcile.from_host(self._context(attempts, dry_run=dry_run))
        self.metrics.reconciled.labels("host").inc(0 if dry_run else len(actions))
        return actions

    async def libvirt_stage(self, domains: list[DomainInfo], listed_at: int, *, dry_run: bool = False) -> list[str]:
        """Reconcile with libvirt's list of domains, requested at the ledger's sequence number ``listed_at``."""
        active = {domain.uuid for domain in domains if domain.active}
        with self.attempts.round("libvirt") as attempts:
            actions = await reconcile.from_libvirt(self._context(attempts, dry_run=dry_run), active, listed_at)
        self.metrics.reconciled.labels("libvirt").inc(0 if dry_run else len(actions))
        return actions

    def doubt(self, uuid: str) -> None:
        """Note that an event of a domain could not be handled: it is reconciled until that succeeds."""
        self.doubts.add(uuid)
        self.woken.set()

    async def doubtful_stage(self) -> list[str]:
        """Reconcile, with libvirt, some of the domains that may have ended without that being recorded.

        Nothing while libvirt is not there: all are reconciled when it is back.
        """
        self.woken.clear()
        if not self.alerts.connected:
            return []
        held, failed = self.ledger.phases(), self.attempts.failed_in("libvirt")
        context = self._context(Round(), dry_run=False)
        due = reconcile.doubtful(context, self.alerts.running()) | (self.doubts & held.keys())
        due |= {uuid for uuid in held if reconcile.item_of(uuid) in failed}
        for uuid in self.tried.keys() - due:
            del self.tried[uuid]
        if not due and not failed:
            return []
        some = sorted(due, key=lambda uuid: self.tried.get(uuid, 0.0))[:MOST_DOUBTFUL]
        self.tried.update(dict.fromkeys(some, time.monotonic()))
        self.doubts.intersection_update(due - set(some))
        with self.attempts.round("libvirt", due={*map(reconcile.item_of, due)}) as attempts:
            context = self._context(attempts, dry_run=False)
            actions = await reconcile.with_libvirt(context, some, self._is_active)
        self.metrics.reconciled.labels("libvirt").inc(len(actions))
        self.alerts.changed.set()
        return actions

    async def _is_active(self, uuid: str) -> bool | None:
        """Return whether libvirt calls a domain active; ``None`` if it does not answer.

        :raise HypervisorError: When it cannot be asked.
        """

        def ask() -> bool:
            with Hypervisor(self.config.libvirt.uri) as hypervisor:
                return hypervisor.may_run(uuid)

        try:
            return await within(ask, f"libvirt's domain {uuid}", of=uuid)
        except Delayed:
            return None

    async def settle(self) -> None:
        """Find out how much of the memory that guests gave back is free by now."""
        reclaim = self.extents.reclaim
        reclaim.unsettled.clear()
        with self.attempts.round("settle") as attempts:
            for segment in reclaim.take_unsettled():
                with attempts.trying(f"pool {segment}"):
                    await reclaim.settle(segment)
        self.alerts.changed.set()

    async def wait_unsettled(self) -> None:
        """Wait until memory was given back that is not known to be free."""
        await self.extents.reclaim.unsettled.wait()

    def _context(self, attempts: Round, *, dry_run: bool) -> ReconcileContext:
        return ReconcileContext(
            config=self.config,
            ledger=self.ledger,
            inventory=self.inventory,
            extents=self.extents,
            devices=self.device_reconciler,
            boot_id=self.boot_id,
            settle=self.parking.settle,
            attempts=attempts,
            dry_run=dry_run,
        )
