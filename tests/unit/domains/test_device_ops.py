# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations on memory devices: those in progress, those that guests refused, and cancellation."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from virt_dmem.allocation.models import Phase
from virt_dmem.domains.device_ops import Cancellation, DeviceChange, describe_change, require_device
from virt_dmem.errors import DomainRefused


async def prepared(directory: Path) -> Parts:
    parts = Parts(directory)
    await parts.hooks.prepare(memory(MIB), lambda _: None)
    return parts


@in_own_mount_namespace
def test_an_extent_is_busy_while_an_operation_works_on_it(tmp_path: Path) -> None:
    async def story() -> None:
        parts = await prepared(tmp_path)
        (extent,) = parts.held().extents
        with suppress(ValueError), parts.operations.working_on(extent):
            assert parts.operations.is_busy(extent)
            raise ValueError
        assert not parts.operations.is_busy(extent)

    asyncio.run(story())


@in_own_mount_namespace
def test_only_refusals_of_devices_in_the_ledger_are_noted(tmp_path: Path) -> None:
    async def story() -> None:
        operations = (await prepared(tmp_path)).operations
        operations.note_refusal(UUID, "anything")
        operations.note_refusal("of nobody", "ram-node0")
        operations.note_refusal(UUID, "ram-node0")
        assert [operations.has_refused(UUID, alias) for alias in ("anything", "ram-node0")] == [False, True]
        operations.forget_refusal(UUID, "ram-node0")
        assert not operations.has_refused(UUID, "ram-node0")

    asyncio.run(story())


@pytest.mark.parametrize("asked", [False, True])
@in_own_mount_namespace
def test_a_cancelled_request_cancels_its_operation_only_before_libvirt_was_asked(
    tmp_path: Path, *, asked: bool
) -> None:
    async def story() -> None:
        parts = await prepared(tmp_path)
        (extent,) = parts.held().extents
        begun, goes_on, done = asyncio.Event(), asyncio.Event(), []

        async def work(cancellation: Cancellation) -> DeviceChange:
            if asked:
                cancellation.forbid()
            begun.set()
            await goes_on.wait()
            done.append(extent)
            return describe_change(parts.held(), extent, "attached")

        request = asyncio.create_task(parts.operations.run_shielded(work))
        await begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        goes_on.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert bool(done) is asked
        await parts.operations.close()

    asyncio.run(story())


@in_own_mount_namespace
def test_a_device_is_required_of_a_running_domain(tmp_path: Path) -> None:
    async def story() -> None:
        parts = await prepared(tmp_path)
        with pytest.raises(DomainRefused, match="vm does not run on memory of a pool"):
            parts.operations.require_running_named("vm")
        parts.ledger.set_phase(UUID, Phase.RUNNING)
        assert parts.operations.require_running(UUID) == parts.operations.require_running_named("vm")
        with pytest.raises(DomainRefused, match="no memory device 'ram-node0' from a pool"):
            require_device(parts.held(), "ram-node0")
        with pytest.raises(DomainRefused) as refused:
            parts.operations.require_running_named("VM")
        assert refused.value.hint.startswith("Did you mean 'vm'? ")

    asyncio.run(story())


@in_own_mount_namespace
def test_an_attached_extent_has_no_link_and_is_only_roots(tmp_path: Path) -> None:
    async def story() -> None:
        parts = await prepared(tmp_path)
        (extent,) = parts.held().extents
        link = tmp_path / "libvirt" / "link"
        link.symlink_to(extent.path)
        parts.ledger.set_state(extent, extent.state, link=str(link))
        extent.path.chmod(0o666)
        await parts.operations.finish_attach(parts.held(), extent)
        assert not link.is_symlink()
        assert extent.path.stat().st_mode & 0o077 == 0
        assert await parts.operations.remove_if_unmapped(extent)
        assert parts.operations.current(extent) is None

    asyncio.run(story())
