# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes over the control socket.

Integers are bytes or counts, times are seconds since the epoch. The same structures, with a schema version
around them, are what ``--json`` prints. (No postponed annotations here: asyncvarlink derives the interface
description from the types of the fields.)
"""

from dataclasses import dataclass

from virt_dmem.ipc.version import INTERFACE, SCHEMA_VERSION

__all__ = [
    "INTERFACE",
    "SCHEMA_VERSION",
    "AlertView",
    "AttachWish",
    "BackendView",
    "ChangeReply",
    "ChangeView",
    "DomainView",
    "ExtentView",
    "HookReply",
    "Link",
    "NodeView",
    "PoolView",
    "StepView",
]


@dataclass(frozen=True)
class NodeView:
    """A pool's share on one host node; node -1 where the backend has no nodes."""

    node: int
    capacity_bytes: int
    reserved_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class PoolView:
    """One pool."""

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


@dataclass(frozen=True)
class ExtentView:
    """One file in a pool that backs one memory backend."""

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
    """How long one step of a start took."""

    step: str
    at: float
    seconds: float


@dataclass(frozen=True)
class DomainView:
    """What one domain holds."""

    uuid: str
    name: str
    phase: str
    since: float
    reserved_bytes: int
    extents: list[ExtentView]
    steps: list[StepView]


@dataclass(frozen=True)
class AlertView:
    """Something that is not as it should be, since when; ``subject`` is a domain, pool or file."""

    code: str
    subject: str
    message: str
    hint: str
    since: float


@dataclass(frozen=True)
class Link:
    """A link that the hook must find in its own mount namespace, and where it must lead."""

    path: str
    device: int
    inode: int


@dataclass(frozen=True)
class HookReply:
    """An answer to the hook: progress while it works (``done`` false), then the links to check."""

    done: bool
    message: str
    done_bytes: int
    total_bytes: int
    links: list[Link]


@dataclass(frozen=True)
class BackendView:
    """A memory backend as QEMU itself describes it."""

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
    """A memory device that a domain is to be given; ``node`` is the host's, -1: any; ``cell`` the guest's."""

    domain: str
    size_bytes: int
    model: str
    cell: int
    node: int
    persistent: bool


@dataclass(frozen=True)
class ChangeView:
    """What became of a memory device: attached, detached, resized, or pending, and then why."""

    uuid: str
    name: str
    alias: str
    size_bytes: int
    state: str
    message: str


@dataclass(frozen=True)
class ChangeReply:
    """Progress of an attach, a detach or a resize while it goes on (``done`` false); then what became of it."""

    done: bool
    message: str
    done_bytes: int
    total_bytes: int
    change: ChangeView | None
