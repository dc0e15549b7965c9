# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of a segment of a pool, as it lies on disk: all that is needed to undo it."""

from __future__ import annotations

from typing import Literal

import msgspec

from virt_dmem.host.ranges import Range
from virt_dmem.pools.segment_id import SegmentId

__all__ = ["BackendName", "NodeShare", "PageCountChange", "PoolRecord"]

BackendName = Literal["hugetlbfs", "dmemfs", "tmpfs"]
"""What a record may name: any other word is a fault of the record."""


class NodeShare(msgspec.Struct):
    """What a pool has of one node."""

    wanted_bytes: int
    got_bytes: int = 0
    """Taken from the host by us, and so ours to give back."""


class PageCountChange(msgspec.Struct, frozen=True):
    """A change of a node's huge pages that is under way: its persistent count goes from one to the other."""

    node: int
    from_pages: int
    to_pages: int


class PoolRecord(msgspec.Struct):
    """What one segment of a pool is, and all that is needed to undo it: the content of ``pools/NAME.json``.

    A pool begins as one segment, and a resize adds others: neither can a mounted hugetlbfs grow
    (``remount,size=`` succeeds and changes nothing), nor a file lie in two of them.
    """

    name: str
    """The segment's: that of the pool for the first one, ``POOL+1`` and so on for those that were added."""
    backend: BackendName
    page_size: int
    mount: str
    nodes: dict[int, NodeShare]
    state: Literal["creating", "mounting", "ready", "destroying"] = "creating"
    boot_id: str = ""
    """The boot under which ``got_bytes`` was taken; under another one nothing of it is left."""
    hvo: bool = True
    """Switch HVO on before memory is taken."""
    switched_hvo: bool = False
    """HVO was off before this pool, or before another one that switched it on and is still there."""
    optimized: bool = False
    """HVO was on when the memory was taken."""
    step: PageCountChange | None = None
    saved_bytes: int = 0
    """Struct pages that went away when the memory was taken."""
    measured: bool = True
    """``saved_bytes`` was counted by the kernel; else it is an estimate."""
    regions: dict[int, list[Range]] = msgspec.field(default_factory=dict)
    """Of dmemfs: the physical memory it is made of, by node."""
    regions_named: bool = False
    """They were named by whoever made the pool; else they may be others after the next boot."""
    original: bool = False
    """Of dmemfs: it is the original one, whose memory is not zeroed."""
    version: int = 1

    @property
    def segment(self) -> SegmentId:
        """The segment that it describes."""
        return SegmentId(self.name)

    @property
    def pool(self) -> str:
        """The name of the pool."""
        return self.segment.pool

    @property
    def number(self) -> int:
        """0 for the first segment of the pool, and so on."""
        return self.segment.number

    @property
    def wanted_bytes(self) -> int:
        """What the pool is to have, on all nodes."""
        return sum(share.wanted_bytes for share in self.nodes.values())

    @property
    def got_bytes(self) -> int:
        """What it has taken, on all nodes."""
        return sum(share.got_bytes for share in self.nodes.values())
