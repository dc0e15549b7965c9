# SPDX-License-Identifier: GPL-2.0-or-later
"""What the pools save: never one figure alone, always gross, what is left, and net."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.host import kernel
from virt_dmem.pools import registry
from virt_dmem.pools.backends.base import struct_pages_of
from virt_dmem.pools.record import PoolRecord

__all__ = ["PoolSavings", "savings"]


@dataclass(frozen=True)
class PoolSavings:
    """One pool; all sizes in bytes. ``gross_bytes`` = ``metadata_left_bytes`` + ``net_bytes``."""

    pool: str
    backend: str
    page_size: int
    size_bytes: int
    """What the pool has taken from the host."""
    gross_bytes: int
    """Struct pages that an ordinary host keeps for so much memory."""
    metadata_left_bytes: int
    """Struct pages that are still there."""
    net_bytes: int
    """Struct pages that are gone."""
    measured: bool
    """The kernel counted what is gone when the memory was taken; else it is an estimate."""


def savings(config: Config, *, root: Path = kernel.ROOT) -> list[PoolSavings]:
    """Return what each pool saves, by name; a pool that is not there now (not mounted) saves nothing.

    :raise PoolError: When a record cannot be read.
    """
    by_pool = itertools.groupby(registry.records(config), lambda record: record.pool)
    return [_of(pool, list(segments), root) for pool, segments in by_pool]


def _of(pool: str, segments: list[PoolRecord], root: Path) -> PoolSavings:
    sizes = [sum(registry.capacity(record, root=root).values()) for record in segments]
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
