# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow libvirt: who has to know what of all that happens there.

One task for as long as the daemon lives: connect, list everything anew, then act on each event; begin again
when libvirt went away. libvirt is called from worker threads only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from virt_dmem.autoapply import AutoApply
from virt_dmem.errors import DmemError, HypervisorError
from virt_dmem.guests import Guest, read_guest
from virt_dmem.hypervisor import DomainInfo, Event, Hypervisor, run_event_loop
from virt_dmem.watch import Watch

__all__ = ["Follower"]

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0

_Item = tuple[str, Event] | Literal["list", "gone"]


class Follower:
    """Tells ``auto_apply`` what is defined, ``watch`` what runs.

    :param uri: libvirt's.
    :param on_listed: Awaited with all domains, and when libvirt was asked for them, each time they are listed anew.
    """

    def __init__(
        self,
        uri: str,
        auto_apply: AutoApply,
        watch: Watch,
        on_listed: Callable[[list[DomainInfo], float], Awaitable[None]],
    ) -> None:
        self._uri = uri
        self._auto_apply = auto_apply
        self._watch = watch
        self._on_listed = on_listed
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()

    def list_anew(self) -> None:
        """Look at all domains again, as if libvirt had just appeared."""
        self._queue.put_nowait("list")

    async def run(self) -> None:
        """Follow libvirt for ever."""
        run_event_loop()
        while True:
            try:
                hypervisor = await asyncio.to_thread(Hypervisor, self._uri)
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

    async def _follow(self, hypervisor: Hypervisor) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._queue = queue

        def put(item: _Item) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        await asyncio.to_thread(hypervisor.watch, lambda uuid, event: put((uuid, event)), lambda: put("gone"))
        await self._list(hypervisor)
        while (item := await queue.get()) != "gone":
            if isinstance(item, str):
                await self._list(hypervisor)
            else:
                await self._happened(hypervisor, *item)
        log.info("libvirt is gone; waiting for it")

    async def _list(self, hypervisor: Hypervisor) -> None:
        listed_at = time.time()
        domains = await asyncio.to_thread(hypervisor.domains)
        log.info("libvirt answers with %d domains", len(domains))
        self._watch.connected = True
        await self._on_listed(domains, listed_at)
        active = [domain.uuid for domain in domains if domain.active]
        self._watch.listed([guest for uuid in active if (guest := await self._look(hypervisor, uuid))])
        for domain in domains:
            if domain.managed and not domain.applied:
                await self._auto_apply.consider(hypervisor, domain.uuid)

    async def _happened(self, hypervisor: Hypervisor, uuid: str, event: Event) -> None:
        if event is Event.DEFINED:
            await self._auto_apply.consider(hypervisor, uuid)
        elif event is Event.UNDEFINED:
            self._auto_apply.forget(uuid)
        elif event is Event.STOPPED:
            self._watch.gone(uuid)
        elif guest := await self._look(hypervisor, uuid):
            self._watch.seen(guest)

    @staticmethod
    async def _look(hypervisor: Hypervisor, uuid: str) -> Guest | None:
        try:
            xml = await asyncio.to_thread(hypervisor.live_xml, uuid)
            return read_guest(xml) if xml else None
        except DmemError as error:
            log.warning("domain %s cannot be looked at: %s", uuid, error)
            return None
