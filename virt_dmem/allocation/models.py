# SPDX-License-Identifier: GPL-2.0-or-later
"""Define the values of the ledger and the inventory: domains, their extents, pools."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from virt_dmem.pools.elastic.room import Elasticity
from virt_dmem.pools.segment_id import SegmentId

__all__ = [
    "Reservation",
    "Phase",
    "PhaseChange",
    "Parked",
    "ParkedStep",
    "Extent",
    "ExtentState",
    "Part",
    "Failure",
    "TimedStep",
    "PoolStatus",
    "NodeStatus",
    "SegmentStatus",
]


class Phase(enum.Enum):
    """Name the stages of a domain's memory; each hook operation requires the one before it."""

    RESERVED = "reserved"
    """Charged; its extents are being created."""
    PREPARED = "prepared"
    """All extents exist with all pages populated."""
    LINKED = "linked"
    """Extents belong to QEMU's user and are linked where QEMU will open them."""
    RUNNING = "running"
    """QEMU maps them; root owns them again."""
    STOPPED = "stopped"
    """libvirt reported that the domain stops; nothing is freed yet."""
    PARKED = "parked"
    """No QEMU has them: the guest is saved, and its memory is only there."""


class ParkedStep(enum.Enum):
    """Name the steps of a domain that is parked, or unparked again; until RESUMING its memory is never freed."""

    PARKING = "parking"
    """It is about to be saved: QEMU may save it without its memory from now on."""
    PARKED = "parked"
    """It is saved; state file and extents belong together."""
    UNPARKING = "unparking"
    """It is being restored; its processors do not run yet, so that all of it can be repeated."""
    RESUMING = "resuming"
    """Its processors may run: what the state file describes is past."""


@dataclass(frozen=True)
class Parked:
    """Describe a domain whose memory is kept for its state file, which libvirt wrote without that memory."""

    uuid: str
    step: ParkedStep
    state_file: Path
    since: float
    """Seconds since the epoch, only for display."""


class PhaseChange(NamedTuple):
    """Hold the phase of a domain's memory, and when it began."""

    phase: Phase
    since: float
    """Seconds since the epoch: only for display, as that clock may be set back."""
    sequence: int = 0
    """Number of the change since the ledger was opened (``Ledger.sequence``); 0: it was earlier."""
    uptime: float = 0.0
    """The same as ``since``, by ``kernel.uptime``; if earlier, when the ledger was opened."""


class ExtentState(enum.Enum):
    """Name the states of an extent."""

    PLANNED = "planned"
    """Recorded; the file may exist, and may be partly populated."""
    POPULATED = "ready"
    """All pages are populated on their nodes."""
    ATTACHING = "attaching"
    """Being hot-plugged; only libvirt knows whether QEMU has it."""
    RESIZING = "resizing"
    """Of virtio-mem whose guest was asked to plug or unplug; charged with the most that it may have meanwhile."""
    DETACHING = "detaching"
    """Being hot-unplugged; charged until QEMU does not map it any more."""
    QUARANTINED = "quarantined"
    """Its domain is gone, but a process still maps it; charged until none does."""


@dataclass(frozen=True)
class Part:
    """Describe a part of an extent whose pages come from the same nodes by the same NUMA policy."""

    offset_bytes: int
    size_bytes: int
    policy: str
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Extent:
    """Describe the file in a pool that backs one memory backend; ``shares`` are its charges, in bytes by node.

    They sum up to its size, except for virtio-mem with unplugged blocks. The nodes follow each other in the file in
    the order of ``shares``, except where it is interleaved.
    """

    id: int
    uuid: str
    alias: str
    segment: SegmentId
    path: Path
    size_bytes: int
    page_size: int
    policy: str
    state: ExtentState
    boot_id: str
    link: str
    shares: Mapping[int, int]

    @property
    def charged_bytes(self) -> int:
        """The bytes that its domain is charged for it."""
        return sum(self.shares.values())

    @property
    def nodes(self) -> tuple[int, ...]:
        """Its host nodes, ascending; empty where the backend has no nodes."""
        return tuple(sorted(node for node in self.shares if node >= 0))

    def parts(self, from_bytes: int = 0) -> list[Part]:
        """Return the parts from ``from_bytes`` on, to populate one after another so that each node gives its share.

        A single part with several nodes would leave it to the kernel how much to take from each, except where it
        interleaves them.
        """
        if self.policy in ("none", "interleave"):
            return [Part(from_bytes, self.size_bytes - from_bytes, self.policy, self.nodes)]
        parts, end = [], 0
        for node, size in self.shares.items():
            end += size
            offset = max(end - size, from_bytes)
            if offset < end:
                parts.append(Part(offset, end - offset, "bind", (node,)))
        return parts


@dataclass(frozen=True)
class Reservation:
    """Describe the memory that one domain holds."""

    uuid: str
    name: str
    boot_id: str
    phase: Phase
    since: float
    """Seconds since the epoch, only for display."""
    extents: tuple[Extent, ...]
    sequence: int = 0
    """As that of its ``PhaseChange``."""
    state_file: str = ""
    """Of a domain that is parked, or about to be; else empty."""

    @property
    def size_bytes(self) -> int:
        """The bytes that the domain is charged in all."""
        return sum(extent.charged_bytes for extent in self.extents)


@dataclass(frozen=True)
class Failure:
    """Describe an extent (by its id) that may contain failed memory, its domain, and the message."""

    extent: int
    path: Path
    domain: str
    what: str


@dataclass(frozen=True)
class TimedStep:
    """Describe a step of a domain's last start or stop: when it ended, how long it took."""

    step: str
    at: float
    seconds: float


@dataclass(frozen=True)
class NodeStatus:
    """Describe the share of a pool on one host node, in bytes; node -1 where the backend has no nodes."""

    node: int
    capacity_bytes: int
    reserved_bytes: int
    free_bytes: int
    ready_bytes: int = 0


@dataclass(frozen=True)
class SegmentStatus:
    """Describe one of a pool's mounts, in bytes: it can shrink or be removed while nothing of it is reserved."""

    name: str
    capacity_bytes: int
    reserved_bytes: int


@dataclass(frozen=True)
class PoolStatus:
    """Describe a pool as recorded, mounted and reserved, with its pre-zeroed memory (``ready_*``); in bytes."""

    name: str
    backend: str
    page_size: int
    mount: str
    state: str
    capacity_bytes: int
    reserved_bytes: int
    free_bytes: int
    ready_bytes: int
    ready_goal_bytes: int
    ready_most_bytes: int
    ready_policy: str
    pinned_bytes: int
    nodes: list[NodeStatus]
    segments: list[SegmentStatus] = field(default_factory=list)
    ready_note: str = ""
    """Why no more memory is pre-zeroed; empty: all that is to be is."""
    elastic: Elasticity | None = None
    """Limits of an elastic pool; ``None``: it is a fixed one."""
