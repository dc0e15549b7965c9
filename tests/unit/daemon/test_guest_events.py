# SPDX-License-Identifier: GPL-2.0-or-later
"""Events that QEMU and libvirt repeat are neither queued, nor recorded, nor logged each time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.rig.plans import PAGE, make_plan, paths_of
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.daemon import guest_events as module
from virt_dmem.daemon.wiring import Components, build
from virt_dmem.rate_limit import BURST

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
