# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify that the parts of the daemon are connected: what one reports reaches the other."""

from __future__ import annotations

import asyncio
from collections.abc import Set
from pathlib import Path

import pytest

from tests.rig.daemon_parts import hold_memory, parts_with_pools
from tests.rig.domain_documents import UUID
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.plans import PAGE, make_plan, paths_of
from virt_dmem.allocation.models import Phase
from virt_dmem.daemon.wiring import Components
from virt_dmem.domains.device_ops import Cancellation, DeviceChange
from virt_dmem.errors import LedgerError
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.runtime.aio import cancel_and_wait


@in_own_mount_namespace
def test_a_domain_that_libvirt_does_not_list_is_freed_at_connection_and_when_automatic_apply_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_with_pools(tmp_path)
    monkeypatch.setattr(Hypervisor, "subscribe", lambda *_: None)  # libvirt's test driver has no keepalive

    async def freed() -> None:
        async with asyncio.timeout(60):
            while parts.ledger.find(UUID):
                await asyncio.sleep(0.01)

    async def story() -> None:
        await hold_memory(parts, Phase.RUNNING)
        following = asyncio.create_task(parts.libvirt_events.run())
        await freed()
        await hold_memory(parts, Phase.RUNNING)
        parts.service.resume_apply()
        await freed()
        await cancel_and_wait([following])
        await parts.close()

    asyncio.run(story())


def test_memory_that_qemu_reports_as_failed_is_recorded(parts: Components) -> None:
    plan = make_plan(1, (0, 1))
    parts.ledger.reserve(plan, paths_of(plan), {("fast", 0): PAGE})
    data = {"recipient": "guest", "action": "inject"}
    asyncio.run(parts.monitors._pass_on(plan.uuid, [("MEMORY_FAILURE", data)]))
    assert [failure.what for failure in parts.ledger.failures()] == ["guest inject"]
    assert "memory-failed" in {alert.code for alert in parts.alerts.refresh()}


def test_the_monitors_of_running_domains_are_followed_and_of_no_others(
    parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[Set[str]] = []
    monkeypatch.setattr(parts.monitors, "follow", followed.append)
    for number, phase in enumerate(Phase):
        plan = make_plan(number, (0, 1))
        parts.ledger.reserve(plan, paths_of(plan), {("fast", 0): 100 * PAGE})
        parts.ledger.set_phase(plan.uuid, phase)
    parts.follow_monitors()
    assert followed == [{f"uuid-{list(Phase).index(Phase.RUNNING)}"}]


def test_a_daemon_that_ends_cancels_operations_on_devices_before_it_closes_the_ledger(parts: Components) -> None:
    rolled_back = []

    async def work(_cancellation: Cancellation) -> DeviceChange:
        try:
            await asyncio.sleep(3600)
        finally:
            rolled_back.append(parts.ledger.drained())
        raise AssertionError

    async def story() -> None:
        operation = asyncio.create_task(parts.device_operations.run_shielded(work))
        await asyncio.sleep(0.01)
        await parts.close()
        with pytest.raises(asyncio.CancelledError):
            await operation

    asyncio.run(story())
    assert len(rolled_back) == 1
    with pytest.raises(LedgerError):
        parts.ledger.drained()
