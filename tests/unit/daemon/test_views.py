# SPDX-License-Identifier: GPL-2.0-or-later
"""Each method of the interface answers with the messages that clients expect, from what the parts return."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.rig.plans import PAGE, make_plan, paths_of
from virt_dmem.allocation.models import NodeStatus, PoolStatus
from virt_dmem.daemon import views
from virt_dmem.daemon.wiring import Components
from virt_dmem.domains.device_ops import DeviceChange
from virt_dmem.domains.extents import StepProgress
from virt_dmem.domains.hooks import Link
from virt_dmem.hypervisor.qmp import QemuMemoryBackend
from virt_dmem.ipc.connection import encoded
from virt_dmem.ipc.messages import AttachWish

CAPACITY = {("fast", node): 1000 * PAGE for node in range(2)}


def sent(reply: Any) -> Any:
    """What goes over the socket for a reply."""
    return json.loads(bytes(encoded(reply.parameters))[:-1])


async def all_of(replies: Any) -> list[Any]:
    return [(sent(reply)["reply"], reply.continues) async for reply in replies]


@pytest.fixture
def interface(parts: Components, monkeypatch: pytest.MonkeyPatch) -> views.ControlInterface:
    monkeypatch.setattr("virt_dmem.ipc.interface.caller", FakeCaller())
    return parts.interface


class FakeCaller:
    """A connection that stays."""

    def get(self) -> FakeCaller:
        return self

    def when_gone(self, act: object) -> None:
        """Do nothing."""

    when_closed = when_gone


def test_a_domain_is_listed_without_steps_and_shown_with_them(
    parts: Components, interface: views.ControlInterface
) -> None:
    plan = make_plan(1, (0, 1), (1, 2))
    parts.ledger.reserve(plan, paths_of(plan), CAPACITY)
    (listed,) = sent(asyncio.run(interface.ListDomains()))["domains"]
    shown = sent(interface.ShowDomain(domain="guest1"))["domain"]
    assert shown == listed
    assert (shown["uuid"], shown["phase"], len(shown["extents"])) == (plan.uuid, "reserved", len(plan.extents))
    assert shown["reserved_bytes"] == sum(extent["size_bytes"] for extent in shown["extents"])
    assert shown["steps"] == []


def test_pools_and_backends_keep_their_fields(
    interface: views.ControlInterface, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = PoolStatus("p", "tmpfs", 4096, "/m", "ready", 3, 2, 1, 0, 0, 0, "off", 0, [NodeStatus(-1, 3, 2, 1)])
    backend = QemuMemoryBackend("ram-node0", "memory-backend-file", "/x", 4096, "bind", (0, 1), True, True)

    async def show_backends(_self: object, _uuid: str) -> list[QemuMemoryBackend]:
        return [backend]

    monkeypatch.setattr("virt_dmem.daemon.service.Service.list_pools", lambda _self: [pool])
    monkeypatch.setattr("virt_dmem.daemon.service.Service.show_backends", show_backends)
    (found,) = sent(interface.ListPools())["pools"]
    sizes = {"capacity_bytes": 3, "reserved_bytes": 2, "free_bytes": 1, "ready_bytes": 0}
    assert found["nodes"] == [{"node": -1, **sizes}]
    assert (found["name"], found["ready_policy"], found["free_bytes"]) == ("p", "off", 1)
    (shown,) = sent(asyncio.run(interface.ShowBackends(domain="x")))["backends"]
    assert (shown["id"], shown["host_nodes"], shown["preallocated"]) == ("ram-node0", [0, 1], True)


def test_a_hook_hears_of_progress_and_then_of_its_links(
    interface: views.ControlInterface, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hook(_self: object, _operation: str, _xml: bytes, report: Any, _began: object) -> list[Link]:
        report(StepProgress("filling", 1, 2))
        return [Link("/run/x", 7, 8)]

    monkeypatch.setattr("virt_dmem.daemon.service.Service.hook", hook)
    replies = asyncio.run(all_of(interface.Hook(operation="start", xml="<domain/>")))
    assert replies == [
        ({"done": False, "message": "filling", "done_bytes": 1, "total_bytes": 2, "links": []}, True),
        (
            {
                "done": True,
                "message": "",
                "done_bytes": 0,
                "total_bytes": 0,
                "links": [{"path": "/run/x", "device": 7, "inode": 8}],
            },
            False,
        ),
    ]


def test_an_attach_says_that_it_waits_and_then_its_outcome(
    interface: views.ControlInterface, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def attach(_self: object, domain: str, size_bytes: int, **_more: object) -> DeviceChange:
        await asyncio.sleep(0.05)
        return DeviceChange("uuid", domain, "dimm0", size_bytes, "attached")

    monkeypatch.setattr("virt_dmem.ipc.interface.HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr("virt_dmem.daemon.service.Service.attach", attach)
    wish = AttachWish("guest", 4096, "dimm", 0, -1, persistent=False)
    *waiting, (last, continues) = asyncio.run(all_of(interface.Attach(wish=wish)))
    assert {reply["message"] for reply, _ in waiting} == {"waiting for libvirt"}
    assert not continues
    assert last["done"]
    assert last["change"] == {
        "uuid": "uuid",
        "name": "guest",
        "alias": "dimm0",
        "size_bytes": 4096,
        "state": "attached",
        "message": "",
    }
