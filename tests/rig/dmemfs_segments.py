# SPDX-License-Identifier: GPL-2.0-or-later
"""Segments of dmemfs over trees of hosts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.rig.fake_tree import BOOT, MIB
from virt_dmem.pools.backends.base import Job
from virt_dmem.pools.backends.checks import Result
from virt_dmem.pools.backends.dmemfs import Dmemfs, DmemfsRecord
from virt_dmem.pools.record import NodeShare

__all__ = ["KIND", "acquire", "check", "record"]

KIND = Dmemfs()


def record(nodes: Mapping[int, int], page_size: int = 2 * MIB, name: str = "p", **more: object) -> DmemfsRecord:
    """Return the record of a segment with these bytes of each node."""
    shares = {node: NodeShare(size) for node, size in nodes.items()}
    return DmemfsRecord(name, "dmemfs", page_size, f"/none/{name}", shares, boot_id=BOOT, **more)  # type: ignore[arg-type]


def acquire(root: Path, wanted: DmemfsRecord, *others: DmemfsRecord) -> DmemfsRecord:
    """Have a segment choose its ranges beside others, and return its record."""
    KIND.acquire(Job(wanted, others, lambda: None, lambda *_: None, root))
    return wanted


def check(root: Path, *records: DmemfsRecord) -> Result:
    """Run the check of dmemfs on a host."""
    (found,) = KIND.checks()
    return found.run(records, root)
