# SPDX-License-Identifier: GPL-2.0-or-later
"""Records of pools, written without a pool."""

from __future__ import annotations

from virt_dmem.config.schema import Config
from virt_dmem.pools import record_files
from virt_dmem.pools.backends.hugetlbfs import HugetlbfsRecord
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.units import MIB

__all__ = ["HUGE", "huge_record", "write_record"]

HUGE = 2 * MIB


def huge_record(config: Config, name: str = "p") -> HugetlbfsRecord:
    """Return the record of one huge page of node 0."""
    return HugetlbfsRecord(name, "hugetlbfs", HUGE, str(config.pools_dir / name), {0: NodeShare(HUGE)})


def write_record(config: Config, record: PoolRecord) -> None:
    """Write a record where pools are looked up."""
    config.pool_records_dir.mkdir(parents=True, exist_ok=True)
    record_files.write(config, record)
