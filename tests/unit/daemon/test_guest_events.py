# SPDX-License-Identifier: GPL-2.0-or-later
"""Events that QEMU and libvirt repeat are neither queued, nor recorded, nor logged each time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.rig.plans import PAGE, make_plan, paths_of
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.daemon import guest_events as module
from virt_dmem.daemon.reconciler import Reconciler
from virt_dmem.daemon.wiring import Components, build
from virt_dmem.errors import LedgerError
from virt_dmem.hypervisor.connection import Event
from virt_dmem.monitoring.alert_codes import POOL_SHORT, RECONCILE_FAILED
from virt_dmem.runtime.rate_limit import BURST

CAPACITY = {("fast", node): 1000 * PAGE for node in range(2)}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Components:
    monkeypatch.setattr(module, "limited_log", module.RateLimitedLog(module.log))
    config = Config(daemon=DaemonConfig(run_dir=str(tmp_path), state_dir=str(tmp_path)))
    made = build(config)
    plan = make_plan(1, (0, 1), (1, 2))
    made.ledger.reserve(plan, paths_of(plan), CAPACITY)
    return made


def uuid_of(parts: Components) -> str:
    (uuid,) = parts.ledger.phases()
    return uuid


def test_memory_that_fails_again_is_recorded_once(parts: Components, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        for number in range(1000):
            data = {"recipient": ["guest", "\x1b[2J", 7][number % 3], "action": "inject"}
            await parts.guest_events.qemu_event(uuid_of(parts), "MEMORY_FAILURE", data)

    before = parts.ledger._db.total_changes
    asyncio.run(story())
    assert parts.ledger._db.total_changes - before <= 2
    assert [failure.what for failure in parts.ledger.failures()] == ["guest inject"] * 2
    assert [record.getMessage() for record in caplog.records] == ["memory of domain guest1 failed: guest inject"]


def test_an_unknown_word_is_not_repeated(parts: Components) -> None:
    data = {"recipient": "\x1b[2J", "action": "x" * 10_000}
    asyncio.run(parts.guest_events.qemu_event(uuid_of(parts), "MEMORY_FAILURE", data))
    assert {failure.what for failure in parts.ledger.failures()} == {"unknown unknown"}


def test_a_device_that_is_not_the_domains_is_none(parts: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def reconcile_domain(_uuid: str, why: str) -> list[str]:
        asked.append(why)
        return []

    monkeypatch.setattr(parts.device_reconciler, "reconcile_domain", reconcile_domain)

    async def story() -> None:
        for number in range(1000):
            for event in ("MEM_UNPLUG_ERROR", "DEVICE_DELETED"):
                await parts.guest_events.qemu_event(uuid_of(parts), event, {"device": f"dimm{number}\n"})
        await parts.guest_events.qemu_event("of nobody", "MEM_UNPLUG_ERROR", {"device": "ram-node0"})
        await parts.guest_events.qemu_event(uuid_of(parts), "DEVICE_DELETED", {"device": "ram-node0"})

    asyncio.run(story())
    assert not parts.device_operations._refused
    assert asked == ["libvirt says that ram-node0 is removed"]


def test_a_storm_of_resumes_is_logged_seldom(parts: Components, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def story() -> None:
        for _ in range(1000):
            await parts.guest_events.qemu_event(uuid_of(parts), "RESUME", {})
            await parts.guest_events.qemu_event(uuid_of(parts), "SHUTDOWN", {})

    asyncio.run(story())
    assert len(caplog.records) == BURST
    assert parts.alerts.changed.is_set()


def test_what_the_ledger_could_not_take_is_recorded_when_it_can(
    parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise LedgerError("disk full", hint="")

    uuid = uuid_of(parts)
    with monkeypatch.context() as patch:
        patch.setattr(parts.ledger, "add_failure", full)
        patch.setattr(parts.device_reconciler, "reconcile_domain", full)
        asyncio.run(
            parts.guest_events.qemu_event(uuid, "MEMORY_FAILURE", {"recipient": "guest", "action": "inject"})
        )
        asyncio.run(parts.guest_events.device_event(uuid, Event.DEVICE_REMOVED, "ram-node1"))
        parts.guest_events.record_failures()
    assert parts.ledger.failures() == []
    assert parts.reconciler.doubts == {uuid}
    parts.guest_events.record_failures()
    assert [failure.what for failure in parts.ledger.failures()] == ["guest inject"] * 2


def test_a_domain_in_doubt_is_tried_until_it_is_reconciled_and_the_others_in_turn(
    parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid, broken = uuid_of(parts), True

    async def reconcile_domain(_uuid: str, **_more: object) -> list[str]:
        if broken:
            raise LedgerError("disk full", hint="")
        return ["done"]

    async def runs(_self: Reconciler, _uuid: str) -> bool:
        return True

    monkeypatch.setattr(parts.device_reconciler, "reconcile_domain", reconcile_domain)
    monkeypatch.setattr(Reconciler, "_is_active", runs)
    parts.reconciler.doubt(uuid)
    assert asyncio.run(parts.reconciler.doubtful_stage()) == [], "libvirt is not there"
    parts.alerts.connected = True
    for _ in range(2):
        assert asyncio.run(parts.reconciler.doubtful_stage()) == []
        assert [alert.code for alert in parts.alerts.refresh()] == [POOL_SHORT, RECONCILE_FAILED]
    broken = False
    assert asyncio.run(parts.reconciler.doubtful_stage()) == ["done"]
    assert asyncio.run(parts.reconciler.doubtful_stage()) == []
    assert [alert.code for alert in parts.alerts.refresh()] == [POOL_SHORT]
    assert parts.reconciler.tried == {}
