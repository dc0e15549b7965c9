# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow libvirt's events, and pass them to the parts of the daemon that act on them.

One task for the life of the daemon: connect, list all domains, then handle each event; start over when the
connection is lost. libvirt is called from worker threads only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from virt_dmem.config.schema import AdoptRule, LibvirtConfig
from virt_dmem.daemon.auto_apply import AutoApply
from virt_dmem.daemon.lost_requests import LostRequests
from virt_dmem.domain_xml.live import Guest, read_guest
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.errors import DmemError, HypervisorError
from virt_dmem.hypervisor.connection import DomainInfo, Event, Hypervisor, run_event_loop
from virt_dmem.hypervisor.processes import libvirt_runs
from virt_dmem.monitoring.alert_tracker import AlertTracker
from virt_dmem.text import counted

__all__ = ["LibvirtEvents"]

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
SYSTEM_URI = "qemu:///system"

_Item = tuple[str, Event, str] | Literal["list", "gone"]


class _Queue:
    """Queue events in order; of equal ones keep the last.

    A guest can make libvirt repeat an event without end, faster than we handle it.
    """

    def __init__(self) -> None:
        self._items: dict[_Item, None] = {}
        self._some = asyncio.Event()

    def put(self, item: _Item) -> None:
        """Add an event."""
        self._items.pop(item, None)
        self._items[item] = None
        self._some.set()

    async def get(self) -> _Item:
        """Wait for the first event, and remove it."""
        while not self._items:
            self._some.clear()
            await self._some.wait()
        item = next(iter(self._items))
        del self._items[item]
        return item


class LibvirtEvents:
    """Report defined domains to ``auto_apply``, running ones to ``alerts``.

    :param rules: Those by which domains are adopted.
    :param sequence: Returns the ledger's sequence number; called right before libvirt is asked for all domains.
    :param on_listed: Awaited with all domains, and the result of ``sequence``, each time they were listed.
    :param on_defined: Called with UUID and definition of an applied domain; ``None``: it is not applied, or gone.
    :param on_device: Awaited with UUID, event and alias for each event of a device.
    :param on_stopped: Called when a domain stopped, after its hooks.
    """

    def __init__(
        self,
        config: LibvirtConfig,
        auto_apply: AutoApply,
        alerts: AlertTracker,
        lost_requests: LostRequests,
        *,
        rules: Sequence[AdoptRule] = (),
        sequence: Callable[[], int],
        on_listed: Callable[[list[DomainInfo], int], Awaitable[None]],
        on_defined: Callable[[str, DomainMemory | None], None],
        on_device: Callable[[str, Event, str], Awaitable[None]],
        on_stopped: Callable[[], None],
    ) -> None:
        self._config = config
        self._auto_apply = auto_apply
        self._alerts = alerts
        self._lost_requests = lost_requests
        self._rules = rules
        self._sequence = sequence
        self._on_listed = on_listed
        self._on_defined = on_defined
        self._on_device = on_device
        self._on_stopped = on_stopped
        self._queue = _Queue()

    def relist(self) -> None:
        """List all domains again, as after a new connection."""
        self._queue.put("list")

    def retry_waiting(self) -> None:
        """Consider domains again whose requests could not be fulfilled."""
        for uuid in self._auto_apply.waiting():
            self._queue.put((uuid, Event.DEFINED, ""))

    async def run(self) -> None:
        """Follow libvirt until cancelled."""
        run_event_loop()
        while True:
            await self._wait_for_libvirt()
            try:
                hypervisor = await asyncio.to_thread(partial(Hypervisor, self._config.uri, rules=self._rules))
            except HypervisorError as error:
                log.debug("%s", error)
            else:
                try:
                    await self._follow(hypervisor)
                except HypervisorError as error:
                    log.warning("%s", error)
                finally:
                    self._alerts.connected = False
                    await asyncio.to_thread(hypervisor.close)
            await asyncio.sleep(RETRY_SECONDS)

    async def _wait_for_libvirt(self) -> None:
        """Wait for libvirt: connecting would start, by its systemd socket, a daemon that was stopped on purpose."""
        while self._config.uri == SYSTEM_URI and not libvirt_runs(Path(self._config.run_dir)):
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, hypervisor: Hypervisor) -> None:
        loop = asyncio.get_running_loop()
        self._queue = queue = _Queue()

        def put(item: _Item) -> None:
            loop.call_soon_threadsafe(queue.put, item)

        await asyncio.to_thread(hypervisor.subscribe, lambda *event: put(event), lambda: put("gone"))
        await self._list(hypervisor)
        while (item := await queue.get()) != "gone":
            if isinstance(item, str):
                await self._list(hypervisor)
            else:
                await self._handle(hypervisor, *item)
        log.info("connection to libvirt lost; waiting for libvirt")

    async def _list(self, hypervisor: Hypervisor) -> None:
        listed_at = self._sequence()
        domains = await asyncio.to_thread(hypervisor.domains)
        log.info("connected to libvirt: %s", counted(len(domains), "domain"))
        self._alerts.connected = True
        await self._on_listed(domains, listed_at)
        active = [domain.uuid for domain in domains if domain.active]
        self._alerts.set_domains([guest for uuid in active if (guest := await self._read(hypervisor, uuid))])
        defined = {domain.uuid: domain for domain in domains if domain.persistent}
        self._alerts.forget_definitions(defined)
        await self._lost_requests.listed(domains)
        pools: dict[str, bool] = {}
        """Whether each pool that applied domains ask for is there, looked up once."""
        applied: list[DomainInfo] = []
        for uuid, domain in defined.items():
            if domain.adopted or domain.refusal:
                await self._auto_apply.consider_adopted(domain)
                continue
            if domain.memory and domain.memory.pool not in pools:
                pools[domain.memory.pool] = self._auto_apply.has_pool(domain.memory.pool)
            has_no_pool = domain.memory is not None and not pools[domain.memory.pool]
            if has_no_pool or domain.managed > domain.applied or domain.unknown_request:
                await self._auto_apply.consider(hypervisor, uuid)
            elif domain.memory:
                applied.append(domain)
            else:
                self._auto_apply.forget(uuid)
        await self._auto_apply.consider_applied(applied)

    async def _handle(self, hypervisor: Hypervisor, uuid: str, event: Event, alias: str) -> None:
        if event is Event.DEFINED:
            info = await asyncio.to_thread(hypervisor.info, uuid) if self._rules else None
            if info and info.persistent and (info.adopted or info.refusal):
                await self._auto_apply.consider_adopted(info)
            else:
                await self._auto_apply.consider(hypervisor, uuid)
                info = await asyncio.to_thread(hypervisor.info, uuid)
            self._on_defined(uuid, info.memory if info else None)
            if info:
                await self._lost_requests.defined(info)
        elif event is Event.UNDEFINED:
            self._auto_apply.forget(uuid)
            self._lost_requests.undefined(uuid)
            self._on_defined(uuid, None)
        elif event is Event.STOPPED:
            self._alerts.remove_domain(uuid)
            self._on_stopped()
        else:
            if guest := await self._read(hypervisor, uuid):
                self._alerts.update_domain(guest)
            if alias:
                await self._on_device(uuid, event, alias)

    async def _read(self, hypervisor: Hypervisor, uuid: str) -> Guest | None:
        def read() -> Guest | None:
            xml = hypervisor.live_xml(uuid)
            return read_guest(xml, self._rules) if xml else None

        try:
            return await asyncio.to_thread(read)
        except DmemError as error:
            log.warning("domain %s cannot be read: %s", uuid, error)
            return None
