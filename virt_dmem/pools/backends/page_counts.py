# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare the huge pages that pools took, by their records, with those that the host has.

Whoever lowers ``vm.nr_hugepages`` (a sysctl.d file, tuned, the hook of another tool) turns pages in use into
surplus pages. While a node has some, the kernel takes each page that is freed there, whoever frees it, even if the
``min_size`` of a mount reserves it (``mm/hugetlb.c``, ``free_huge_folio``): a guest that gave a page back, as by
free-page reporting, and touches it again is then killed by SIGBUS. Raising the number makes them persistent again.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from virt_dmem.host import huge_pages, kernel
from virt_dmem.host.huge_pages import HugePages
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import format_size

__all__ = ["PageCount", "compare", "describe_gone", "gone_by_segment", "restore"]


@dataclass(frozen=True)
class PageCount:
    """Huge pages of one size on one node: those that pools took, and those that the host has. Counts are pages."""

    page_size: int
    node: int
    recorded: int
    """Taken for pools, by their records."""
    pools: tuple[str, ...]
    """Whose pages they are."""
    has: HugePages
    """What the kernel counts; all 0 when the node is not there."""
    overcommit: bool
    """Others may use surplus pages (nr_overcommit_hugepages), whatever the number is."""
    unbacked: int = 0
    """Pages that the kernel reserved for mounts or processes and does not have, beyond those of ``recorded``."""

    @property
    def wanted(self) -> int:
        """Persistent pages that the node needs for no page of a pool to get lost: all, if there are surplus ones.

        Surplus pages that others may use by overcommit stay surplus pages.
        """
        existing = self.has.persistent if self.overcommit else self.has.pages
        return max(self.recorded, existing) + self.unbacked

    @property
    def lacking(self) -> int:
        """Pages by which the number is too low: the kernel takes as many when pages are freed, or did so."""
        return self.wanted - self.has.persistent

    @property
    def gone(self) -> int:
        """Pages of pools that do not exist any more."""
        return max(0, self.recorded - self.has.pages) + self.unbacked


def compare(records: Iterable[PoolRecord], *, root: Path = kernel.ROOT) -> list[PageCount]:
    """Return what pools have taken since the host was booted, of each page size and node, and what the host has.

    :param records: Of segments whose pages are expected to be there: no change of them may be under way.
    """
    by_size: dict[int, list[HugetlbfsRecord]] = defaultdict(list)
    booted = kernel.boot_id(root=root)
    for record in records:
        if isinstance(record, HugetlbfsRecord) and record.boot_id == booted:
            by_size[record.page_size].append(record)
    return [count for size, segments in sorted(by_size.items()) for count in _of_size(size, segments, root)]


def _of_size(page_size: int, segments: Iterable[HugetlbfsRecord], root: Path) -> list[PageCount]:
    taken: dict[int, int] = defaultdict(int)
    owners: dict[int, dict[str, None]] = defaultdict(dict)
    for record in segments:
        for node, share in record.nodes.items():
            if share.got_bytes:
                taken[node] += share.got_bytes // page_size
                owners[node][record.pool] = None
    of_host = _counters(page_size, None, root)
    overcommit = huge_pages.overcommit(page_size, root=root) > 0
    counts = [
        PageCount(page_size, node, pages, tuple(owners[node]), _counters(page_size, node, root), overcommit)
        for node, pages in sorted(taken.items())
    ]
    unbacked = of_host.reserved - of_host.free - sum(count.gone for count in counts)
    if counts and unbacked > 0:  # the kernel reserves for the host as a whole: it is not known on which node
        counts[0] = replace(counts[0], unbacked=min(unbacked, sum(taken.values())))
    return counts


def _counters(page_size: int, node: int | None, root: Path) -> HugePages:
    try:
        return huge_pages.counters(page_size, node, root=root)
    except OSError:  # the node went offline
        return HugePages(0, 0, 0)


def restore(count: PageCount, *, anew: bool = True, root: Path = kernel.ROOT) -> None:
    """Raise the number of a node's huge pages to the wanted one; never lower it.

    Surplus pages become persistent first, which takes nothing from the host; what is gone is allocated anew, if the
    kernel can (``set_max_huge_pages``).

    :param anew: Allocate what is gone.
    :raise OSError: When the kernel rejects the number, or the node is not there.
    """
    number = count.wanted if anew else min(count.wanted, count.has.pages)
    if number > count.has.persistent:
        huge_pages.set_persistent(count.page_size, count.node, number, root=root)


def gone_by_segment(records: Iterable[PoolRecord], *, root: Path = kernel.ROOT) -> dict[SegmentId, dict[int, int]]:
    """Return the bytes by node that segments promise and that do not exist; those that lack none are left out.

    Pages in use are there, so free memory is what is gone: of the segment that has the most of it.
    """
    segments = list(records)
    gone: dict[SegmentId, dict[int, int]] = {}
    for count in compare(segments, root=root):
        left = count.gone
        owners = [
            record for record in segments if record.page_size == count.page_size and count.node in record.nodes
        ]
        for record in sorted(owners, key=_unused_pages, reverse=True) if left else ():
            lost = min(left, record.nodes[count.node].got_bytes // count.page_size)
            if lost and isinstance(record, HugetlbfsRecord):
                gone.setdefault(record.segment, {})[count.node] = lost * count.page_size
                left -= lost
    return gone


def _unused_pages(record: PoolRecord) -> int:
    try:
        return os.statvfs(record.mount).f_bfree
    except OSError:
        return 0


def describe_gone(gone: Mapping[SegmentId, Mapping[int, int]]) -> str:
    """Return why memory of segments is gone, and what to do; each sentence ends with a space."""
    return "".join(
        f"{format_size(sum(by_node.values()))} of pool {segment} are gone: somebody lowered the number of huge"
        " pages (vm.nr_hugepages), and the kernel took them;"
        f" 'virt-dmem pool mount {segment.pool}' takes them again. "
        for segment, by_node in sorted(gone.items())
    )
