# SPDX-License-Identifier: GPL-2.0-or-later
"""The capability is set and verified, and memory that would be lost is refused; on a fake of QEMU's monitor."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from virt_dmem.errors import DomainRefused, HypervisorError
from virt_dmem.hypervisor import ignore_shared


class FakeMonitor:
    """Answers as QEMU does; ``obeys``: whether it changes the capability."""

    def __init__(self, *, has: bool = True, obeys: bool = True, status: str = "running", **backend: object) -> None:
        self.capabilities = {"xbzrle": False} | ({"x-ignore-shared": False} if has else {})
        self.obeys = obeys
        self.status = status
        self.backend = {"id": "ram-node0", "share": True, "discard-data": False} | backend
        self.changes = 0

    async def __call__(self, name: str, arguments: Mapping[str, Any] | None) -> Any:
        match name:
            case "query-migrate-capabilities":
                return [{"capability": name, "state": state} for name, state in self.capabilities.items()]
            case "migrate-set-capabilities":
                assert arguments is not None
                self.changes += 1
                if self.obeys:
                    self.capabilities |= {one["capability"]: one["state"] for one in arguments["capabilities"]}
                return {}
            case "query-status":
                return {"status": self.status}
            case "query-memdev":
                return [self.backend, "nonsense"]
            case "qom-get":
                assert arguments == {"path": "/objects/ram-node0", "property": "discard-data"}
                return self.backend["discard-data"]
        raise AssertionError(name)


def test_it_is_switched_on_and_off_and_looked_at() -> None:
    async def work() -> None:
        monitor = FakeMonitor()
        await ignore_shared.switch(monitor, on=False)
        assert monitor.changes == 0, "it was off"
        await ignore_shared.switch(monitor, on=True)
        assert await ignore_shared.is_on(monitor)
        await ignore_shared.switch(monitor, on=False)
        assert await ignore_shared.is_on(monitor) is False
        assert await ignore_shared.is_on(FakeMonitor(has=False)) is None
        with pytest.raises(HypervisorError, match="did not switch x-ignore-shared on"):
            await ignore_shared.switch(FakeMonitor(obeys=False), on=True)

    asyncio.run(work())


def test_only_a_qemu_that_waits_for_its_guest_is_told() -> None:
    asyncio.run(ignore_shared.require_waiting(FakeMonitor(status="inmigrate")))
    with pytest.raises(HypervisorError, match="does not wait for a guest"):
        asyncio.run(ignore_shared.require_waiting(FakeMonitor()))


@pytest.mark.parametrize(
    ("monitor", "said"),
    [
        (FakeMonitor(has=False), "cannot save a guest without its memory"),
        (FakeMonitor(id="memdimm7"), "memory outside of any pool, in its memory backend 'memdimm7'"),
        (FakeMonitor(share=False), "is private"),
        (FakeMonitor(**{"discard-data": True}), "discards the memory of 'ram-node0' when it ends"),
    ],
)
def test_memory_that_does_not_outlive_its_qemu_is_refused(monitor: FakeMonitor, said: str) -> None:
    with pytest.raises(DomainRefused, match=said):
        asyncio.run(ignore_shared.require_kept(monitor, "guest", {"ram-node0"}))


def test_memory_that_does_is_not() -> None:
    asyncio.run(ignore_shared.require_kept(FakeMonitor(), "guest", {"ram-node0"}))
