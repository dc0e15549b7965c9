# SPDX-License-Identifier: GPL-2.0-or-later
"""Implement pools of ordinary memory, which save nothing, and serve for trials and tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from virt_dmem.errors import PoolShort
from virt_dmem.host import kernel
from virt_dmem.pools.backends.base import NO_NODE, Backend, Job
from virt_dmem.pools.backends.host_options import HostFacts, HostOption, Probe, exact_size, host_option
from virt_dmem.pools.backends.struct_pages import BASE_PAGE, struct_pages_of
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size, round_up

__all__ = ["Tmpfs"]


class Tmpfs(Backend[PoolRecord]):
    """A tmpfs with a size. The kernel reserves no memory for it; only virt-dmem's reservations protect it."""

    name: ClassVar[str] = "tmpfs"
    fstype: ClassVar[str] = "tmpfs"
    record = PoolRecord
    zeroes_on_allocation: ClassVar[bool] = True
    has_nodes: ClassVar[bool] = False
    counts_used: ClassVar[bool] = True
    from_host: ClassVar[bool] = True
    resizes_in_place: ClassVar[bool] = True

    def page_sizes(self, *, root: Path = kernel.ROOT) -> tuple[int, ...]:
        """Return the base page size."""
        return (BASE_PAGE,)

    def probe(self, *, root: Path = kernel.ROOT) -> Probe:
        """Return that it is supported: every kernel of a Linux distribution has tmpfs."""
        return Probe(available=True)

    def metadata_left(self, size_bytes: int, page_size: int) -> int:
        """Return all struct pages: these are ordinary pages."""
        return struct_pages_of(size_bytes)

    def host_options(self, size_bytes: int, facts: HostFacts) -> list[HostOption]:
        """Return the option of ordinary pages: it saves nothing and asks nothing of the kernel."""
        size = round_up(size_bytes, facts.base_page)
        return [
            host_option(
                self.name,
                size,
                facts.base_page,
                left=struct_pages_of(size, facts.base_page),
                pool_create=f"virt-dmem pool create NAME --backend tmpfs --size {exact_size(size)}",
                notes=["Ordinary pages, for trials. Transparent huge pages and memfd need as many struct pages."],
                base_page=facts.base_page,
            )
        ]

    def check(self, job: Job[PoolRecord]) -> None:
        """Reject more than is available once other tmpfs pools are full.

        :raise PoolShort: When the host has less.
        """
        available = kernel.memory(root=job.root).available_bytes - sum(
            self._blocks(record, job.root)[1] for record in job.others if record.backend == self.name
        )
        size, unfilled = self._blocks(job.record, job.root)
        wanted = job.record.target_bytes - (size - unfilled)
        if wanted > available:
            raise PoolShort(
                f"Pool {job.record.name} needs {format_size(wanted)}{' more' if size > unfilled else ''}, but the"
                f" host has only {format_size(max(0, available))} available.",
                hint="Choose a smaller size, or free memory on the host first.",
            )

    def _blocks(self, record: PoolRecord, root: Path) -> tuple[int, int]:
        """Return size and free bytes of the mount."""
        if not self.mounted(record, root=root):
            return 0, 0
        found = os.statvfs(record.mount)
        return found.f_blocks * found.f_frsize, found.f_bfree * found.f_frsize

    def acquire(self, job: Job[PoolRecord]) -> None:
        """Record everything as taken: tmpfs allocates its pages when they are touched."""
        share = job.record.nodes[NO_NODE]
        share.got_bytes = share.wanted_bytes
        job.save()

    def release(self, job: Job[PoolRecord], *, keep_wanted: bool = False) -> int:
        """Record nothing as taken: the pages were freed with the mount."""
        job.record.nodes[NO_NODE].got_bytes = 0
        job.save()
        return 0

    def mount_options(self, record: PoolRecord) -> tuple[str, ...]:
        """Return the size, no swap (Linux 6.4), and huge pages where the kernel has them: ten times as fast.

        ``huge=within_size`` applies whatever /sys/kernel/mm/transparent_hugepage/shmem_enabled says, except "deny".
        """
        size = f"size={record.target_bytes}"
        return (f"{size},noswap,huge=within_size", f"{size},huge=within_size", f"{size},noswap", size)
