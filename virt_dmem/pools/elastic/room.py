# SPDX-License-Identifier: GPL-2.0-or-later
"""Compute how much an elastic pool may take now: by its own limit, by what the host keeps, and by node.

virt-dmemd plans with it, and virt-dmem-pages, which takes the pages, computes it again: it trusts no request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.errors import PoolShort
from virt_dmem.host import kernel, numa
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits, HugetlbfsRecord
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size

__all__ = ["Elasticity", "Room", "elasticity_of", "limits_of", "room_of"]


@dataclass(frozen=True)
class Room:
    """What an elastic pool may take now; all sizes in bytes, rounded down to pages."""

    has_bytes: int
    """What it has, all segments together."""
    max_bytes: int
    available_bytes: int
    """Available memory of the host, of which it keeps ``keep_free_bytes``."""
    keep_free_bytes: int
    nodes: Mapping[int, int]
    """The most that it may take of each node, were it alone: at most ``most_bytes``."""
    most_bytes: int
    """The most that it may take in all."""

    def __str__(self) -> str:
        """Describe it, as an independent part of a sentence."""
        nodes = ", ".join(f"node {node}: {format_size(size)}" for node, size in sorted(self.nodes.items()))
        limits = f"it has {format_size(self.has_bytes)} of at most {format_size(self.max_bytes)}"
        host = f"the host has {format_size(self.available_bytes)} available and keeps"
        return (
            f"{format_size(self.most_bytes)} can be taken now ({nodes}; {limits}; {host}"
            f" {format_size(self.keep_free_bytes)})"
        )

    def require(self, pool: str, wanted: Mapping[int, int]) -> None:
        """Require room for bytes by node.

        :raise PoolShort: When there is less.
        """
        in_all = sum(wanted.values())
        if in_all <= self.most_bytes and all(size <= self.nodes.get(node, 0) for node, size in wanted.items()):
            return
        asked = ", ".join(f"{format_size(size)} of node {node}" for node, size in sorted(wanted.items()))
        raise PoolShort(f"Elastic pool {pool} is to take {asked}, and {self}.", hint=self.hint(in_all))

    def hint(self, wanted_bytes: int) -> str:
        """Return what to do about too little room for ``wanted_bytes``."""
        if self.has_bytes + wanted_bytes > self.max_bytes:
            return "Stop another domain, or create the pool again with a larger --max."
        if wanted_bytes > self.available_bytes - self.keep_free_bytes:
            return "Stop another domain or free memory of the host; --keep-free says what it keeps."
        return "Let the domain use other nodes too, or stop a domain there."


@dataclass(frozen=True)
class Elasticity:
    """The limits of an elastic pool, for display, and how much it may take now; in bytes and seconds."""

    max_bytes: int
    min_bytes: int
    keep_free_bytes: int
    linger_seconds: int
    room_bytes: int


def limits_of(record: PoolRecord) -> ElasticLimits | None:
    """Return the limits of the elastic pool of a segment; ``None``: it is a fixed one."""
    return record.elastic if isinstance(record, HugetlbfsRecord) else None


def room_of(segments: Sequence[PoolRecord], limits: ElasticLimits, *, root: Path = kernel.ROOT) -> Room:
    """Return what a pool may take now.

    :param segments: All segments of the pool.
    """
    page = segments[0].page_size
    booted = kernel.boot_id(root=root)
    # what a segment is to have counts from the moment that it is recorded
    has = sum(
        max(share.wanted_bytes, share.got_bytes)
        for record in segments
        if record.boot_id == booted
        for share in record.nodes.values()
    )
    available = kernel.memory(root=root).available_bytes
    most = max(0, min(limits.max_bytes - has, available - limits.keep_free_bytes)) // page * page
    usable = set(segments[0].nodes)
    nodes = {
        node.node: min(most, max(0, node.memory.available_bytes) // page * page)
        for node in numa.nodes(root=root)
        if node.node in usable
    }
    return Room(has, limits.max_bytes, available, limits.keep_free_bytes, nodes, min(most, sum(nodes.values())))


def elasticity_of(segments: Sequence[PoolRecord], *, root: Path = kernel.ROOT) -> Elasticity | None:
    """Return the limits of a pool and its room; ``None``: it is a fixed one."""
    limits = limits_of(segments[0])
    if limits is None:
        return None
    return Elasticity(
        max_bytes=limits.max_bytes,
        min_bytes=limits.min_bytes,
        keep_free_bytes=limits.keep_free_bytes,
        linger_seconds=limits.linger_seconds,
        room_bytes=room_of(segments, limits, root=root).most_bytes,
    )
