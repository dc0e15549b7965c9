# SPDX-License-Identifier: GPL-2.0-or-later
"""Create all parts of the daemon, and connect them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import ParkedStep, Phase
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.allocation.prezero.worker import PrezeroWorker
from virt_dmem.allocation.remembered import Remembered
from virt_dmem.config.schema import Config
from virt_dmem.daemon.auto_apply import AutoApply
from virt_dmem.daemon.domain_list import DomainList
from virt_dmem.daemon.events import Events
from virt_dmem.daemon.guest_events import GuestEvents
from virt_dmem.daemon.libvirt_events import LibvirtEvents
from virt_dmem.daemon.lost_requests import LostRequests
from virt_dmem.daemon.reconciler import Reconciler
from virt_dmem.daemon.service import Service
from virt_dmem.daemon.views import ControlInterface, domain_json
from virt_dmem.domains.admission import Admission
from virt_dmem.domains.device_ops import DeviceOperations
from virt_dmem.domains.device_reconcile import DeviceReconciler
from virt_dmem.domains.elastic.growth import Growth
from virt_dmem.domains.elastic.returning import Returning
from virt_dmem.domains.extents import ExtentManager
from virt_dmem.domains.hooks import HookOperations
from virt_dmem.domains.hotplug import Hotplug
from virt_dmem.domains.parked.parking import Parking
from virt_dmem.domains.parked.restores import Restores
from virt_dmem.domains.step_times import StepTimes
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.errors import DmemError
from virt_dmem.host.kernel import boot_id
from virt_dmem.hypervisor.connection import DomainInfo
from virt_dmem.hypervisor.processes import qemu_pid
from virt_dmem.hypervisor.qmp import Monitors
from virt_dmem.monitoring.alert_tracker import AlertTracker
from virt_dmem.monitoring.metrics import Metrics
from virt_dmem.monitoring.watch.base import Watch
from virt_dmem.monitoring.watch.host_watch import HostWatch
from virt_dmem.monitoring.watch.parked_guests import parked_guests
from virt_dmem.runtime.attempts import Attempts

__all__ = ["Components", "build"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Components:
    """Hold the parts of one daemon."""

    config: Config
    ledger: Ledger
    inventory: Inventory
    hooks: HookOperations
    extents: ExtentManager
    prezero: PrezeroCache
    prezero_worker: PrezeroWorker
    returning: Returning
    device_operations: DeviceOperations
    device_reconciler: DeviceReconciler
    alerts: AlertTracker
    metrics: Metrics
    host_watch: HostWatch
    reconciler: Reconciler
    guest_events: GuestEvents
    monitors: Monitors
    libvirt_events: LibvirtEvents
    lost_requests: LostRequests
    service: Service
    domain_list: DomainList
    interface: ControlInterface

    def follow_monitors(self) -> None:
        """Connect to the monitors of all running domains with pool memory."""
        phases = self.ledger.phases().items()
        restored = {
            uuid
            for uuid, parked in self.ledger.all_parked().items()
            if parked.step in (ParkedStep.UNPARKING, ParkedStep.RESUMING)  # a monitor serves one at a time
        }
        self.monitors.follow({uuid for uuid, change in phases if change.phase is Phase.RUNNING} - restored)

    def note_hotplug(self) -> None:
        """Look again at the host's processors and memory, which came or went."""
        self.service.reread_nodes()
        self.host_watch.note_hotplug()

    async def close(self) -> None:
        """Cancel changes of devices that are in progress, and close the ledger."""
        await self.device_operations.close()
        await self.service.parking.close()
        await self.monitors.close()
        self.returning.close()
        self.ledger.close()


