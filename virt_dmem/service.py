# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``virt-dmemd`` can be asked, whatever the wire: the daemon's own objects behind plain methods."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from virt_dmem import reconcile
from virt_dmem.config import Config
from virt_dmem.domain_xml import is_managed, read_domain, read_uuid
from virt_dmem.errors import DomainRefused, UsageError
from virt_dmem.host import boot_id
from virt_dmem.hypervisor import DomainInfo, Hypervisor
from virt_dmem.inventory import Inventory
from virt_dmem.ipc.messages import AlertView, DomainView, ExtentView, HookReply, Link, PoolView, StepView
from virt_dmem.ledger import Ledger, Reservation
from virt_dmem.lifecycle import Lifecycle, Report
from virt_dmem.metrics import Metrics
from virt_dmem.watch import APPLY, Watch

__all__ = ["Service"]

_OPERATIONS = ("prepare", "start", "started", "stopped", "release")


class Service:
    """The daemon's parts, put together. Everything runs in one event loop; no two things write at once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._boot_id = boot_id()
        self._ledger = Ledger(config.ledger_path, self._boot_id)
        self._inventory = Inventory(config, self._ledger)
        self._lifecycle = Lifecycle(config, self._ledger, self._inventory)
        self.watch = Watch(config, self._ledger, self._inventory)
        self.metrics = Metrics(config, self._ledger, self._inventory, self.watch)
        self.on_resume: Callable[[], None] = lambda: None
        """Called when automatic apply goes on: all that was defined meanwhile is to be looked at."""

    async def hook(self, operation: str, xml: bytes, report: Callable[[HookReply], None]) -> list[Link]:
        """Serve one hook operation; an operation that is not ours is answered with nothing done.

        :raise UsageError: When the operation is none that we serve.
        """
        if not is_managed(xml):
            return []
        with self.metrics.hook(operation if operation in _OPERATIONS else "other"):
            return await self._serve(operation, xml, report)

    async def _serve(self, operation: str, xml: bytes, report: Callable[[HookReply], None]) -> list[Link]:
        match operation:
            case "prepare":
                await self._lifecycle.prepare(read_domain(xml), lambda progress: report(_progress(progress)))
            case "start":
                return await self._lifecycle.start(read_domain(xml))
            case "started":
                await self._lifecycle.started(read_domain(xml))
            # what runs may have become, by hot-add, what would not be started: only who it is counts here
            case "stopped":
                await self._lifecycle.stopped(read_uuid(xml))
            case "release":
                await self._lifecycle.release(read_uuid(xml))
            case _:
                raise UsageError(
                    f"The hook operation {operation!r} is not served.",
                    hint="The installed hook is of another version; install virt-dmem again.",
                )
        return []

    def list_domains(self) -> list[DomainView]:
        """Return every domain that holds memory, by name."""
        return [self._view(reservation) for reservation in self._ledger.reservations()]

    def show_domain(self, domain: str) -> DomainView:
        """Return one domain, by UUID or name.

        :raise DomainRefused: When it holds nothing.
        """
        reservation = self._ledger.find(domain)
        if reservation is None:
            raise DomainRefused(
                f"Domain {domain} holds no memory of a pool now.", hint="'virt-dmem list' shows those that do."
            )
        return self._view(reservation)

    def list_pools(self) -> list[PoolView]:
        """Return every pool, by name."""
        return self._inventory.views()

    def refresh_pools(self) -> None:
        """Read the records of the pools again."""
        self._inventory.refresh()

    async def retire_pool(self, name: str) -> None:
        """Give no more memory from a pool (``POOL``) or from one of its segments (``POOL+N``), and be out of it.

        :raise PoolBusy: When domains hold memory of it.
        """
        self._inventory.refresh()
        self._inventory.retire(name)
        await self._lifecycle.holding.at_rest()

    async def hold_free(self) -> None:
        """Hold what is free of the pools on its nodes, where that needs doing."""
        await self._lifecycle.holding.hold_free()

    def drain_pool(self, name: str, *, undo: bool) -> None:
        """Give no more memory from a pool, or give it again; holds until it is said otherwise.

        :raise PoolNotFound: When there is none.
        """
        self._inventory.refresh()
        self._inventory.drain(name, undo=undo)

    def list_alerts(self) -> list[AlertView]:
        """Return what is not as it should be now."""
        return self.watch.look()

    def show_metrics(self) -> str:
        """Return all metrics in Prometheus' text format."""
        return self.metrics.exposition().decode()

    def pause_apply(self, seconds: float) -> None:
        """Apply no domain without being asked to, for so long (0: until ``resume_apply``)."""
        self._ledger.pause(APPLY, time.time() + seconds if seconds else math.inf)
        self.watch.changed.set()

    def resume_apply(self) -> None:
        """Apply domains again, also those that were defined meanwhile."""
        self._ledger.resume(APPLY)
        self.watch.changed.set()
        self.on_resume()

    def keep_pause(self) -> None:
        """End a pause whose time is over."""
        until = self._ledger.paused_until(APPLY)
        if until is not None and until <= time.time():
            self.resume_apply()

    async def reconcile(self, *, dry_run: bool) -> list[str]:
        """Run both stages; libvirt is asked from a worker thread.

        :raise HypervisorError: When libvirt does not answer; what needs no libvirt is done by then.
        """
        self._inventory.refresh()
        actions = await self.reconcile_host(dry_run=dry_run)

        def listed() -> list[DomainInfo]:
            with Hypervisor(self._config.libvirt.uri) as hypervisor:
                return hypervisor.domains()

        listed_at = time.time()
        domains = await asyncio.to_thread(listed)
        return actions + await self.reconcile_domains(domains, listed_at, dry_run=dry_run)

    async def reconcile_host(self, *, dry_run: bool = False) -> list[str]:
        """Mend what can be told without libvirt."""
        actions = await reconcile.from_host(
            self._config, self._ledger, self._inventory, self._lifecycle, self._boot_id, dry_run=dry_run
        )
        self.metrics.reconciled.labels("host").inc(0 if dry_run else len(actions))
        return actions

    async def reconcile_domains(
        self, domains: list[DomainInfo], listed_at: float, *, dry_run: bool = False
    ) -> list[str]:
        """Mend what libvirt's list of domains tells, asked for at ``listed_at`` (seconds since the epoch)."""
        active = {domain.uuid for domain in domains if domain.active}
        actions = await reconcile.from_libvirt(self._ledger, self._lifecycle, active, listed_at, dry_run=dry_run)
        self.metrics.reconciled.labels("libvirt").inc(0 if dry_run else len(actions))
        return actions

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def _view(self, reservation: Reservation) -> DomainView:
        return DomainView(
            uuid=reservation.uuid,
            name=reservation.name,
            phase=reservation.phase.value,
            since=reservation.since,
            reserved_bytes=reservation.size_bytes,
            extents=[
                ExtentView(
                    alias=extent.alias,
                    pool=extent.pool.partition("+")[0],
                    path=str(extent.path),
                    size_bytes=extent.size_bytes,
                    page_size=extent.page_size,
                    policy=extent.policy,
                    nodes=list(extent.nodes),
                    state=extent.state.value,
                )
                for extent in reservation.extents
            ],
            steps=[StepView(step.step, step.at, step.seconds) for step in self._ledger.steps(reservation.uuid)],
        )


def _progress(report: Report) -> HookReply:
    return HookReply(
        done=False, message=report.message, done_bytes=report.done_bytes, total_bytes=report.total_bytes, links=[]
    )
