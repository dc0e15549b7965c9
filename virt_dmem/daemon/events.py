# SPDX-License-Identifier: GPL-2.0-or-later
"""Remember what happened lately, for ``virt-dmem events``: callers ask for what is new since they asked last."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from virt_dmem.allocation.models import Extent, Phase
from virt_dmem.domains.device_ops import DeviceChange
from virt_dmem.errors import DmemError
from virt_dmem.monitoring.alert_tracker import ActiveAlert
from virt_dmem.text import clipped
from virt_dmem.units import format_size

__all__ = ["Event", "Events", "News"]

MOST = 5000
"""Events that are remembered: those of some minutes in which a thousand domains start."""
MOST_AT_ONCE = 500
_LONGEST = 1000
"""Characters of a message: others choose a part of it."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Describe something that happened."""

    sequence: int
    at: float
    """Seconds since the epoch."""
    kind: str
    """``domain``, ``rejected``, ``device``, ``alert`` or ``pool``."""
    subject: str
    """UUID of a domain, name of a pool, or what an alert is about."""
    name: str
    """Of the domain; empty: it is not known, or the event is not about one."""
    state: str
    """What became of it."""
    code: str = ""
    message: str = ""


@dataclass(frozen=True)
class News:
    """Hold events, the number to ask with the next time, and whether some were forgotten in between."""

    events: list[Event]
    next: int
    missed: bool


class Events:
    """Record events, and forget the oldest.

    :param name_of: Returns the name of a domain by its UUID; empty: unknown.
    :param known: The names of the domains that hold memory already, by UUID.
    """

    def __init__(self, name_of: Callable[[str], str], known: Mapping[str, str]) -> None:
        self._name_of = name_of
        self._names = dict(known)
        self._pools: Mapping[str, tuple[str, int]] | None = None
        self._last = time.time_ns() // 1000  # a daemon that is restarted goes on with larger numbers
        self._forgotten = self._last
        self._events: deque[Event] = deque(maxlen=MOST)

    def since(self, after: int) -> News:
        """Return what happened after an event's number; -1: nothing, only the number to ask with."""
        if after < 0:
            return News([], self._last, missed=False)
        if after > self._last:  # of a virt-dmemd before this one, when the clock was ahead
            return News([], self._last, missed=True)
        found = [event for event in self._events if event.sequence > after][:MOST_AT_ONCE]
        following = found[-1].sequence if found else self._last
        return News(found, following, missed=after < self._forgotten)

    def _record(
        self, kind: str, subject: str, state: str, *, name: str = "", code: str = "", message: str = ""
    ) -> None:
        self._last += 1
        if len(self._events) == MOST:
            self._forgotten = self._events[0].sequence
        self._events.append(
            Event(
                sequence=self._last,
                at=time.time(),
                kind=kind,
                subject=subject,
                name=name,
                state=state,
                code=code,
                message=clipped(message, _LONGEST),
            )
        )

    def phase_changed(self, uuid: str, phase: Phase | None) -> None:
        """Record the phase of a domain's memory; ``None``: all of it is free."""
        name = self._names.get(uuid) or self._name_of(uuid)
        self._names[uuid] = name
        if phase is None:
            del self._names[uuid]
        self._record("domain", uuid, phase.value if phase else "released", name=name)

    def extent_gone(self, extent: Extent) -> None:
        """Record that the memory of a device of a running domain is free, whenever its guest released it."""
        if extent.uuid in self._names:
            self._record("device", extent.uuid, "freed", name=self._names[extent.uuid], message=extent.alias)

    def rejected(self, name: str, operation: str, error: DmemError) -> None:
        """Record that a domain was not started, or not let in."""
        self._record("rejected", "", operation, name=name, code=error.code, message=error.message)

    def device_changed(self, change: DeviceChange) -> None:
        """Record the outcome for a memory device."""
        self._record("device", change.uuid, change.state, name=change.name, message=change.message or change.alias)

    def alert_changed(self, alert: ActiveAlert, *, active: bool) -> None:
        """Record that an alert began or ended."""
        state = "began" if active else "ended"
        self._record("alert", alert.subject, state, code=alert.code, message=alert.message)

    def pools_seen(self, pools: Mapping[str, tuple[str, int]]) -> None:
        """Record how the pools differ from those that were seen last: state and capacity in bytes by name."""
        before, self._pools = self._pools, pools
        if before is None:
            return
        for name in sorted(before.keys() | pools.keys()):
            if name not in pools:
                self._record("pool", name, "destroyed")
            elif pools[name] != before.get(name):
                state, size_bytes = pools[name]
                self._record("pool", name, state, message=format_size(size_bytes))
