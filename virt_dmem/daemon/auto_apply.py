# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewrite a domain automatically as soon as it is defined with our metadata.

libvirt is called from worker threads only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.domains import adoption, migration
from virt_dmem.domains.apply import Fitting, XmlChange, apply_if_requested
from virt_dmem.errors import DmemError, DomainRefused, NotRewritten
from virt_dmem.hypervisor.connection import DomainInfo, Hypervisor
from virt_dmem.monitoring.alert_codes import APPLY_FIGHT, REQUEST_UNFULFILLED
from virt_dmem.monitoring.alert_tracker import AlertTracker
from virt_dmem.pools import registry
from virt_dmem.runtime.aio import off_loop

__all__ = ["AutoApply"]

log = logging.getLogger(__name__)

MOST_TIMES = 3
PERIOD_SECONDS = 10.0


class AutoApply:
    """Keep the persistent XML of managed domains rewritten, unless disabled or paused.

    :param alerts: Receives the domains that another tool keeps reverting, and those that cannot be applied.
    :param count: Called with the outcome for each domain: ``applied``, ``failed`` or ``fight``.
    """

    def __init__(self, config: Config, alerts: AlertTracker, count: Callable[[str], None]) -> None:
        self._config = config
        self._alerts = alerts
        self._count = count
        self._recent: deque[tuple[float, str]] = deque()
        """Time and UUID of each apply in the last ``PERIOD_SECONDS``."""
        self._waiting: dict[str, str] = {}
        """The reason for which a request could not be fulfilled, by UUID."""

    async def consider(self, hypervisor: Hypervisor, uuid: str) -> None:
        """Apply a domain that requests it and is not applied, at most 3 times in 10 s.

        A request that cannot be fulfilled is an alert until it is, and the domain one of ``waiting``.
        """
        if self._alerts.apply_is_paused():
            return
        try:
            await self._apply(hypervisor, uuid)
        except DmemError as error:
            await self._failed(hypervisor, uuid, error)
        else:
            self._waiting.pop(uuid, None)
            self._alerts.set_definition(REQUEST_UNFULFILLED, uuid, None)

    async def consider_adopted(self, domain: DomainInfo) -> None:
        """Report a domain that a rule takes and rejects, or whose pool cannot serve it, until that has changed."""
        error: DmemError | None = domain.refusal
        if domain.memory is not None:
            try:
                await asyncio.to_thread(adoption.require_servable, self._config, domain.memory)
                await asyncio.to_thread(Fitting(self._config).require, domain.memory)
            except DmemError as failed:
                error = failed
        self._alerts.set_definition(APPLY_FIGHT, domain.uuid, None)
        self._set_error(domain.uuid, error)

    async def consider_applied(self, domains: Sequence[DomainInfo]) -> None:
        """Report the applied domains that can never start on their pools as these are, until that has changed."""

        def failures() -> list[DmemError | None]:
            fitting = Fitting(self._config)
            return [_failure(fitting, domain.memory) for domain in domains]

        for domain, error in zip(domains, await asyncio.to_thread(failures), strict=True):
            self._alerts.set_definition(APPLY_FIGHT, domain.uuid, None)
            self._set_error(domain.uuid, error)

    def _set_error(self, uuid: str, error: DmemError | None) -> None:
        """Report why a domain cannot be served, and log it if it is another reason than before."""
        self._alerts.set_definition(REQUEST_UNFULFILLED, uuid, error)
        if error is None:
            self._waiting.pop(uuid, None)
        elif self._waiting.get(uuid) != str(error):
            log.warning("domain %s cannot start on its pool: %s", uuid, error)
            self._waiting[uuid] = str(error)

    async def _apply(self, hypervisor: Hypervisor, uuid: str) -> None:
        xml = await asyncio.to_thread(hypervisor.inactive_xml, uuid)
        domain = await off_loop(_managed, DomainDocument(xml))
        if domain is None and (unknown := DomainDocument(xml).unknown_request()):
            raise unknown
        if domain is None or domain.applied:
            self._alerts.set_definition(APPLY_FIGHT, uuid, None)
            if domain is not None and not migration.is_known(self._config, domain.pool):
                await self._adapt_to_live(hypervisor, uuid, domain)
            elif domain is not None:
                await asyncio.to_thread(Fitting(self._config).require, domain)
            return
        if not self._config.libvirt.auto_apply:
            raise NotRewritten(
                f"Domain {domain.name} asks for pool memory, its XML is not rewritten, and auto_apply is off.",
                hint=f"Run: virt-dmem apply {uuid}",
            )
        if self._recent_count(uuid) >= MOST_TIMES:
            message = (
                f"{domain.name}: applied {MOST_TIMES} times in {PERIOD_SECONDS:.0f} s, and reverted by another tool"
                " each time. It is not applied any more, and does not start."
            )
            hint = f"Find the tool that redefines the domain, then run: virt-dmem apply {uuid}"
            self._alerts.set_definition(APPLY_FIGHT, uuid, DomainRefused(message, hint=hint))
            self._count("fight")
            return
        _, now = await asyncio.to_thread(
            hypervisor.redefine, uuid, lambda now: apply_if_requested(self._config, now)
        )
        self._recent.append((time.monotonic(), uuid))
        self._alerts.set_definition(APPLY_FIGHT, uuid, None)
        log.info("%s: applied automatically", domain.name)
        self._count("applied")
        await off_loop(lambda document: Fitting(self._config).require(document.memory()), DomainDocument(now))

    async def _failed(self, hypervisor: Hypervisor, uuid: str, error: DmemError) -> None:
        """Report a request that cannot be fulfilled, each reason once; one of a transient domain is nobody's."""
        if self._waiting.get(uuid) == str(error):
            return
        log.warning("domain %s: automatic apply failed: %s", uuid, error)
        self._count("failed")
        try:
            info = await asyncio.to_thread(hypervisor.info, uuid)
        except DmemError:  # libvirt is gone; all domains are listed when it is back
            return
        if info is not None and info.persistent:
            self._waiting[uuid] = str(error)
            message = error.message if info.name in error.message else f"Domain {info.name}: {error.message}"
            self._alerts.set_definition(REQUEST_UNFULFILLED, uuid, DomainRefused(message, hint=error.hint))

    def _recent_count(self, uuid: str) -> int:
        since = time.monotonic() - PERIOD_SECONDS
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        return sum(applied == uuid for _, applied in self._recent)

    async def _adapt_to_live(self, hypervisor: Hypervisor, uuid: str, domain: DomainMemory) -> None:
        """Adapt persistent XML that came from another host, by migration, as the live XML was.

        :raise PoolNotFound: When it does not run, and so asks for a pool that is not on this host.
        """
        if live := await asyncio.to_thread(hypervisor.live_xml, uuid):
            change = XmlChange(
                *await asyncio.to_thread(
                    hypervisor.redefine, uuid, lambda now: migration.adapt_persistent(self._config, now, live)
                )
            )
            if change.is_any:
                log.info("%s: persistent XML from another host adapted to this one", uuid)
                return
        registry.choose(self._config, domain.pool)

    def has_pool(self, pool: str) -> bool:
        """Return whether this host has a pool; the empty name is that of the default pool, or of the only one."""
        return migration.is_known(self._config, pool)

    def waiting(self) -> list[str]:
        """Return the domains (UUIDs) whose requests could not be fulfilled."""
        return [*self._waiting]

    def forget(self, uuid: str) -> None:
        """Note that a domain is gone."""
        self._waiting.pop(uuid, None)
        for code in (APPLY_FIGHT, REQUEST_UNFULFILLED):
            self._alerts.set_definition(code, uuid, None)


def _failure(fitting: Fitting, memory: DomainMemory | None) -> DmemError | None:
    try:
        if memory:
            fitting.require(memory)
    except DmemError as error:
        return error
    return None


def _managed(document: DomainDocument) -> DomainMemory | None:
    """Return the memory configuration of a domain that requests pool memory, else ``None``."""
    return document.memory() if document.is_managed() else None
