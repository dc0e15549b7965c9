# SPDX-License-Identifier: GPL-2.0-or-later
"""What the ledger knows of domains and their memory: values, without a word of how they are kept."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Extent",
    "ExtentState",
    "Failure",
    "NodeStatus",
    "Part",
    "Phase",
    "PoolStatus",
    "Reservation",
    "Standing",
    "Step",
]


class Phase(enum.Enum):
    """How far a domain's memory has come; each hook operation requires the one before it."""

    RESERVED = "reserved"
    """Charged; extents are being made."""
    PREPARED = "prepared"
    """Every extent is there, every page of it present."""
    LINKED = "linked"
    """Extents belong to QEMU's user and are linked where QEMU will open them."""
    RUNNING = "running"
    """QEMU maps them; they belong to root again."""
    STOPPED = "stopped"
    """libvirt says the domain is stopping; nothing is freed yet."""


class Standing(NamedTuple):
    """How far a domain's memory has come, and since when."""

    phase: Phase
    since: float
    """Seconds since the epoch: for people only, as that clock may be set back."""
    moment: int = 0
    """Which change of all domains' it was since the ledger was opened (``Ledger.moment``); 0: it was so then."""
    uptime: float = 0.0
    """The same as ``since``, by ``host.uptime``; of what was so when the ledger was opened, that time."""


class ExtentState(enum.Enum):
    """What is known of one file."""

    PLANNED = "planned"
    """Recorded; the file may or may not exist, and may be partly filled."""
    READY = "ready"
    """Whole, placed, every page present."""
    ATTACHING = "attaching"
    """Offered to QEMU while the domain runs; only libvirt knows whether it has it."""
    RESIZING = "resizing"
    """virtio-mem whose guest was asked to plug or unplug; charged with the most that it may have meanwhile."""
    DETACHING = "detaching"
    """The guest was asked to let go of it, or must have; charged until QEMU maps it no more."""
    QUARANTINED = "quarantined"
    """Its domain is gone, but a process still maps it; charged until nobody does."""


@dataclass(frozen=True)
class Part:
    """A piece of an extent whose pages come from the same nodes: where it begins, its size, the NUMA policy."""

    offset_bytes: int
    size_bytes: int
    policy: str
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Extent:
    """One file in a pool that backs one memory backend; ``shares`` is what it is charged with, bytes by node.

    They sum up to its size, but for virtio-mem whose guest gave back blocks. In the order of ``shares`` the nodes
    follow each other in the file, except where it is interleaved.
    """

    id: int
    uuid: str
    alias: str
    pool: str
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
        """What the domain is charged with for it."""
        return sum(self.shares.values())

    @property
    def nodes(self) -> tuple[int, ...]:
        """Host nodes it is placed on, ascending; empty where the backend has no nodes."""
        return tuple(sorted(node for node in self.shares if node >= 0))

    def parts(self, from_bytes: int = 0) -> list[Part]:
        """Return the pieces to prefault one after another, so that each node gives exactly its share.

        One call for several nodes would leave it to the kernel how much comes from each; page by page in
        turn, as interleaving has it, is the exception. What lies before ``from_bytes`` is left out.
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
    """What one domain holds."""

    uuid: str
    name: str
    boot_id: str
    phase: Phase
    since: float
    """Seconds since the epoch, for people."""
    extents: tuple[Extent, ...]
    moment: int = 0
    """As that of its ``Standing``: what came before what."""

    @property
    def size_bytes(self) -> int:
        """All that the domain is charged with."""
        return sum(extent.charged_bytes for extent in self.extents)


@dataclass(frozen=True)
class Failure:
    """An extent (by its id) that may hold memory that failed, the name of the domain, and what was said of it."""

    extent: int
    path: Path
    domain: str
    what: str


@dataclass(frozen=True)
class Step:
    """One step of a domain's last start or stop: when it ended, how long it took."""

    step: str
    at: float
    seconds: float


@dataclass(frozen=True)
class NodeStatus:
    """The share of a pool on one host node, in bytes; node -1 where the backend has no nodes."""

    node: int
    capacity_bytes: int
    reserved_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class PoolStatus:
    """One pool as recorded, mounted and reserved, with its pre-zeroed memory (``ready_*``); sizes in bytes."""

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
