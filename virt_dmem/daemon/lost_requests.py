# SPDX-License-Identifier: GPL-2.0-or-later
"""Notice rewritten domains whose request for pool memory another tool removed from their XML.

Nothing is changed: whoever removed it may have meant it. The domain does not start until it is applied again, or
unapplied; both know what was removed, because it is remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from virt_dmem.allocation.remembered import Remembered
from virt_dmem.domain_xml.traces import Trace, has_record
from virt_dmem.domains.apply import is_lost, request_lost
from virt_dmem.hypervisor.connection import DomainInfo
from virt_dmem.monitoring.alert_codes import REQUEST_LOST
from virt_dmem.monitoring.alert_tracker import AlertTracker

__all__ = ["LostRequests"]


class LostRequests:
    """Remember the requests of rewritten domains, and raise an alert for each that is lost."""

    def __init__(self, remembered: Remembered, alerts: AlertTracker) -> None:
        self._remembered = remembered
        self._alerts = alerts

    async def listed(self, domains: Sequence[DomainInfo]) -> None:
        """Look at all domains, and forget those that are not defined any more."""
        defined = [domain for domain in domains if domain.persistent]

        def review() -> list[bool]:
            for uuid in self._remembered.uuids() - {domain.uuid for domain in defined}:
                self._remembered.forget(uuid)
            return [self._review(domain) for domain in defined]

        for domain, lost in zip(defined, await asyncio.to_thread(review), strict=True):
            self._report(domain, lost=lost)

    async def defined(self, domain: DomainInfo) -> None:
        """Look at a domain that was just defined, or changed."""
        if domain.persistent:
            self._report(domain, lost=await asyncio.to_thread(self._review, domain))

    def undefined(self, uuid: str) -> None:
        """Forget a domain."""
        self._remembered.forget(uuid)
        self._alerts.set_definition(REQUEST_LOST, uuid, None)

    def _review(self, domain: DomainInfo) -> bool:
        """Return whether a domain has lost its request; else remember the request, or forget the domain."""
        if domain.applied:
            if has_record(domain.request) or not has_record(self._remembered.find(domain.uuid)):
                self._remembered.keep(domain.uuid, domain.request)
        elif domain.managed or domain.adopted:
            pass  # what an earlier rewrite replaced is known until it is applied again, or the rule is gone
        elif domain.trace is Trace.MONITOR_ALONE or is_lost(domain.trace, self._remembered.find(domain.uuid)):
            return True
        else:
            self._remembered.forget(domain.uuid)
        return False

    def _report(self, domain: DomainInfo, *, lost: bool) -> None:
        error = request_lost(domain.uuid, domain.name, domain.trace) if lost else None
        self._alerts.set_definition(REQUEST_LOST, domain.uuid, error)
