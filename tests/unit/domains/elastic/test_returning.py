# SPDX-License-Identifier: GPL-2.0-or-later
"""When memory of an elastic pool goes back: after a while, under pressure, left over; never while it is held."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig.elastic_records import PAGE, elastic_record
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.pool_records import write_record
from tests.unit.domains.elastic.conftest import Elastic, mount
from virt_dmem.domains.elastic import returning
from virt_dmem.errors import PoolBusy
from virt_dmem.host import kernel
from virt_dmem.pools.elastic.room import limits_of
from virt_dmem.units import GIB, MIB


@in_own_mount_namespace
def test_memory_lingers_and_then_goes_back_the_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Elastic(tmp_path, linger=100)
    now = [1000.0]
    monkeypatch.setattr(returning.time, "monotonic", lambda: now[0])

    async def story() -> None:
        async with parts.served():
            await asyncio.gather(parts.start(1, PAGE), parts.start(2, PAGE), parts.start(3, PAGE))
            await parts.returning.round()
            now[0] += 1000  # held, so not idle
            await parts.returning.round()
            assert len(parts.segments()) == 4
            await parts.stop(2)
            await parts.returning.round()
            now[0] += 60
            await parts.stop(1)
            await parts.returning.round()
            assert len(parts.segments()) == 4
            now[0] += 60
            await parts.returning.round()
            assert parts.segments() == {"p", "p+1", "p+3"}
            now[0] += 60
            await parts.returning.round()
            assert parts.segments() == {"p", "p+3"}

    asyncio.run(story())
    assert parts.attempts.failed() == {}


@in_own_mount_namespace
def test_under_pressure_nothing_lingers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Elastic(tmp_path)
    pressure = [0.0]
    monkeypatch.setattr(returning.kernel, "pressure", lambda _of: pressure[0])

    async def story() -> None:
        async with parts.served():
            await asyncio.gather(parts.start(1, PAGE), parts.start(2, PAGE))
            await parts.stop(1)
            await parts.returning.round()
            assert len(parts.segments()) == 3
            pressure[0] = returning.PRESSURE
            await parts.returning.round()
            assert len(parts.segments()) == 2
            assert sum(parts.ledger.reserved().values()) == PAGE

    asyncio.run(story())


@in_own_mount_namespace
def test_an_event_of_the_kernel_or_less_than_the_host_keeps_ends_the_wait_and_nothing_lingers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fakes of both; tests/numa/elastic_machine.py has a real program that takes memory."""
    parts = Elastic(tmp_path)
    memory, events = kernel.memory(), [False, False]
    plenty = [replace(memory, available_bytes=64 * GIB)]
    monkeypatch.setattr(returning.kernel, "memory", lambda **_: plenty[-1])

    class Trigger:
        async def wait(self, _seconds: float) -> bool:
            return events.pop(0) if events else False

        def close(self) -> None: ...

    monkeypatch.setattr(returning, "MemoryPressure", Trigger)

    async def story() -> None:
        async with parts.served():
            await asyncio.gather(parts.start(1, PAGE), parts.start(2, PAGE))
            await parts.stop(1)
            await parts.returning.wait(2 * returning.GLANCE_SECONDS)
            await parts.returning.round()
            assert len(parts.segments()) == 3
            events.append(True)
            await parts.returning.wait(3600)
            await parts.returning.round()
            assert len(parts.segments()) == 2
            await parts.stop(2)
            plenty.append(replace(memory, available_bytes=255 * MIB))
            await parts.returning.wait(3600)
            parts.pages.refuses = [PoolBusy("Somebody uses it.", hint="Ask who.")]
            await parts.returning.round()
            assert len(parts.segments()) == 2
            await parts.returning.wait(0.01)  # until it is tried again, as usual
            parts.returning._retry_at.clear()
            await parts.returning.wait(3600)
            await parts.returning.round()
            assert parts.segments() == {"p"}

    asyncio.run(story())


@in_own_mount_namespace
def test_what_a_kill_or_an_earlier_boot_left_does_not_linger(tmp_path: Path) -> None:
    parts = Elastic(tmp_path)

    async def story() -> None:
        async with parts.served():
            await asyncio.gather(parts.start(1, PAGE), parts.start(2, PAGE))
            await parts.stop(1)
            await parts.stop(2)
            write_record(parts.config, elastic_record(parts.config, "p+1", {0: PAGE}, boot_id="another"))
            half = elastic_record(parts.config, "p+2", {0: PAGE}, boot_id=kernel.boot_id(), state="destroying")
            write_record(parts.config, half)
            parts.inventory.read_records()
            await parts.returning.round()
            assert parts.segments() == {"p"}

    asyncio.run(story())


@in_own_mount_namespace
def test_what_cannot_be_given_back_is_reported_and_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Elastic(tmp_path, linger=0)
    now = [1000.0]
    monkeypatch.setattr(returning.time, "monotonic", lambda: now[0])

    async def story() -> None:
        async with parts.served():
            await parts.start(1, PAGE)
            await parts.stop(1)
            parts.pages.refuses = [PoolBusy("Somebody uses it.", hint="Ask who.")]
            await parts.returning.round()
            assert parts.attempts.failed() == {"giving back p+1": "Somebody uses it. Ask who."}
            now[0] += returning.RETRY_SECONDS / 2
            await parts.returning.round()
            assert parts.attempts.failed()  # still
            assert parts.segments() == {"p", "p+1"}
            assert (await parts.start(2, PAGE)).extents[0].segment == "p+1"  # it can be had meanwhile
            await parts.stop(2)
            now[0] += returning.RETRY_SECONDS
            await parts.returning.round()
            assert parts.segments() == {"p"}
            assert parts.attempts.failed() == {}

    asyncio.run(story())


@in_own_mount_namespace
def test_what_was_taken_for_a_start_that_was_cancelled_is_found_and_goes_back(tmp_path: Path) -> None:
    parts = Elastic(tmp_path, linger=0)

    async def story() -> None:
        async with parts.served():
            (first,) = parts.inventory.elastic_segments("p")
            limits = limits_of(first)
            assert limits
            mount(parts.config, "p+1", {0: PAGE}, limits)  # whoever asked for it does not hear of it
            assert parts.inventory.on_demand() == []
            await parts.returning.round()  # from here on it lingers
            await parts.returning.round()
            assert parts.segments() == {"p"}

    asyncio.run(story())