def build(config: Config) -> Components:
    """Return all parts of a daemon, connected; nothing runs yet.

    :raise LedgerError: When the ledger cannot be opened.
    """
    this_boot = boot_id()
    ledger = Ledger(config.ledger_path, this_boot)
    inventory = Inventory(config, ledger)
    times = StepTimes(ledger)
    extents = ExtentManager(config, ledger, inventory, times)
    prezero = extents.prezero
    attempts = Attempts()
    returning = Returning(config, ledger, inventory, prezero, attempts)
    growth = Growth(config, inventory, returning)
    admission = Admission(config, ledger, inventory, prezero, extents.reclaim, growth=growth)
    hooks = HookOperations(config, ledger, admission, extents, times)
    device_operations = DeviceOperations(config, ledger, inventory, admission, extents)
    virtio_mem = VirtioMem(device_operations)
    device_reconciler = DeviceReconciler(device_operations, virtio_mem)

    remembered = Remembered(config.daemon.state_dir)
    alerts = AlertTracker(config, ledger, inventory, extents.reclaim, attempts)
    metrics = Metrics(config, ledger, prezero, alerts)
    host_watch = HostWatch(
        config,
        inventory,
        attempts,
        in_use=lambda: bool(ledger.phases()),
        on_alerts=alerts.set_deviations,
        on_repair=lambda code: metrics.put_right.labels(code).inc(),
    )
    host_watch.add(Watch("parked guests", lambda: parked_guests(ledger), recorded=False))

    def qemu_of(uuid: str) -> int | None:
        held = ledger.find(uuid)
        return qemu_pid(Path(config.libvirt.run_dir), held.name) if held and held.uuid == uuid else None

    async def qemu_event(uuid: str, event: str, data: Mapping[str, Any]) -> None:
        await guest_events.qemu_event(uuid, event, data)

    monitors = Monitors(qemu_event, qemu_of, lambda uuid: ledger.parked(uuid) is not None)
    restores = Restores()
    parking = Parking(device_operations, monitors, restores)
    reconciler = Reconciler(
        config=config,
        ledger=ledger,
        inventory=inventory,
        extents=extents,
        device_reconciler=device_reconciler,
        attempts=attempts,
        alerts=alerts,
        metrics=metrics,
        boot_id=this_boot,
        parking=parking,
    )
    guest_events = GuestEvents(ledger, device_operations, device_reconciler, alerts.changed, reconciler.doubt)
    hotplug = Hotplug(device_operations, virtio_mem, monitors)

    async def domains_listed(domains: list[DomainInfo], listed_at: int) -> None:
        prezero.set_domains(domain.memory for domain in domains if domain.memory)
        for action in await reconciler.libvirt_stage(domains, listed_at):
            log.warning("reconcile: %s", action)

    lost_requests = LostRequests(remembered, alerts, attempts)
    libvirt_events = LibvirtEvents(
        config.libvirt,
        AutoApply(config, alerts, lambda outcome: metrics.applied.labels(outcome).inc()),
        alerts,
        lost_requests,
        rules=config.adopt,
        sequence=ledger.sequence,
        on_listed=domains_listed,
        on_defined=prezero.update_domain,
        on_device=guest_events.device_event,
        on_stopped=reconciler.woken.set,
    )
    lost_requests.on_removed = libvirt_events.relist
    service = Service(
        config=config,
        ledger=ledger,
        inventory=inventory,
        hooks=hooks,
        parking=parking,
        restores=restores,
        prezero=prezero,
        virtio_mem=virtio_mem,
        hotplug=hotplug,
        monitors=monitors,
        alerts=alerts,
        metrics=metrics,
        remembered=remembered,
        events=_connected_events(ledger, alerts),
        on_resume=libvirt_events.relist,
    )
    domain_list = DomainList(ledger, domain_json)
    return Components(
        config=config,
        ledger=ledger,
        inventory=inventory,
        hooks=hooks,
        extents=extents,
        prezero=prezero,
        prezero_worker=PrezeroWorker(config, inventory, prezero),
        returning=returning,
        device_operations=device_operations,
        device_reconciler=device_reconciler,
        alerts=alerts,
        metrics=metrics,
        host_watch=host_watch,
        reconciler=reconciler,
        guest_events=guest_events,
        monitors=monitors,
        libvirt_events=libvirt_events,
        lost_requests=lost_requests,
        service=service,
        domain_list=domain_list,
        interface=ControlInterface(service, reconciler, domain_list),
    )


def _connected_events(ledger: Ledger, alerts: AlertTracker) -> Events:
    """Return the memory of events, told by ledger and alerts."""

    def name_of(uuid: str) -> str:
        with suppress(DmemError):  # what was done is not undone because its event has no name
            found = ledger.find(uuid)
            return found.name if found else ""
        return ""

    events = Events(name_of, ledger.names())
    ledger.on_phase = events.phase_changed
    ledger.on_extent_gone = events.extent_gone
    alerts.on_change = lambda alert, active: events.alert_changed(alert, active=active)
    return events
