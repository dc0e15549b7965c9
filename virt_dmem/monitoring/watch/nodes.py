# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch the NUMA nodes of pools, and the blocks of memory that can be switched off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from virt_dmem.host import numa
from virt_dmem.monitoring.alert_codes import HOST_MEMORY_OFFLINE
from virt_dmem.monitoring.watch.base import Deviation, Sight
from virt_dmem.pools.backends.base import NO_NODE
from virt_dmem.text import counted
from virt_dmem.units import format_size

__all__ = ["MemoryBlocks", "deviations"]

_HINT = (
    "Find out who switched it off ('dmesg', 'lsmem'), and switch it on: 'chmem -e'. Shut down its domains first if"
)
_FAULTY = f"{_HINT} the memory is faulty."


def deviations(sight: Sight) -> Iterator[Deviation]:
    """Yield each node that has no memory any more, and that pools took memory of."""
    owners: dict[int, set[str]] = {}
    for record in sight.records:
        for node, share in record.nodes.items():
            if node != NO_NODE and share.got_bytes:
                owners.setdefault(node, set()).add(record.pool)
    there = numa.nodes_with_memory(root=sight.root) if owners else ()
    for node in sorted(owners.keys() - set(there)):
        yield Deviation(
            HOST_MEMORY_OFFLINE,
            f"node {node}",
            f"Node {node} has no memory any more, and pool {', '.join(sorted(owners[node]))} took some of it.",
            _FAULTY,
        )


class MemoryBlocks:
    """Compare the blocks that are online with those that were when they were first looked at.

    There may be thousands: they are looked at only after the kernel reported a change.
    """

    def __init__(self) -> None:
        self._seen_at: int | None = None
        self._online: set[int] = set()
        self._offline: set[int] = set()
        """Were online."""
        self._block_bytes = 0

    def __call__(self, sight: Sight) -> Iterator[Deviation]:
        """Yield a deviation if blocks are offline that were online."""
        if sight.hotplugs != self._seen_at:
            self._look(sight.root / "sys/devices/system/memory")
            self._seen_at = sight.hotplugs
        if self._offline and sight.records:
            size = format_size(len(self._offline) * self._block_bytes)
            first = ", ".join(f"memory{number}" for number in sorted(self._offline)[:5])
            yield Deviation(
                HOST_MEMORY_OFFLINE,
                "memory blocks",
                f"{size} of the host's memory went offline since virt-dmemd started:"
                f" {counted(len(self._offline), 'block')} ({first}{', …' if len(self._offline) > 5 else ''})."
                " Huge pages there are lost, or were moved.",
                _FAULTY,
            )

    def _look(self, base: Path) -> None:
        try:
            names = os.listdir(base)  # noqa: PTH208 -- names are enough
            self._block_bytes = int((base / "block_size_bytes").read_text(), 16)
        except OSError:  # a kernel without hotplug of memory
            return
        numbers = {int(name[6:]) for name in names if name.startswith("memory") and name[6:].isdecimal()}
        online = {number for number in numbers if _is_online(base / f"memory{number}")}
        self._online |= online
        self._offline = self._online - online


def _is_online(block: Path) -> bool:
    try:
        return (block / "state").read_text().strip() == "online"
    except OSError:
        return False
