# SPDX-License-Identifier: GPL-2.0-or-later
"""Define the messages of the control socket.

Integers are bytes or counts, times are seconds since the epoch. The same structures, with a schema version
around them, are printed by ``--json``. The names of the types are part of the interface description. (No postponed
annotations here: asyncvarlink derives the description from the types of the fields.)
"""

from dataclasses import dataclass

__all__ = [
    "AlertView",
    "AttachWish",
    "BackendView",
    "ChangeReply",
    "ChangeView",
    "DomainView",
    "ElasticView",
    "EventView",
    "NewsView",
    "ExtentView",
    "HookReply",
    "Link",
    "NodeView",
    "ParkReply",
    "ParkedView",
    "PoolView",
    "SegmentView",
    "StepView",
]


@dataclass(frozen=True)
class NodeView:
    """Describe a pool's memory on one host node; node -1 where the backend has no nodes."""

    node: int
    capacity_bytes: int
    reserved_bytes: int
    free_bytes: int
    ready_bytes: int


@dataclass(frozen=True)
class SegmentView:
    """Describe one of a pool's mounts."""

    name: str
    capacity_bytes: int
    reserved_bytes: int


@dataclass(frozen=True)
class ElasticView:
    """Describe the limits of an elastic pool, and how much it may take now."""

    max_bytes: int
    min_bytes: int
    keep_free_bytes: int
    linger_seconds: int
    room_bytes: int


@dataclass(frozen=True)
class PoolView:
    """Describe a pool."""

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
    nodes: list[NodeView]
    segments: list[SegmentView]
    ready_note: str
    elastic: ElasticView | None


@dataclass(frozen=True)
class ExtentView:
    """Describe a file in a pool that backs one memory backend."""

    alias: str
    pool: str
    path: str
    size_bytes: int
    page_size: int
    policy: str
    nodes: list[int]
    state: str


@dataclass(frozen=True)
class StepView:
    """Report the duration of one step of a start."""

    step: str
    at: float
    seconds: float


@dataclass(frozen=True)
class DomainView:
    """Describe the memory that a domain holds."""

    uuid: str
    name: str
    phase: str
    since: float
    reserved_bytes: int
    extents: list[ExtentView]
    steps: list[StepView]
    state_file: str


@dataclass(frozen=True)
class AlertView:
    """Describe an active alert; ``subject`` is a domain, pool or file."""

    code: str
    subject: str
    message: str
    hint: str
    since: float


@dataclass(frozen=True)
class EventView:
    """Describe something that happened."""

    sequence: int
    at: float
    kind: str
    subject: str
    name: str
    state: str
    code: str
    message: str


@dataclass(frozen=True)
class NewsView:
    """Hold events, the number to ask with the next time, and whether some were forgotten in between."""

    events: list[EventView]
    next: int
    missed: bool


@dataclass(frozen=True)
class Link:
    """Name a link that the hook must find in its own mount namespace, and the file it must lead to."""

    path: str
    device: int
    inode: int


@dataclass(frozen=True)
class HookReply:
    """Report progress to the hook (``done`` false), then the links to verify."""

    done: bool
    message: str
    done_bytes: int
    total_bytes: int
    links: list[Link]


@dataclass(frozen=True)
class BackendView:
    """Describe a memory backend, as reported by QEMU."""

    id: str
    kind: str
    path: str
    size_bytes: int
    policy: str
    host_nodes: list[int]
    preallocated: bool
    shared: bool


@dataclass(frozen=True)
class AttachWish:
    """Request a memory device for a domain; ``node`` is the host's, -1: any; ``cell`` the guest's."""

    domain: str
    size_bytes: int
    model: str
    cell: int
    node: int
    persistent: bool


@dataclass(frozen=True)
class ChangeView:
    """Report the outcome for a memory device: attached, detached, resized, or pending, and then why."""

    uuid: str
    name: str
    alias: str
    size_bytes: int
    state: str
    message: str


@dataclass(frozen=True)
class ChangeReply:
    """Report progress of an attach, detach or resize (``done`` false), then its outcome."""

    done: bool
    message: str
    done_bytes: int
    total_bytes: int
    change: ChangeView | None


@dataclass(frozen=True)
class ParkedView:
    """Report the outcome for a domain: parked, running, paused, discarded, or possible (a dry run)."""

    uuid: str
    name: str
    state: str
    state_file: str
    pause_seconds: float


@dataclass(frozen=True)
class ParkReply:
    """Report progress of a park, unpark or refresh (``done`` false), then its outcome."""

    done: bool
    message: str
    domain: ParkedView | None
