# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow libvirt: who has to know what of all that happens there.

One task for as long as the daemon lives: connect, list everything anew, then act on each event; begin again
when libvirt went away. libvirt is called from worker threads only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from virt_dmem.config.schema import LibvirtConfig
from virt_dmem.daemon.auto_apply import AutoApply
from virt_dmem.domain_xml.live import Guest, read_guest
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.errors import DmemError, HypervisorError
from virt_dmem.hypervisor.connection import DomainInfo, Event, Hypervisor, run_event_loop
from virt_dmem.hypervisor.processes import libvirt_runs
from virt_dmem.monitoring.alert_tracker import AlertTracker

__all__ = ["Follower"]

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
SYSTEM_URI = "qemu:///system"

_Item = tuple[str, Event, str] | Literal["list", "gone"]


class _Queue:
    """What happened and was not acted on yet, in order, of all that is the same the last one.

    A guest can have libvirt say the same for ever, and faster than we ask how things are.
    """

    def __init__(self) -> None:
        self._items: dict[_Item, None] = {}
        self._some = asyncio.Event()

    def put(self, item: _Item) -> None:
        """Add one."""
        self._items.pop(item, None)
        self._items[item] = None
        self._some.set()

    async def get(self) -> _Item:
        """Wait for the first one, and take it."""
        while not self._items:
            self._some.clear()
            await self._some.wait()
        item = next(iter(self._items))
        del self._items[item]
        return item


class Follower:
    """Tells ``auto_apply`` what is defined, ``watch`` what runs.

    :param moment: Called right before libvirt is asked for all domains.
    :param on_listed: Awaited with all domains, and what ``moment`` returned, each time they are listed anew.
    :param on_defined: Called with UUID and what an applied domain is defined as; ``None``: there is none now.
    :param on_device: Awaited with UUID, event and alias when something happened to a device.
    """

    def __init__(
        self,
        config: LibvirtConfig,
        auto_apply: AutoApply,
        watch: AlertTracker,
        *,
        moment: Callable[[], int],
        on_listed: Callable[[list[DomainInfo], int], Awaitable[None]],
        on_defined: Callable[[str, DomainMemory | None], None],
        on_device: Callable[[str, Event, str], Awaitable[None]],
    ) -> None:
        self._config = config
        self._auto_apply = auto_apply
        self._watch = watch
        self._moment = moment
        self._on_listed = on_listed
        self._on_defined = on_defined
        self._on_device = on_device
        self._queue = _Queue()

    def list_anew(self) -> None:
        """Look at all domains again, as if libvirt had just appeared."""
        self._queue.put("list")

    async def run(self) -> None:
        """Follow libvirt for ever."""
        run_event_loop()
        while True:
            await self._until_libvirt_runs()
            try:
                hypervisor = await asyncio.to_thread(Hypervisor, self._config.uri)
            except HypervisorError as error:
                log.debug("%s", error)
            else:
                try:
                    await self._follow(hypervisor)
                except HypervisorError as error:
                    log.warning("%s", error)
                finally:
                    self._watch.connected = False
                    await asyncio.to_thread(hypervisor.close)
            await asyncio.sleep(RETRY_SECONDS)

    async def _until_libvirt_runs(self) -> None:
        """Wait for it: to connect would start, by its systemd socket, what an administrator has stopped."""
        while self._config.uri == SYSTEM_URI and not libvirt_runs(Path(self._config.run_dir)):
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, hypervisor: Hypervisor) -> None:
        loop = asyncio.get_running_loop()
        self._queue = queue = _Queue()

        def put(item: _Item) -> None:
            loop.call_soon_threadsafe(queue.put, item)

        await asyncio.to_thread(hypervisor.watch, lambda *happened: put(happened), lambda: put("gone"))
        await self._list(hypervisor)
        while (item := await queue.get()) != "gone":
            if isinstance(item, str):
                await self._list(hypervisor)
            else:
                await self._happened(hypervisor, *item)
        log.info("libvirt is gone; waiting for it")

    async def _list(self, hypervisor: Hypervisor) -> None:
        listed_at = self._moment()
        domains = await asyncio.to_thread(hypervisor.domains)
        log.info("libvirt answers with %d domains", len(domains))
        self._watch.connected = True
        await self._on_listed(domains, listed_at)
        active = [domain.uuid for domain in domains if domain.active]
        self._watch.listed([guest for uuid in active if (guest := await self._look(hypervisor, uuid))])
        for domain in domains:
            if domain.managed and not domain.applied:
                await self._auto_apply.consider(hypervisor, domain.uuid)

    async def _happened(self, hypervisor: Hypervisor, uuid: str, event: Event, alias: str) -> None:
        if event is Event.DEFINED:
            await self._auto_apply.consider(hypervisor, uuid)
            info = await asyncio.to_thread(hypervisor.info, uuid)
            self._on_defined(uuid, info.memory if info else None)
        elif event is Event.UNDEFINED:
            self._auto_apply.forget(uuid)
            self._on_defined(uuid, None)
        elif event is Event.STOPPED:
            self._watch.gone(uuid)
        else:
            if guest := await self._look(hypervisor, uuid):
                self._watch.seen(guest)
            if alias:
                await self._on_device(uuid, event, alias)

    @staticmethod
    async def _look(hypervisor: Hypervisor, uuid: str) -> Guest | None:
        def look() -> Guest | None:
            xml = hypervisor.live_xml(uuid)
            return read_guest(xml) if xml else None

        try:
            return await asyncio.to_thread(look)
        except DmemError as error:
            log.warning("domain %s cannot be looked at: %s", uuid, error)
            return None
