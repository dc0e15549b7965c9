# SPDX-License-Identifier: GPL-2.0-or-later
"""Define the record of a pool's segment: everything needed to undo it. ``record_files`` reads and writes it.

Fields of a single backend are in its own record, a subclass beside the backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from virt_dmem.pools.segment_id import SegmentId

__all__ = ["NodeShare", "PoolRecord"]


class NodeShare(msgspec.Struct):
    """A pool's share of one node."""

    wanted_bytes: int
    got_bytes: int = 0
    """Taken from the host for this pool, and to be given back with it."""


class PoolRecord(msgspec.Struct):
    """The fields that all backends record of a segment, in ``pools/NAME.json``.

    A pool begins as one segment, and a resize adds others: a mounted hugetlbfs cannot grow
    (``remount,size=`` succeeds and changes nothing), and a file cannot span two of them.
    """

    name: str
    """Of the segment: the pool's name for the first one, ``POOL+1`` and so on for those added later."""
    backend: str
    page_size: int
    mount: str
    nodes: dict[int, NodeShare]
    state: Literal["creating", "mounting", "ready", "destroying"] = "creating"
    boot_id: str = ""
    """The boot under which ``got_bytes`` was taken; after another boot all of it is gone."""
    saved_bytes: int = 0
    """Struct pages that were freed when the memory was taken."""
    measured: bool = True
    """``saved_bytes`` comes from the kernel's counters; otherwise it is an estimate."""
    resizing: dict[int, int] = msgspec.field(default_factory=dict)
    """Bytes by node that a change in place is to lead to, while it is in progress or after it was interrupted; the
    size of the mount tells how far it came. Unknown to earlier versions, for which the pool has ``nodes``."""
    version: int = 1

    @property
    def segment(self) -> SegmentId:
        """Identifier of the segment."""
        return SegmentId(self.name)

    @property
    def pool(self) -> str:
        """Name of the pool."""
        return self.segment.pool

    @property
    def number(self) -> int:
        """Number of the segment in its pool, from 0."""
        return self.segment.number

    @property
    def wanted_bytes(self) -> int:
        """Intended size, on all nodes."""
        return sum(share.wanted_bytes for share in self.nodes.values())

    @property
    def target_bytes(self) -> int:
        """The size that its mount is to have: that of a change in progress, else the intended one."""
        return sum(self.resizing.values()) if self.resizing else self.wanted_bytes

    @property
    def shown_state(self) -> str:
        """Its state as shown: ``resizing`` while a change in place is in progress, or was interrupted."""
        return "resizing" if self.resizing and self.state == "ready" else self.state

    @property
    def got_bytes(self) -> int:
        """Bytes taken from the host, on all nodes."""
        return sum(share.got_bytes for share in self.nodes.values())

    def forget(self, gone: Mapping[int, int]) -> None:
        """Forget what the host has taken back, in bytes by node."""
        for node, size in gone.items():
            self.nodes[node].got_bytes -= size

    def forget_boot(self, boot_id: str) -> None:
        """Forget what was taken from the host under an earlier boot."""
        self.boot_id = boot_id
        self.saved_bytes, self.measured = 0, True
        for share in self.nodes.values():
            share.got_bytes = 0
