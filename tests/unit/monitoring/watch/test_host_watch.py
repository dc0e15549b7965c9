# SPDX-License-Identifier: GPL-2.0-or-later
"""Deviations become alerts, and are put right within limits; nothing is compared while a pool is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.monitoring.alert_rules import Alert
from virt_dmem.monitoring.watch import host_watch
from virt_dmem.monitoring.watch.base import Deviation, Sight, Watch
from virt_dmem.monitoring.watch.host_watch import HostWatch
from virt_dmem.pools.lock import locked
from virt_dmem.runtime.attempts import Attempts


class Thing:
    """Something on a host that is wrong, or not; and the daemon that watches it."""

    def __init__(self, top: Path) -> None:
        self.config = Config(daemon=DaemonConfig(state_dir=str(top), run_dir=str(top)))
        self.wrong = False
        self.repairable = True
        self.repairs: list[str] = []
        self.alerts: list[Alert] = []
        self._ledger = Ledger(self.config.ledger_path, "boot")
        self._watch = HostWatch(
            self.config,
            Inventory(self.config, self._ledger),
            Attempts(),
            in_use=lambda: False,
            on_alerts=self._alerted,
            on_repair=self.repairs.append,
            watches=[Watch.of("things", self._deviations)],
        )

    def close(self) -> None:
        self._ledger.close()

    def look(self) -> str:
        """Look once; return the message of the alert, if there is one."""
        asyncio.run(self._watch.look())
        return self.alerts[0].message if self.alerts else ""

    def _alerted(self, alerts: list[Alert]) -> None:
        self.alerts = alerts

    def _deviations(self, _: Sight) -> Iterator[Deviation]:
        if self.wrong:
            yield Deviation("code", "thing", "It is wrong.", "Do it.", self._repair)

    def _repair(self) -> None:
        if not self.repairable:
            raise PermissionError(13, "Permission denied")
        self.wrong = False


@pytest.fixture
def thing(tmp_path: Path) -> Iterator[Thing]:
    thing = Thing(tmp_path)
    yield thing
    thing.close()


def test_a_thing_that_was_put_right_stays_an_alert_for_a_while(
    thing: Thing, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert thing.look() == ""
    thing.wrong = True
    expected = "It is wrong. virt-dmemd put that right at once (1 of at most 5 times within 10 minutes)."
    assert thing.look() == expected
    assert (thing.wrong, thing.repairs) == (False, ["code"])
    assert thing.look() == expected
    monkeypatch.setattr(host_watch, "LINGER_SECONDS", 0.0)
    assert thing.look() == ""


def test_a_thing_that_cannot_be_put_right_is_said_to_be_wrong(thing: Thing) -> None:
    thing.wrong, thing.repairable = True, False
    assert thing.look() == "It is wrong. virt-dmemd tried to put it right 1 time within 10 minutes."
    assert thing.look() == "It is wrong. virt-dmemd tried to put it right 1 time within 10 minutes."  # not at once
    assert thing.repairs == ["code"]


def test_nothing_is_put_right_while_a_pool_is_changed(thing: Thing) -> None:
    thing.wrong = True
    with locked(thing.config):
        assert thing.look() == ""
        assert thing.wrong
    assert "put that right" in thing.look()
    assert not thing.wrong
