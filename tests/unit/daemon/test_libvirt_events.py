# SPDX-License-Identifier: GPL-2.0-or-later
"""Events that libvirt repeats are queued once."""

from __future__ import annotations

import asyncio

from virt_dmem.daemon.libvirt_events import _Queue
from virt_dmem.hypervisor.connection import Event


def test_what_libvirt_says_again_waits_once_and_as_late_as_it_was_said_last() -> None:
    async def story() -> None:
        queue = _Queue()
        for _ in range(10_000):
            queue.put(("guest", Event.STARTED, ""))
            queue.put(("guest", Event.STOPPED, ""))
            queue.put(("guest", Event.DEVICE_REMOVAL_FAILED, "dimm0"))
            queue.put(("guest", Event.STARTED, ""))
        queue.put("gone")
        got = [await queue.get() for _ in range(4)]
        assert got == [
            ("guest", Event.STOPPED, ""),
            ("guest", Event.DEVICE_REMOVAL_FAILED, "dimm0"),
            ("guest", Event.STARTED, ""),
            "gone",
        ]
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.put("list")
        assert await waiting == "list"

    asyncio.run(story())
