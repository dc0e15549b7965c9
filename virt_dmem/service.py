# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``virt-dmemd`` can be asked, whatever the wire: the daemon's own objects behind plain methods."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from virt_dmem import reconcile
from virt_dmem.config import Config
from virt_dmem.domain_xml import is_managed, read_domain, read_uuid
from virt_dmem.errors import DomainRefused, UsageError
from virt_dmem.host import boot_id
from virt_dmem.hypervisor import DomainInfo, Hypervisor
from virt_dmem.inventory import Inventory
from virt_dmem.ipc.messages import DomainView, ExtentView, HookReply, Link, PoolView, StepView
from virt_dmem.ledger import Ledger, Reservation
from virt_dmem.lifecycle import Lifecycle, Report

__all__ = ["Service"]


class Service:
    """The daemon's parts, put together. Everything runs in one event loop; no two things write at once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._boot_id = boot_id()
        self._ledger = Ledger(config.ledger_path, self._boot_id)
        self._inventory = Inventory(config, self._ledger)
        self._lifecycle = Lifecycle(config, self._ledger, self._inventory)

    async def hook(self, operation: str, xml: bytes, report: Callable[[HookReply], None]) -> list[Link]:
        """Serve one hook operation; an operation that is not ours is answered with nothing done.

        :raise UsageError: When the operation is none that we serve.
        """
        if not is_managed(xml):
            return []
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

    def retire_pool(self, name: str) -> None:
        """Give no more memory from a pool.

        :raise PoolBusy: When domains hold memory of it.
        """
        self._inventory.refresh()
        self._inventory.retire(name)

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
        return await reconcile.from_host(
            self._ledger, self._inventory, self._lifecycle, self._boot_id, dry_run=dry_run
        )

    async def reconcile_domains(
        self, domains: list[DomainInfo], listed_at: float, *, dry_run: bool = False
    ) -> list[str]:
        """Mend what libvirt's list of domains tells, asked for at ``listed_at`` (seconds since the epoch)."""
        active = {domain.uuid for domain in domains if domain.active}
        return await reconcile.from_libvirt(self._ledger, self._lifecycle, active, listed_at, dry_run=dry_run)

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
                    pool=extent.pool,
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
