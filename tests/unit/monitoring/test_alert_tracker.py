# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify when alerts begin and end, from what libvirt reports and what the daemon holds; no libvirt is needed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.rig.plans import PAGE, make_plan, paths_of
from virt_dmem.allocation.models import Phase
from virt_dmem.daemon.wiring import Components
from virt_dmem.domain_xml.live import Guest, MemoryDevice
from virt_dmem.errors import DomainRefused
from virt_dmem.host import kernel
from virt_dmem.monitoring import alert_tracker
from virt_dmem.monitoring.alert_tracker import AlertTracker
from virt_dmem.pools.segment_id import SegmentId

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
GUEST = Guest(UUID, "vm", managed=True, devices=())
WAITS = "import sys; sys.stdin.read()"


def codes(parts: Components) -> list[str]:
    return [alert.code for alert in parts.alerts.refresh()]


def test_how_long_libvirt_is_away_counts_from_the_moment_that_it_left(
    parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(1, (0, 1), (1, 2))
    parts.ledger.reserve(plan, paths_of(plan), {("fast", node): 1000 * PAGE for node in range(2)})
    now = kernel.uptime()
    for away, at, expected in ((False, 0.0, False), (True, 0.0, False), (True, 59.0, False), (True, 61.0, True)):
        monkeypatch.setattr(kernel, "uptime", lambda at=at: now + at)
        parts.alerts.connected = not away
        assert ("libvirt-unreachable" in codes(parts)) is expected
    parts.alerts.connected = True
    assert "libvirt-unreachable" not in codes(parts)


REVERTED = DomainRefused("Another tool reverts vm.", hint="Find it.")


def test_an_alert_keeps_its_beginning_and_is_logged_when_it_begins_and_ends(
    parts: Components, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    parts.alerts.set_definition("apply-fight", UUID, REVERTED)
    first = parts.alerts.refresh()
    assert parts.alerts.refresh() == first
    parts.alerts.set_definition("apply-fight", UUID, None)
    assert parts.alerts.refresh() == parts.alerts.refresh() == []
    assert [(record.levelname, "reverts vm" in record.getMessage()) for record in caplog.records] == [
        ("WARNING", True),
        ("INFO", True),
    ]
    parts.alerts.set_definition("apply-fight", UUID, REVERTED)
    (again,) = parts.alerts.refresh()
    assert again.since > first[0].since, "it is a new one"


@pytest.mark.parametrize(
    "report",
    [
        lambda alerts: alerts.set_domains([GUEST]),
        lambda alerts: alerts.update_domain(GUEST),
        lambda alerts: alerts.remove_domain(UUID),
        lambda alerts: alerts.set_definition("apply-fight", UUID, REVERTED),
    ],
    ids=["listed", "updated", "stopped", "definition"],
)
def test_whatever_may_begin_or_end_an_alert_is_announced(
    parts: Components, report: Callable[[AlertTracker], None]
) -> None:
    parts.alerts.changed.clear()
    report(parts.alerts)
    assert parts.alerts.changed.is_set()


def test_a_guest_is_outside_of_pools_only_while_a_qemu_of_it_exists(parts: Components) -> None:
    """A process with the arguments of a QEMU stands in for it."""

    async def until(expected: list[str]) -> None:
        async with asyncio.timeout(60):
            while codes(parts) != expected:
                await asyncio.sleep(0.01)

    async def story() -> None:
        parts.alerts.set_domains([GUEST])
        command = [sys.executable, "-I", "-c", WAITS, "-uuid", UUID]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as qemu:
            assert codes(parts) == [], "it is looked for in the background"
            await until(["guest-outside-pool"])
            qemu.kill()
        await until([])
        with subprocess.Popen(command, stdin=subprocess.PIPE) as qemu:
            await until(["guest-outside-pool"])
            parts.alerts.set_domains([])
            assert codes(parts) == [], "libvirt does not list it any more"
            qemu.kill()

    asyncio.run(story())


def test_memory_devices_that_the_ledger_has_are_no_alert_and_others_are(parts: Components) -> None:
    plan = make_plan(1, (0, 1))
    parts.ledger.reserve(plan, paths_of(plan), {("fast", 0): PAGE})
    parts.ledger.set_phase(plan.uuid, Phase.RUNNING)
    ours, other = (MemoryDevice(alias, "dimm", PAGE) for alias in ("ram-node0", "dimm0"))

    def outside(*devices: MemoryDevice) -> list[str]:
        parts.alerts.update_domain(Guest(plan.uuid, plan.name, managed=True, devices=devices))
        return [alert.message for alert in parts.alerts.refresh() if alert.code == "memory-outside-pool"]

    assert outside(ours) == []
    (message,) = outside(ours, other)
    assert "dimm0" in message
    parts.alerts.remove_domain(plan.uuid)
    assert [alert.code for alert in parts.alerts.refresh()] == ["pool-short-of-reservations"], "no such pool"


def test_memory_that_was_freed_just_now_is_not_called_pinned(
    parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.inventory.withhold(SegmentId("p"), PAGE)
    monkeypatch.setattr(alert_tracker, "PINNED_SECONDS", 3600.0)
    assert codes(parts) == []
    monkeypatch.setattr(alert_tracker, "PINNED_SECONDS", 0.0)
    assert codes(parts) == ["memory-pinned"]
