# SPDX-License-Identifier: GPL-2.0-or-later
"""Records of elastic pools, written without a pool."""

from __future__ import annotations

from virt_dmem.config.schema import Config
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits, HugetlbfsRecord
from virt_dmem.pools.record import NodeShare
from virt_dmem.units import GIB, MIB

__all__ = ["PAGE", "elastic_record"]

PAGE = 2 * MIB


def elastic_record(
    config: Config,
    name: str = "p",
    nodes: dict[int, int] | None = None,
    *,
    boot_id: str = "",
    limits: ElasticLimits | None = None,
    state: str = "ready",
) -> HugetlbfsRecord:
    """Return the record of a segment of an elastic pool, which has what it is to have; ``nodes``: bytes by node."""
    return HugetlbfsRecord(
        name,
        "hugetlbfs",
        PAGE,
        str(config.pools_dir / name),
        {node: NodeShare(size, size) for node, size in (nodes or {0: 0}).items()},
        boot_id=boot_id,
        state=state,  # type: ignore[arg-type]
        elastic=limits or ElasticLimits(4 * GIB, 0, GIB, 600),
    )
