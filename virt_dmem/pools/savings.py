# SPDX-License-Identifier: GPL-2.0-or-later
"""Compute the struct pages that each pool saves: gross, remaining, and net."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.host import huge_pages, kernel
from virt_dmem.pools import registry
from virt_dmem.pools.backends.struct_pages import struct_pages_of
from virt_dmem.pools.record import PoolRecord

__all__ = ["PoolSavings", "savings", "why_none"]


@dataclass(frozen=True)
class PoolSavings:
    """The savings of one pool; all sizes in bytes. ``gross_bytes`` = ``metadata_left_bytes`` + ``net_bytes``."""

    pool: str
    backend: str
    page_size: int
    size_bytes: int
    """Memory taken from the host, where the pool is mounted."""
    gross_bytes: int
    """Struct pages that an ordinary host keeps for that memory."""
    metadata_left_bytes: int
    """Struct pages that remain."""
    net_bytes: int
    """Struct pages saved."""
    measured: bool
    """``net_bytes`` comes from the kernel's counters; otherwise it is an estimate."""


def savings(config: Config, *, root: Path = kernel.ROOT) -> list[PoolSavings]:
    """Return the savings of each pool, by name; a pool that is not mounted saves nothing.

    :raise PoolError: When a record cannot be read.
    """
    by_pool = itertools.groupby(registry.records(config), lambda record: record.pool)
    return [_of(pool, list(segments), root) for pool, segments in by_pool]


def why_none(found: Sequence[PoolSavings], *, root: Path = kernel.ROOT) -> str:
    """Return why pools of huge pages save nothing on this kernel; empty: they do, or there are none."""
    if huge_pages.hvo(root=root) is not None or not any(item.backend == "hugetlbfs" for item in found):
        return ""
    why = huge_pages.why_no_hvo(kernel.architecture(root=root))
    return f"Pools of huge pages save nothing here: {why}."


def _of(pool: str, segments: list[PoolRecord], root: Path) -> PoolSavings:
    sizes = [sum(has.values()) for has in registry.capacities(segments, root=root)]
    net = sum(min(record.saved_bytes, struct_pages_of(size)) for record, size in zip(segments, sizes, strict=True))
    gross = struct_pages_of(sum(sizes))
    return PoolSavings(
        pool=pool,
        backend=segments[0].backend,
        page_size=segments[0].page_size,
        size_bytes=sum(sizes),
        gross_bytes=gross,
        metadata_left_bytes=gross - net,
        net_bytes=net,
        measured=all(record.measured for record in segments),
    )
