# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewrite a domain automatically as soon as it is defined with our metadata.

libvirt is called from worker threads only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from virt_dmem.aio import off_loop
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.domains import migration
from virt_dmem.domains.apply import XmlChange, apply_if_requested
from virt_dmem.errors import DmemError
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.monitoring.alert_tracker import AlertTracker

__all__ = ["AutoApply"]

log = logging.getLogger(__name__)

MOST_TIMES = 3
PERIOD_SECONDS = 10.0


class AutoApply:
    """Keep the persistent XML of managed domains rewritten, unless disabled or paused.

    :param alerts: Receives the domains that another tool keeps reverting.
    :param count: Called with the outcome for each domain: ``applied``, ``failed`` or ``fight``.
    """

    def __init__(self, config: Config, alerts: AlertTracker, count: Callable[[str], None]) -> None:
        self._config = config
        self._alerts = alerts
        self._count = count
        self._recent: deque[tuple[float, str]] = deque()
        """Time and UUID of each apply in the last ``PERIOD_SECONDS``."""

    async def consider(self, hypervisor: Hypervisor, uuid: str) -> None:
        """Apply a domain that requests it and is not applied; at most 3 times in 10 s."""
        if not self._config.libvirt.auto_apply or self._alerts.apply_is_paused():
            return
        try:
            xml = await asyncio.to_thread(hypervisor.inactive_xml, uuid)
            domain = await off_loop(_managed, DomainDocument(xml))
            if domain is None or domain.applied:
                self.end_fight(uuid)
                await self._adapt_to_live(hypervisor, uuid, domain)
                return
            if self._recent_count(uuid) >= MOST_TIMES:
                self._alerts.set_fight(
                    uuid,
                    f"{domain.name}: applied {MOST_TIMES} times in {PERIOD_SECONDS:.0f} s, and reverted by another"
                    " tool each time. It is not applied any more, and does not start.",
                )
                self._count("fight")
                return
            self._recent.append((time.monotonic(), uuid))
            await asyncio.to_thread(hypervisor.redefine, uuid, lambda now: apply_if_requested(self._config, now))
            self.end_fight(uuid)
            log.info("%s: applied automatically", domain.name)
            self._count("applied")
        except DmemError as error:
            log.warning("domain %s: automatic apply failed: %s", uuid, error)
            self._count("failed")

    def _recent_count(self, uuid: str) -> int:
        since = time.monotonic() - PERIOD_SECONDS
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        return sum(applied == uuid for _, applied in self._recent)

    async def _adapt_to_live(self, hypervisor: Hypervisor, uuid: str, domain: DomainMemory | None) -> None:
        """Adapt persistent XML that came from another host, by migration, as the live XML was."""
        if domain is None or migration.is_known(self._config, domain.pool):
            return
        if live := await asyncio.to_thread(hypervisor.live_xml, uuid):
            change = XmlChange(
                *await asyncio.to_thread(
                    hypervisor.redefine, uuid, lambda now: migration.adapt_persistent(self._config, now, live)
                )
            )
            if change.is_any:
                log.info("%s: persistent XML from another host adapted to this one", uuid)

    def end_fight(self, uuid: str) -> None:
        """Note that no other tool reverts a domain any more: it is applied, or gone."""
        self._alerts.set_fight(uuid, None)


def _managed(document: DomainDocument) -> DomainMemory | None:
    """Return the memory configuration of a domain that requests pool memory, else ``None``."""
    return document.memory() if document.is_managed() else None
