# SPDX-License-Identifier: GPL-2.0-or-later
"""What the pools save: never one figure alone, always gross, what is left, and net."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virt_dmem import host, pools
from virt_dmem.backends.base import PoolRecord, struct_pages_of
from virt_dmem.config import Config

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


def savings(config: Config, *, root: Path = host.ROOT) -> list[PoolSavings]:
    """Return what each pool saves, by name; a pool that is not there now (not mounted) saves nothing.

    :raise PoolError: When a record cannot be read.
    """
    return [_of(record, sum(pools.capacity(record, root=root).values())) for record in pools.records(config)]


def _of(record: PoolRecord, size_bytes: int) -> PoolSavings:
    gross = struct_pages_of(size_bytes)
    net = min(record.saved_bytes, gross) if size_bytes else 0
    return PoolSavings(
        pool=record.name,
        backend=record.backend,
        page_size=record.page_size,
        size_bytes=size_bytes,
        gross_bytes=gross,
        metadata_left_bytes=gross - net,
        net_bytes=net,
        measured=record.measured,
    )
