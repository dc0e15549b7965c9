# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU and libvirt say again and again is neither kept, nor written down, nor logged each time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.unit.allocation.test_ledger import PAGE, make_plan, paths_of
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.daemon import service as module
from virt_dmem.daemon.libvirt_events import _Queue
from virt_dmem.daemon.service import Service
from virt_dmem.hypervisor.connection import Event
from virt_dmem.rate_limit import BURST

CAPACITY = {("fast", node): 1000 * PAGE for node in range(2)}


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(module, "say", module.RateLimitedLog(module.log))
    config = Config(daemon=DaemonConfig(run_dir=str(tmp_path), state_dir=str(tmp_path)))
    made = Service(config)
    plan = make_plan(1, (0, 1), (1, 2))
    made._ledger.reserve(plan, paths_of(plan), CAPACITY)
    return made


def uuid_of(service: Service) -> str:
    (uuid,) = service._ledger.standings()
    return uuid


def test_memory_that_fails_again_is_written_down_once(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        for number in range(1000):
            data = {"recipient": ["guest", "\x1b[2J", 7][number % 3], "action": "inject"}
            await service.monitor_event(uuid_of(service), "MEMORY_FAILURE", data)

    before = service._ledger._db.total_changes
    asyncio.run(story())
    assert service._ledger._db.total_changes - before <= 2
    assert [failure.what for failure in service._ledger.failures()] == ["guest inject"] * 2
    assert [record.getMessage() for record in caplog.records] == ["memory of domain guest1 failed: guest inject"]


def test_an_unheard_of_word_is_not_repeated(service: Service) -> None:
    data = {"recipient": "\x1b[2J", "action": "x" * 10_000}
    asyncio.run(service.monitor_event(uuid_of(service), "MEMORY_FAILURE", data))
    assert {failure.what for failure in service._ledger.failures()} == {"unknown unknown"}


def test_a_device_that_is_not_the_domains_is_none(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def reconcile_domain(_uuid: str, why: str) -> list[str]:
        asked.append(why)
        return []

    monkeypatch.setattr(service._mender, "reconcile_domain", reconcile_domain)

    async def story() -> None:
        for number in range(1000):
            for event in ("MEM_UNPLUG_ERROR", "DEVICE_DELETED"):
                await service.monitor_event(uuid_of(service), event, {"device": f"dimm{number}\n"})
        await service.monitor_event("of nobody", "MEM_UNPLUG_ERROR", {"device": "ram-node0"})
        await service.monitor_event(uuid_of(service), "DEVICE_DELETED", {"device": "ram-node0"})

    asyncio.run(story())
    assert not service._changes._refused
    assert asked == ["libvirt says that ram-node0 is removed"]


def test_a_storm_of_resumes_is_logged_seldom(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def story() -> None:
        for _ in range(1000):
            await service.monitor_event(uuid_of(service), "RESUME", {})
            await service.monitor_event(uuid_of(service), "SHUTDOWN", {})

    asyncio.run(story())
    assert len(caplog.records) == BURST
    assert service.watch.changed.is_set()


def test_what_libvirt_says_again_waits_once_and_as_late_as_it_was_said_last() -> None:
    async def story() -> None:
        queue = _Queue()
        for _ in range(10_000):
            queue.put(("guest", Event.STARTED, ""))
            queue.put(("guest", Event.STOPPED, ""))
            queue.put(("guest", Event.KEPT, "dimm0"))
            queue.put(("guest", Event.STARTED, ""))
        queue.put("gone")
        got = [await queue.get() for _ in range(4)]
        assert got == [
            ("guest", Event.STOPPED, ""),
            ("guest", Event.KEPT, "dimm0"),
            ("guest", Event.STARTED, ""),
            "gone",
        ]
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.put("list")
        assert await waiting == "list"

    asyncio.run(story())
