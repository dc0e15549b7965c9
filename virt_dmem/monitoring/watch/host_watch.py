# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare the host with its records, again and again; put right what can be, and tell the alerts of everything."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.config.schema import Config
from virt_dmem.errors import Delayed, DmemError
from virt_dmem.monitoring.alert_rules import Alert
from virt_dmem.monitoring.watch.base import Deviation, Sight, Watch
from virt_dmem.monitoring.watch.repairs import MOST, PERIOD_SECONDS, RepairLimit
from virt_dmem.monitoring.watch.table import WATCHES
from virt_dmem.pools import registry
from virt_dmem.pools.backends import page_counts
from virt_dmem.pools.lock import unless_locked
from virt_dmem.runtime.attempts import Attempts
from virt_dmem.runtime.deadline import within
from virt_dmem.text import counted

__all__ = ["HostWatch", "LINGER_SECONDS"]

log = logging.getLogger(__name__)

LINGER_SECONDS = 60.0
"""How long the alert of a thing that was put right stays active: whoever looks at alerts has to see it."""


class HostWatch:
    """Watch everything in the table.

    :param in_use: Returns whether domains hold memory.
    :param on_alerts: Called with the alerts that are due, each time after it looked.
    :param on_repair: Called with the code of each repair.
    """

    def __init__(
        self,
        config: Config,
        inventory: Inventory,
        attempts: Attempts,
        *,
        in_use: Callable[[], bool],
        on_alerts: Callable[[list[Alert]], None],
        on_repair: Callable[[str], None],
        watches: Iterable[Watch] = WATCHES,
    ) -> None:
        self._config = config
        self._inventory = inventory
        self._attempts = attempts
        self._in_use = in_use
        self._on_alerts = on_alerts
        self._on_repair = on_repair
        self._looks = [(watch.subject, watch.new()) for watch in watches]
        self._hotplugs = 0
        self._limits: dict[tuple[str, str], RepairLimit] = defaultdict(RepairLimit)
        self._repaired: dict[tuple[str, str], tuple[Alert, float]] = {}
        """Alerts of what was put right, with the time of the last repair."""

    def add(self, watch: Watch) -> None:
        """Watch something more."""
        self._looks.append((watch.subject, watch.new()))

    def note_hotplug(self) -> None:
        """Note that processors or memory of the host came or went."""
        self._hotplugs += 1

    async def look(self) -> None:
        """Compare everything, unless a pool is being changed: then its record and the host do not match."""
        found = self._compare()
        if found is None:
            return
        if await self._repair(found) and (after := self._compare()) is not None:
            found = after
        right = self._limits.keys() - {(one.code, one.subject) for one in found}
        for key in right:
            self._limits[key].note_right()
        self._on_alerts([*map(self._alert, found), *self._lingering(right)])

    def _compare(self) -> list[Deviation] | None:
        """Return all deviations; ``None`` while a pool is being changed."""
        with unless_locked(self._config) as mine:
            if not mine:
                return None
            complete = registry.complete(self._config)
            sight = Sight(self._config, complete, in_use=self._in_use(), hotplugs=self._hotplugs)
            found: list[Deviation] = []
            with self._attempts.round("watch") as attempts:
                for subject, look in self._looks:
                    with attempts.trying(f"the watch of {subject}"):
                        found += look(sight)
                with attempts.trying("the size of pools"):
                    self._inventory.set_gone(page_counts.gone_by_segment(complete))
            return found

    async def _repair(self, found: Iterable[Deviation]) -> bool:
        """Put right what can be, and may be now; return whether something was tried."""
        tried = False
        for one in found:
            limit = self._limits[one.code, one.subject]
            if one.repair is None or not limit.may_repair():
                continue
            log.warning("putting right: %s", one.message)
            try:
                await within(one.repair, f"repair of {one.subject}")
            except Delayed as delay:  # it goes on in its thread
                log.warning("%s", delay)
                continue
            except (OSError, DmemError) as error:
                log.warning("%s could not be put right: %s", one.subject, error)
            limit.note_repair()
            self._on_repair(one.code)
            self._repaired[one.code, one.subject] = _alert(one), time.monotonic()
            tried = True
        return tried

    def _alert(self, one: Deviation) -> Alert:
        """Return the alert of a deviation, with what was done about it."""
        limit = self._limits.get((one.code, one.subject))
        if limit is None or not limit.recent:
            return _alert(one)
        times = counted(limit.recent, "time")
        often = f"virt-dmemd tried to put it right {times} within {PERIOD_SECONDS / 60:g} minutes"
        return _alert(one, f"{often}, and leaves it to you now." if limit.given_up else f"{often}.")

    def _lingering(self, right: Iterable[tuple[str, str]]) -> Iterable[Alert]:
        """Yield the alerts of what was put right a moment ago."""
        since = time.monotonic() - LINGER_SECONDS
        self._repaired = {key: value for key, value in self._repaired.items() if value[1] > since}
        for key in sorted(self._repaired.keys() & set(right)):
            alert, _ = self._repaired[key]
            done = f"virt-dmemd put that right at once ({self._limits[key].recent} of at most {MOST} times within"
            minutes = f"{PERIOD_SECONDS / 60:g} minutes)."
            yield Alert(alert.code, alert.subject, f"{alert.message} {done} {minutes}", alert.hint)


def _alert(one: Deviation, more: str = "") -> Alert:
    return Alert(one.code, one.subject, f"{one.message} {more}".strip(), one.hint)
