# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools of ordinary memory: no saving; for trying out, and for tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from virt_dmem.errors import PoolShort
from virt_dmem.host import kernel
from virt_dmem.pools.backends.base import BASE_PAGE, NO_NODE, Backend, Job, Probe, struct_pages_of
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size

__all__ = ["Tmpfs"]


class Tmpfs(Backend):
    """A tmpfs with a size. The kernel holds no memory back for it, so it is only as good as its admission."""

    name: ClassVar[str] = "tmpfs"
    fstype: ClassVar[str] = "tmpfs"
    zeroes_on_allocation: ClassVar[bool] = True
    has_nodes: ClassVar[bool] = False
    counts_used: ClassVar[bool] = True
    from_host: ClassVar[bool] = True
    resizes_in_place: ClassVar[bool] = True

    def page_sizes(self, *, root: Path = kernel.ROOT) -> tuple[int, ...]:
        """Return the base page size."""
        return (BASE_PAGE,)

    def probe(self, *, root: Path = kernel.ROOT) -> Probe:
        """Tell that there is one: every kernel that runs a Linux distribution has tmpfs."""
        return Probe(available=True)

    def metadata_left(self, size_bytes: int, page_size: int) -> int:
        """Return all of it: these are ordinary pages."""
        return struct_pages_of(size_bytes)

    def check(self, job: Job) -> None:
        """Refuse more than is available after what other tmpfs pools may still fill.

        :raise PoolShort: When it is more.
        """
        available = kernel.memory(root=job.root).available_bytes - sum(
            self._blocks(record, job.root)[1] for record in job.others if record.backend == self.name
        )
        size, unfilled = self._blocks(job.record, job.root)
        wanted = job.record.wanted_bytes - (size - unfilled)
        if wanted > available:
            raise PoolShort(
                f"Pool {job.record.name} is to have {format_size(wanted)}"
                f"{' more than is in it' if size > unfilled else ''}, and the host has"
                f" {format_size(max(0, available))} available.",
                hint="Make it smaller, or free memory on the host first.",
            )

    def _blocks(self, record: PoolRecord, root: Path) -> tuple[int, int]:
        """Return size and free bytes of the mount."""
        if not self.mounted(record, root=root):
            return 0, 0
        found = os.statvfs(record.mount)
        return found.f_blocks * found.f_frsize, found.f_bfree * found.f_frsize

    def acquire(self, job: Job) -> None:
        """Note that all is there: tmpfs takes its pages when they are touched."""
        share = job.record.nodes[NO_NODE]
        share.got_bytes = share.wanted_bytes
        job.save()

    def release(self, job: Job, *, keep_wanted: bool = False) -> int:
        """Note that nothing is there any more: the pages went with the mount."""
        job.record.nodes[NO_NODE].got_bytes = 0
        job.save()
        return 0

    def mount_options(self, record: PoolRecord) -> tuple[str, ...]:
        """Return the size, no swap (Linux 6.4), huge pages where the kernel has them: ten times as fast.

        ``huge=within_size`` counts whatever /sys/kernel/mm/transparent_hugepage/shmem_enabled says, except "deny".
        """
        size = f"size={record.wanted_bytes}"
        return (f"{size},noswap,huge=within_size", f"{size},huge=within_size", f"{size},noswap", size)
