# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow libvirt: rewrite a domain by ourselves as soon as it is defined with our metadata.

One task for as long as the daemon lives: connect, list everything anew, then act on each DEFINED event; begin
again when libvirt went away. libvirt is called from worker threads only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path

from virt_dmem import pools
from virt_dmem.config import Config
from virt_dmem.domain_xml import is_managed, read_domain
from virt_dmem.errors import DmemError, HypervisorError
from virt_dmem.hypervisor import DomainInfo, Hypervisor, run_event_loop
from virt_dmem.rewrite import apply

__all__ = ["AutoApply"]

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
MOST_TIMES = 3
WITHIN_SECONDS = 10.0


class AutoApply:
    """Keeps the persistent XML of managed domains rewritten.

    :param on_listed: Awaited with all domains, and when libvirt was asked for them, each time they are listed anew.
    """

    def __init__(self, config: Config, on_listed: Callable[[list[DomainInfo], float], Awaitable[None]]) -> None:
        self._config = config
        self._on_listed = on_listed
        self._applied_at: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_TIMES))

    async def run(self) -> None:
        """Follow libvirt for ever."""
        run_event_loop()
        while True:
            try:
                hypervisor = await asyncio.to_thread(Hypervisor, self._config.libvirt.uri)
            except HypervisorError as error:
                log.debug("%s", error)
            else:
                try:
                    await self._follow(hypervisor)
                except HypervisorError as error:
                    log.warning("%s", error)
                finally:
                    await asyncio.to_thread(hypervisor.close)
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, hypervisor: Hypervisor) -> None:
        loop = asyncio.get_running_loop()
        defined: asyncio.Queue[str | None] = asyncio.Queue()

        def put(uuid: str | None) -> None:
            loop.call_soon_threadsafe(defined.put_nowait, uuid)

        await asyncio.to_thread(hypervisor.watch, put, lambda: put(None))
        listed_at = time.time()
        domains = await asyncio.to_thread(hypervisor.domains)
        log.info("libvirt answers with %d domains", len(domains))
        await self._on_listed(domains, listed_at)
        for domain in domains:
            if domain.managed and not domain.applied:
                await self.consider(hypervisor, domain.uuid)
        while (uuid := await defined.get()) is not None:
            await self.consider(hypervisor, uuid)
        log.info("libvirt is gone; waiting for it")

    async def consider(self, hypervisor: Hypervisor, uuid: str) -> None:
        """Apply a domain if it asks for it and is not applied; never more than 3 times in 10 s."""
        times = self._applied_at[uuid]
        try:
            xml = await asyncio.to_thread(hypervisor.inactive_xml, uuid)
            if not is_managed(xml):
                return
            domain = read_domain(xml)
            if domain.applied or not domain.managed:
                return
            if len(times) == MOST_TIMES and time.monotonic() - times[0] < WITHIN_SECONDS:
                log.error(
                    "%s: applied %d times in %.0f s and undone by another tool each time; leaving it alone."
                    " It will not start until 'virt-dmem apply' holds.", domain.name, MOST_TIMES, WITHIN_SECONDS,
                )  # fmt: skip
                return
            times.append(time.monotonic())
            await asyncio.to_thread(hypervisor.redefine, uuid, self._transform)
            log.info("%s: applied, for it was defined with our metadata", domain.name)
        except DmemError as error:
            log.warning("domain %s was not applied: %s", uuid, error)

    def _transform(self, xml: bytes) -> bytes:
        """Rewrite what still asks for it: between two reads it may have been applied, or have lost the wish."""
        domain = read_domain(xml)
        if not domain.managed or domain.applied:
            return xml
        record = pools.choose(self._config, domain.pool)
        return apply(
            xml, pool=domain.pool, page_size=record.page_size, templates_dir=Path(self._config.templates_dir)
        )
