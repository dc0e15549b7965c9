# SPDX-License-Identifier: GPL-2.0-or-later
"""Track active alerts: derived anew each time, and logged once when they begin and once when they end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.reclaim import Reclaimer
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.live import Guest
from virt_dmem.domains import passthrough
from virt_dmem.errors import Delayed, DmemError
from virt_dmem.host import kernel
from virt_dmem.hypervisor import processes as qemu_processes
from virt_dmem.monitoring import alert_rules
from virt_dmem.runtime.attempts import Attempts
from virt_dmem.runtime.deadline import within

__all__ = ["APPLY", "ActiveAlert", "AlertTracker"]

log = logging.getLogger(__name__)

APPLY = "apply"
"""Name under which the ledger keeps the pause of ``pause-apply``."""


PINNED_SECONDS = 5.0
"""io_uring frees its buffers in a worker, about a second after the process that registered them has ended."""


@dataclass(frozen=True)
class ActiveAlert:
    """An active alert; ``subject`` is a domain, pool or file."""

    code: str
    subject: str
    message: str
    hint: str
    since: float
    """Seconds since the epoch."""


class AlertTracker:
    """Keep what libvirt reports of guests, and derive alerts from it and from the daemon's state."""

    def __init__(
        self, config: Config, ledger: Ledger, inventory: Inventory, reclaim: Reclaimer, attempts: Attempts
    ) -> None:
        self._reclaim = reclaim
        self._attempts = attempts
        self._config = config
        self._ledger = ledger
        self._inventory = inventory
        self._guests: dict[str, Guest] = {}
        self._active: dict[tuple[str, str], ActiveAlert] = {}
        self._definitions: dict[tuple[str, str], alert_rules.Alert] = {}
        """By code, and UUID of the domain."""
        self._deviations: list[alert_rules.Alert] = []
        self._alive: set[str] = set()
        """Guests that seem to run outside of any pool, and whose QEMU was found."""
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._gone_since: float | None = kernel.uptime()
        self.on_change: Callable[[ActiveAlert, bool], object] = lambda _alert, _active: None
        """Called when an alert began (true) or ended."""
        self.changed = asyncio.Event()
        """Set when something happened that may begin or end an alert."""

    # What libvirt reports

    @property
    def connected(self) -> bool:
        """Libvirt answers, and the guests are current."""
        return self._gone_since is None

    @connected.setter
    def connected(self, now: bool) -> None:
        if now:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = kernel.uptime()

    def set_domains(self, guests: Iterable[Guest]) -> None:
        """Replace all guests."""
        self._guests = {guest.uuid: guest for guest in guests}
        self._alive &= self._guests.keys()
        self.changed.set()

    def update_domain(self, guest: Guest) -> None:
        """Record the current state of one guest."""
        self._guests[guest.uuid] = guest
        self.changed.set()

    def remove_domain(self, uuid: str) -> None:
        """Forget a guest that is no longer running."""
        self._guests.pop(uuid, None)
        self._alive.discard(uuid)
        self.changed.set()

    def set_definition(self, code: str, uuid: str, error: DmemError | None) -> None:
        """Record what is wrong with the definition of a domain, as an alert of that code; ``None``: nothing is."""
        if error is not None:
            self._definitions[code, uuid] = alert_rules.Alert(code, uuid, error.message, error.hint)
        else:
            self._definitions.pop((code, uuid), None)
        self.changed.set()

    def forget_definitions(self, defined: Collection[str]) -> None:
        """Forget the definitions of all other domains than these (UUIDs)."""
        self._definitions = {key: alert for key, alert in self._definitions.items() if key[1] in defined}
        self.changed.set()

    def set_deviations(self, alerts: list[alert_rules.Alert]) -> None:
        """Replace the alerts of what others changed on the host."""
        if alerts != self._deviations:
            self._deviations = alerts
            self.changed.set()

    def apply_is_paused(self) -> bool:
        """Return whether automatic apply is paused."""
        return (self._ledger.pause_left(APPLY) or 0) > 0

    def running(self) -> Set[str]:
        """Return the UUIDs of the running guests, as far as libvirt reported it."""
        return self._guests.keys()

    # Alerts

    def refresh(self) -> list[ActiveAlert]:
        """Return the active alerts, by code; log those that began and those that ended."""
        due = {(alert.code, alert.subject): alert for alert in alert_rules.due(self._facts())}
        for key in sorted(self._active.keys() - due.keys()):
            over = self._active.pop(key)
            log.info("alert %s ended: %s", over.code, over.message)
            self.on_change(over, False)
        for key, alert in due.items():
            known = self._active.get(key)
            if known is None:
                log.warning("alert %s: %s %s", alert.code, alert.message, alert.hint)
            since = known.since if known else time.time()
            self._active[key] = ActiveAlert(alert.code, alert.subject, alert.message, alert.hint, since)
            if known is None:
                self.on_change(self._active[key], True)
        return [self._active[key] for key in sorted(self._active)]

    def _facts(self) -> alert_rules.Facts:
        return alert_rules.Facts(
            uptime=kernel.uptime(),
            guests=self._guests.values(),
            phases=self._ledger.phases(),
            extents=self._extents(),
            on_raw_memory=passthrough.on_raw_memory(self._ledger, self._inventory, self._guests.values()),
            quarantined=self._ledger.quarantined(),
            capacity={(str(where), node): size for (where, node), size in self._inventory.capacity().items()},
            reserved=self._reserved(),
            pinned=self._pinned(),
            enlarged=self._reclaim.enlarged,
            failed=self._attempts.failed(),
            damaged_ledger=self._ledger.damaged_file(),
            failures=self._ledger.failures(),
            libvirt_gone_seconds=0.0 if self._gone_since is None else kernel.uptime() - self._gone_since,
            definitions=self._definitions.values(),
            deviations=self._deviations,
            paused_until=time.time() + left if (left := self._ledger.pause_left(APPLY) or 0) > 0 else None,
            is_alive=self._is_alive,
        )

    def _reserved(self) -> dict[tuple[str, int], int]:
        """Return the bytes that domains hold, without segments whose record is unreadable: another alert."""
        unknown = {Path(path).stem for path in self._inventory.damaged()}
        reserved = self._ledger.reserved()
        return {(str(where), node): size for (where, node), size in reserved.items() if where not in unknown}

    def _pinned(self) -> dict[str, int]:
        """Return the bytes that have been withheld for longer than a process takes to end."""
        long_ago = time.monotonic() - PINNED_SECONDS
        withheld = self._inventory.withheld()
        return {str(segment): one.size_bytes for segment, one in withheld.items() if one.since < long_ago}

    def _extents(self) -> dict[str, set[str]]:
        """Return the aliases of the extents of guests with memory devices; no others matter."""
        with_devices = [uuid for uuid, guest in self._guests.items() if guest.devices]
        held = {uuid: self._ledger.find(uuid) for uuid in with_devices}
        return {uuid: {extent.alias for extent in one.extents} for uuid, one in held.items() if one}

    def _is_alive(self, guest: Guest) -> bool:
        """Return whether a guest's QEMU was found last time, and look again in the background: it may block."""
        if guest.uuid not in self._looking:
            self._looking[guest.uuid] = asyncio.create_task(self._look_for(guest))
        return guest.uuid in self._alive

    async def _look_for(self, guest: Guest) -> None:
        find = partial(qemu_processes.find_qemu, Path(self._config.libvirt.run_dir), guest.name, guest.uuid)
        try:
            alive = await within(find, f"QEMU of {guest.name}") is not None
        except Delayed:  # a process that delays the answer exists
            alive = True
        finally:
            del self._looking[guest.uuid]
        if alive and guest.uuid in self._guests and guest.uuid not in self._alive:
            self._alive.add(guest.uuid)
            self.changed.set()
        elif not alive:
            self._alive.discard(guest.uuid)
