# SPDX-License-Identifier: GPL-2.0-or-later
"""Take huge pages that the host has already: set aside at boot (``hugepages=``), or by ``vm.nr_hugepages``.

Pages of 1 GiB can often be had at boot only. Nothing changes on the host when a pool takes them: its mount reserves
them, and once it is gone they are free again.
"""

from __future__ import annotations

import re
from pathlib import Path

from virt_dmem.host import huge_pages, mounts
from virt_dmem.pools.backends.base import Job
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord

__all__ = ["give_back", "optimized_at_boot", "spare_bytes", "take"]

_SWITCH = re.compile(r"(?<!\S)hugetlb_free_vmemmap=(\S+)")


def spare_bytes(job: Job[HugetlbfsRecord], node: int) -> int:
    """Return the bytes of a node in pages of the pool's size that are free, and that nobody reserved.

    Pages of pools that are not mounted (yet) look like that, and are none.
    """
    size, root = job.record.page_size, job.root
    claimed: dict[int, int] = {}
    for record in (job.record, *job.others):
        unmounted = isinstance(record, HugetlbfsRecord) and mounts.mount_at(Path(record.mount), root=root) is None
        if unmounted and record.page_size == size and record.boot_id == job.record.boot_id:
            for number, share in record.nodes.items():
                claimed[number] = claimed.get(number, 0) + share.got_bytes // size
    of_node, of_host = huge_pages.counters(size, node, root=root), huge_pages.counters(size, root=root)
    free = min(of_node.free, of_node.persistent) - claimed.get(node, 0)
    return max(0, min(free, of_host.free - of_host.reserved - sum(claimed.values()))) * size


def take(job: Job[HugetlbfsRecord]) -> int:
    """Take what is still missing from pages that the host has, as far as they are there; return the bytes."""
    record = job.record
    before = record.got_bytes
    for node, share in sorted(record.nodes.items()):
        taken = min(share.wanted_bytes - share.got_bytes, spare_bytes(job, node))
        if taken > 0:
            share.got_bytes += taken
            record.of_host[node] = record.of_host.get(node, 0) + taken
            job.save()
    return record.got_bytes - before


def give_back(record: HugetlbfsRecord, node: int, size_bytes: int) -> None:
    """Leave up to ``size_bytes`` of a node to the host, whose own pages they are."""
    given = max(0, min(size_bytes, record.of_host.get(node, 0)))
    record.of_host[node] = record.of_host.get(node, 0) - given
    record.nodes[node].got_bytes -= given


def optimized_at_boot(*, root: Path) -> bool:
    """Return whether the kernel's command line switches HVO on, so that pages set aside at boot are optimized."""
    try:
        found = _SWITCH.findall((root / "proc/cmdline").read_text("utf-8", "replace"))
    except OSError:
        return False
    return bool(found) and found[-1].lower() in {"on", "1", "y", "yes"}
