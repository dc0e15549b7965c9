# SPDX-License-Identifier: GPL-2.0-or-later
"""Notice rewritten domains whose request for pool memory another tool removed from their XML.

Nothing is changed: whoever removed it may have meant it. The domain does not start until it is applied again, or
unapplied; both know what was removed, because it is remembered. What cannot be remembered now, as the disk is full,
is an alert, and remembered later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from virt_dmem.allocation.remembered import UNDEFINED_SECONDS, Remembered
from virt_dmem.domain_xml.traces import Trace, has_record
from virt_dmem.domains.apply import is_lost, request_lost
from virt_dmem.hypervisor.connection import DomainInfo
from virt_dmem.monitoring.alert_codes import REQUEST_LOST
from virt_dmem.monitoring.alert_tracker import AlertTracker
from virt_dmem.runtime.attempts import Attempts
from virt_dmem.text import counted

__all__ = ["LostRequests"]

log = logging.getLogger(__name__)

_WORK = "requests"
"""Its name among the attempts."""


class LostRequests:
    """Remember the requests of rewritten domains, and raise an alert for each that is lost."""

    def __init__(self, remembered: Remembered, alerts: AlertTracker, attempts: Attempts) -> None:
        self._remembered = remembered
        self._alerts = alerts
        self._attempts = attempts
        self.on_removed: Callable[[], object] = lambda: None
        """Called when somebody removed what is remembered: all domains have to be looked at again."""
        self._kept: set[str] = set()
        """Domains (UUIDs) that are remembered."""
        self._due: dict[str, Callable[[], None]] = {}
        """What could not be written, by domain (UUID)."""
        self._forget_at: dict[str, float] = {}
        """When domains that are not defined are to be forgotten, by UUID and the monotonic clock."""

    async def listed(self, domains: Sequence[DomainInfo]) -> None:
        """Look at all domains; those that are gone may have been undefined while nobody listened."""
        defined = [domain for domain in domains if domain.persistent]

        def review() -> list[bool]:
            for uuid in self._remembered.uuids() - {domain.uuid for domain in defined}:
                self._note_missing(uuid)
            return [self._review(domain) for domain in defined]

        for domain, lost in zip(defined, await asyncio.to_thread(review), strict=True):
            self._report(domain, lost=lost)

    async def defined(self, domain: DomainInfo) -> None:
        """Look at a domain that was just defined, or changed."""
        if domain.persistent:
            self._report(domain, lost=await asyncio.to_thread(self._review, domain))

    def undefined(self, uuid: str) -> None:
        """Note that a domain is not defined any more; it may be defined again, without its request."""
        self._note_undefined(uuid)
        self._alerts.set_definition(REQUEST_LOST, uuid, None)

    def _note_undefined(self, uuid: str) -> None:
        self._forget_at[uuid] = time.monotonic() + UNDEFINED_SECONDS
        self._write(uuid, partial(self._remembered.note_undefined, uuid))

    def _note_missing(self, uuid: str) -> None:
        """Note that a domain is not defined, from when on is not known unless that was noted already."""
        if uuid in self._forget_at:
            return
        seconds = self._remembered.undefined_seconds(uuid)
        if seconds is None:
            self._note_undefined(uuid)
        else:
            self._forget_at[uuid] = time.monotonic() + UNDEFINED_SECONDS - seconds

    async def retry(self) -> None:
        """Forget domains that have not been defined for a day, and write what could not be written earlier.

        That is done one after another, until it fails again. What somebody removed is written again.
        """
        there = await asyncio.to_thread(self._remembered.uuids)
        if removed := self._kept - there:
            log.warning("what was replaced in %s was removed", counted(len(removed), "domain"))
            self._kept -= removed  # of some it may be in their XML no more
            self.on_removed()
        now = time.monotonic()
        for uuid in [uuid for uuid, at in self._forget_at.items() if at <= now]:
            del self._forget_at[uuid]
            self._forget(uuid)
        if not self._due and not self._attempts.failed_in(_WORK):
            return
        with self._attempts.round(_WORK) as attempts:
            for uuid, write in [*self._due.items()]:
                done = False
                with attempts.trying(f"the memory of what was replaced in domain {uuid}"):
                    await asyncio.to_thread(write)
                    done = True
                if self._due.get(uuid) is write:  # else the domain was changed meanwhile
                    del self._due[uuid]
                    if not done:
                        self._due[uuid] = write  # the next time another is the first
                if not done:
                    break

    def _keep(self, uuid: str, request: bytes) -> None:
        def keep() -> None:
            if self._remembered.keep(uuid, request):
                self._kept.add(uuid)

        self._write(uuid, keep)

    def _forget(self, uuid: str) -> None:
        self._kept.discard(uuid)
        self._write(uuid, partial(self._remembered.forget, uuid))

    def _write(self, uuid: str, write: Callable[[], None]) -> None:
        """Write or remove what is remembered of a domain, at the latest when ``retry`` can."""
        self._due.pop(uuid, None)
        try:
            write()
        except OSError as error:
            if not self._due:
                log.warning("%s; it is tried again", error)
            self._due[uuid] = write

    def _review(self, domain: DomainInfo) -> bool:
        """Return whether a domain has lost its request; else remember the request, or forget the domain."""
        self._forget_at.pop(domain.uuid, None)
        with suppress(OSError):  # the time begins anew when it is undefined; at worst it is shorter
            self._remembered.note_defined(domain.uuid)
        if domain.applied:
            if has_record(domain.request) or not has_record(self._remembered.find(domain.uuid)):
                self._keep(domain.uuid, domain.request)
        elif domain.managed or domain.adopted:
            pass  # what an earlier rewrite replaced is known until it is applied again, or the rule is gone
        elif domain.trace is Trace.MONITOR_ALONE or is_lost(domain.trace, self._remembered.find(domain.uuid)):
            return True
        else:
            self._forget(domain.uuid)
        return False

    def _report(self, domain: DomainInfo, *, lost: bool) -> None:
        error = request_lost(domain.uuid, domain.name, domain.trace) if lost else None
        self._alerts.set_definition(REQUEST_LOST, domain.uuid, error)
