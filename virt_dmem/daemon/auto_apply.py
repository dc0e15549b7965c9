# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewrite a domain by ourselves as soon as it is defined with our metadata.

libvirt is called from worker threads only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from virt_dmem.aio import aside
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
WITHIN_SECONDS = 10.0


class AutoApply:
    """Keeps the persistent XML of managed domains rewritten, unless that is switched off or paused.

    :param watch: Told of domains that another tool keeps changing back.
    :param count: Called with how each domain fared: ``applied``, ``failed`` or ``fight``.
    """

    def __init__(self, config: Config, watch: AlertTracker, count: Callable[[str], None]) -> None:
        self._config = config
        self._watch = watch
        self._count = count
        self._lately: deque[tuple[float, str]] = deque()
        """When which domain was applied, in the last ``WITHIN_SECONDS``."""

    async def consider(self, hypervisor: Hypervisor, uuid: str) -> None:
        """Apply a domain if it asks for it and is not applied; never more than 3 times in 10 s."""
        if not self._config.libvirt.auto_apply or self._watch.apply_is_paused():
            return
        try:
            xml = await asyncio.to_thread(hypervisor.inactive_xml, uuid)
            domain = await aside(_managed, DomainDocument(xml))
            if domain is None or domain.applied:
                self.forget(uuid)
                await self._follow_what_runs(hypervisor, uuid, domain)
                return
            if self._times_lately(uuid) >= MOST_TIMES:
                self._watch.set_fight(
                    uuid,
                    f"{domain.name}: applied {MOST_TIMES} times in {WITHIN_SECONDS:.0f} s and undone by another"
                    " tool each time, so it was left alone, and does not start.",
                )
                self._count("fight")
                return
            self._lately.append((time.monotonic(), uuid))
            await asyncio.to_thread(hypervisor.redefine, uuid, lambda now: apply_if_requested(self._config, now))
            self.forget(uuid)
            log.info("%s: applied, for it was defined with our metadata", domain.name)
            self._count("applied")
        except DmemError as error:
            log.warning("domain %s was not applied: %s", uuid, error)
            self._count("failed")

    def _times_lately(self, uuid: str) -> int:
        since = time.monotonic() - WITHIN_SECONDS
        while self._lately and self._lately[0][0] < since:
            self._lately.popleft()
        return sum(applied == uuid for _, applied in self._lately)

    async def _follow_what_runs(self, hypervisor: Hypervisor, uuid: str, domain: DomainMemory | None) -> None:
        """Have persistent XML that came from another host, by migration, fit this one as what runs does."""
        if domain is None or migration.is_known(self._config, domain.pool):
            return
        if live := await asyncio.to_thread(hypervisor.live_xml, uuid):
            change = XmlChange(
                *await asyncio.to_thread(
                    hypervisor.redefine, uuid, lambda now: migration.adapt_persistent(self._config, now, live)
                )
            )
            if change.is_any:
                log.info("%s: its persistent XML came from another host, and fits this one now", uuid)

    def forget(self, uuid: str) -> None:
        """There is no fight over a domain any more: it is as it should be, or is gone."""
        self._watch.set_fight(uuid, None)


def _managed(document: DomainDocument) -> DomainMemory | None:
    """Return the memory of a domain that asks for pool memory; ``None`` for any other."""
    return document.memory() if document.is_managed() else None
