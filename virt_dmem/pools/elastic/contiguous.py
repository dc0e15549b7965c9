# SPDX-License-Identifier: GPL-2.0-or-later
"""Help a node that falls short of huge pages to more of them, and tell want of memory from fragmentation.

Pages up to those of the kernel's page allocator come after compaction. Larger ones the kernel puts together itself,
from memory in use that it moves away; it tries pages that are in the way five times within less than a millisecond
(``mm/page_alloc.c``, ``__alloc_contig_migrate_range``), whatever they are used for. So these are tried again later.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from virt_dmem.host import huge_pages, kernel, numa
from virt_dmem.pools.backends.base import Job
from virt_dmem.pools.backends.hugetlbfs_plan import is_gigantic
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord
from virt_dmem.pools.backends.struct_pages import BASE_PAGE
from virt_dmem.units import format_size

__all__ = ["tries_of", "why_short"]

PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)


def tries_of(job: Job[HugetlbfsRecord], node: int) -> Iterator[bool]:
    """Do what may help, then yield ``True`` for another try; end when nothing helps, or memory is missing."""
    record = job.record
    if not _is_gigantic(job):
        job.report(f"Compacting memory of node {node}", record.got_bytes, record.wanted_bytes)
        with contextlib.suppress(OSError):  # what it has is known without it
            huge_pages.compact(node, root=job.root)
        yield True
        return
    for seconds in PAUSES_SECONDS:
        if _missing(job, node) > _available(job, node):
            return
        job.report(f"Waiting for memory in use of node {node}", record.got_bytes, record.wanted_bytes)
        time.sleep(seconds)
        yield True


def why_short(job: Job[HugetlbfsRecord]) -> str:
    """Return for each node that fell short whether memory is missing there, or contiguous memory."""
    why = ""
    for node in sorted(job.record.nodes):
        missing, left = _missing(job, node), _available(job, node)
        if missing > left:
            why += f"Node {node} has only {format_size(left)} available for the other {format_size(missing)}. "
        elif missing:
            why += (
                f"Node {node} has {format_size(left)} available, but so fragmented that the kernel finds no"
                f" {format_size(missing)} in whole pages. "
            )
            if _is_gigantic(job) and not kernel.cma_bytes(root=job.root):
                why += f"'virt-dmem plan-host' says how to keep memory for pages of {_page(job)}. "
    return why


def _is_gigantic(job: Job[HugetlbfsRecord]) -> bool:
    return is_gigantic(job.record.page_size, BASE_PAGE)


def _page(job: Job[HugetlbfsRecord]) -> str:
    return format_size(job.record.page_size)


def _missing(job: Job[HugetlbfsRecord], node: int) -> int:
    share = job.record.nodes[node]
    return share.wanted_bytes - share.got_bytes


def _available(job: Job[HugetlbfsRecord], node: int) -> int:
    return next((found.memory.available_bytes for found in numa.nodes(root=job.root) if found.node == node), 0)
