# SPDX-License-Identifier: GPL-2.0-or-later
"""Refuse elastic pools where each page that they give back would be lost (``host.hvo_bug``)."""

from __future__ import annotations

from pathlib import Path

from virt_dmem.errors import PoolError
from virt_dmem.host import huge_pages, hvo_bug, kernel
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord

__all__ = ["loses_pages", "reject"]

_GOOD_KERNEL = (
    "boot a kernel that frees them: Debian 13's linux-image-6.12.113+deb13-amd64, or that of trixie-backports"
)


def loses_pages(record: HugetlbfsRecord, *, root: Path = kernel.ROOT) -> bool:
    """Return whether pages that this elastic pool would take now are lost when they are given back."""
    if record.elastic is None or hvo_bug.verdict(kernel.release(root=root)) is not hvo_bug.Verdict.BAD:
        return False
    return record.hvo or bool(huge_pages.hvo(root=root))


def reject(record: HugetlbfsRecord, *, root: Path = kernel.ROOT) -> None:
    """Reject a segment of an elastic pool that is about to be created with pages that would be lost.

    One that is mounted again, after a boot, stays: nothing of it is given back.

    :raise PoolError: When they would be.
    """
    if record.state != "creating" or not loses_pages(record, root=root):
        return
    without = (
        "Create it with --no-hvo, which saves nothing"
        if record.hvo
        else "If no other pool has HVO, which virt-dmemd keeps on then, switch it off first (sysctl"
        " vm.hugetlb_optimize_vmemmap=0)"
    )
    raise PoolError(
        f"Linux {kernel.release(root=root)} loses huge pages that HVO optimized when they are freed, and the"
        f" elastic pool {record.pool} frees them after each domain.",
        hint=f"{without}; or {_GOOD_KERNEL}.",
    )
