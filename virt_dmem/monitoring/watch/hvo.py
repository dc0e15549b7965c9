# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch the switch of HVO: without it, huge pages that are allocated from then on keep all their struct pages."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.host import huge_pages, kernel
from virt_dmem.monitoring.alert_codes import HVO_SWITCHED
from virt_dmem.monitoring.watch.base import Deviation, Sight
from virt_dmem.pools import registry
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord
from virt_dmem.pools.lock import unless_locked

__all__ = ["deviations"]


def deviations(sight: Sight) -> Iterator[Deviation]:
    """Yield a deviation if HVO is off, and was on when pools took their pages."""
    if huge_pages.hvo(root=sight.root) is not False:
        return
    if pools := _optimized(sight):
        yield Deviation(
            HVO_SWITCHED,
            "vm.hugetlb_optimize_vmemmap",
            f"Somebody switched HVO off: pages of pool {', '.join(pools)} that are allocated from now on save"
            " nothing.",
            "Find out what sets vm.hugetlb_optimize_vmemmap to 0 (grep -r hugetlb_optimize /etc/sysctl.d), and run"
            " 'sysctl vm.hugetlb_optimize_vmemmap=1'.",
            partial(_switch_on, sight.config, sight.root),
        )


def _optimized(sight: Sight) -> list[str]:
    booted = kernel.boot_id(root=sight.root)
    found = {
        record.pool
        for record in sight.records
        if isinstance(record, HugetlbfsRecord) and record.hvo and record.optimized and record.boot_id == booted
    }
    return sorted(found)


def _switch_on(config: Config, root: Path) -> None:
    """Switch HVO on again, unless a pool is being changed, or none needs it any more."""
    with unless_locked(config) as mine:
        if mine and _optimized(Sight(config, registry.complete(config), root)):
            huge_pages.set_hvo(True, root=root)
