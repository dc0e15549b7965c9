# SPDX-License-Identifier: GPL-2.0-or-later
"""The wall clock may be set at any time: neither orders nor durations depend on it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Phase, TimedStep
from virt_dmem.allocation.plan import ExtentPlan, Plan
from virt_dmem.daemon.wiring import Components
from virt_dmem.domain_xml.live import Guest
from virt_dmem.host import kernel
from virt_dmem.hypervisor import processes as qemu_processes

HOUR = 3600.0
MIB = 1 << 20


class Clock:
    """A fake wall clock that can be set."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._real = time.time

    def __call__(self) -> float:
        return self._real() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def _there_is_a_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_processes, "find_qemu", lambda *_: 1)


def reserve(ledger: Ledger, name: str) -> None:
    extent = ExtentPlan("ram-node0", "p", MIB, 4096, "none", ((-1, MIB),))
    ledger.reserve(
        Plan(name, name, (extent,)),
        {"ram-node0": Path("/nowhere/p", f"libvirt-{name}", "ram-node0")},
        {("p", -1): 1 << 40},
    )


@pytest.mark.parametrize("step", [-HOUR, 0, HOUR], ids=["back", "not", "forward"])
def test_a_domain_that_starts_while_libvirt_lists_is_left_alone_whatever_the_clock_does(
    parts: Components, clock: Clock, step: float
) -> None:
    reserve(parts.ledger, "before")
    listed_at = parts.ledger.sequence()
    clock.ahead += step
    reserve(parts.ledger, "since")
    parts.ledger.set_phase("since", Phase.PREPARED)
    actions = asyncio.run(parts.reconciler.libvirt_stage([], listed_at, dry_run=True))
    assert [action.split(":")[0] for action in actions] == ["free 1 MiB of before"]


def test_a_domain_that_started_again_meanwhile_is_not_abandoned_at_the_same_time_of_day(
    parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    reserve(parts.ledger, "guest")
    (seen,) = parts.ledger.reservations()
    parts.ledger.set_phase("guest", Phase.RESERVED)
    asyncio.run(parts.extents.release_abandoned(seen))
    assert parts.ledger.find("guest")


def test_what_was_there_when_the_ledger_was_opened_comes_before_all_else(tmp_path: Path) -> None:
    before = Ledger(tmp_path / "ledger.sqlite", "boot")
    for name in ("one", "two"):
        reserve(before, name)
    before.close()
    after = Ledger(tmp_path / "ledger.sqlite", "boot")
    assert {held.sequence for held in after.reservations()} == {after.sequence()}
    after.set_phase("two", Phase.PREPARED)
    moments = {held.name: held.sequence for held in after.reservations()}
    assert moments["one"] < moments["two"] == after.sequence() == after.phases()["two"].sequence
    after.close()


@pytest.mark.parametrize("step", [-HOUR, HOUR], ids=["back", "forward"])
def test_a_pause_lasts_as_long_as_was_said(
    parts: Components, clock: Clock, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.service.pause_apply(60)
    clock.ahead += step
    parts.service.end_due_pause()
    assert parts.alerts.apply_is_paused()
    (alert,) = parts.alerts.refresh()
    assert alert.code == "apply-paused"
    later = kernel.uptime() + 61
    monkeypatch.setattr("virt_dmem.allocation.ledger.uptime", lambda: later)
    assert not parts.alerts.apply_is_paused()
    parts.service.end_due_pause()
    assert parts.alerts.refresh() == []
    assert parts.ledger.pause_left("apply") is None


def test_a_guest_that_just_starts_is_not_called_outside_of_its_pool_when_the_clock_is_set(
    parts: Components, clock: Clock
) -> None:
    reserve(parts.ledger, "guest")
    parts.ledger.set_phase("guest", Phase.LINKED)
    parts.alerts.update_domain(Guest("guest", "guest", managed=True, devices=()))
    clock.ahead += HOUR
    assert "guest-outside-pool" not in {alert.code for alert in parts.alerts.refresh()}


def test_steps_come_in_their_order_and_none_takes_less_than_no_time(parts: Components, clock: Clock) -> None:
    ledger = parts.ledger
    for name in ("first", "second"):
        ledger.add_steps("guest", [TimedStep(name, time.time(), 0.1)])
        clock.ahead -= HOUR
    assert [step.step for step in ledger.steps("guest")] == ["first", "second"]

    async def story() -> None:
        async with parts.hooks._serving("other", "stopped", began=time.time() + HOUR):
            pass

    asyncio.run(story())
    assert [step.step for step in ledger.steps("other")] == ["stopped"]
