# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools of huge pages, with most of their struct pages given back by HVO: the default on stock kernels.

How the kernel counts (``mm/hugetlb.c``): ``nr_hugepages`` of a node shows all its pages, but a number written
there sets the *persistent* ones, without surplus. What is written too low turns pages in use into surplus
ones; so does a page whose struct pages could not be had back for want of memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from virt_dmem.errors import PoolError, PoolShort
from virt_dmem.host import huge_pages, kernel, numa
from virt_dmem.pools.backends.base import BASE_PAGE, Backend, Job, Probe, struct_pages_of
from virt_dmem.pools.record import NodeShare, PageCountChange, PoolRecord
from virt_dmem.units import GIB, MIB, format_size

__all__ = ["Hugetlbfs"]

_HOST_KEEPS = 256 * MIB  # asked for more, the kernel would squeeze every process before it gives up


class Hugetlbfs(Backend):
    """Huge pages of one size, taken node by node and promised to our mount by the kernel."""

    name: ClassVar[str] = "hugetlbfs"
    fstype: ClassVar[str] = "hugetlbfs"
    zeroes_on_allocation: ClassVar[bool] = True  # hugetlb_no_page() and hugetlbfs_fallocate() clear each folio
    has_nodes: ClassVar[bool] = True
    holds_nodes: ClassVar[bool] = True
    counts_used: ClassVar[bool] = True

    step_bytes = GIB
    """How much is taken or given back between two reports."""

    def page_sizes(self, *, root: Path = kernel.ROOT) -> tuple[int, ...]:
        """Return what the kernel offers, smallest first."""
        return huge_pages.huge_page_sizes(root=root)

    def probe(self, *, root: Path = kernel.ROOT) -> Probe:
        """Tell whether the kernel has huge pages and whether it can save their struct pages."""
        if not huge_pages.huge_page_sizes(root=root):
            return Probe(available=False, reason="this kernel has no huge pages (CONFIG_HUGETLBFS)")
        if huge_pages.hvo(root=root) is None:
            return Probe(available=True, reason="this kernel has no HVO: huge pages, but no saving")
        return Probe(available=True)

    def metadata_left(self, size_bytes: int, page_size: int) -> int:
        """Return one base page for each huge page: what HVO keeps (``mm/hugetlb_vmemmap.c``)."""
        return _metadata_left(size_bytes, page_size)

    def check(self, job: Job) -> None:
        """Refuse what a node or the host does not have available.

        :raise PoolShort: When it does not.
        """
        record = job.record
        available = {node.node: node.memory.available_bytes for node in numa.nodes(root=job.root)}
        missing = {node: share.wanted_bytes - share.got_bytes for node, share in record.nodes.items()}
        for node, wanted in missing.items():
            if wanted > available.get(node, 0):
                raise PoolShort(
                    f"Pool {record.name} is to take {format_size(wanted)} of node {node}, and"
                    f" {format_size(available.get(node, 0))} are available there.",
                    hint="Make it smaller, or spread it over other nodes.",
                )
        of_host = kernel.memory(root=job.root).available_bytes
        if sum(missing.values()) > of_host - _HOST_KEEPS:
            raise PoolShort(
                f"Pool {record.name} is to take {format_size(sum(missing.values()))}, and the host has"
                f" {format_size(of_host)} available, of which it must keep {format_size(_HOST_KEEPS)}.",
                hint="Make it smaller, or free memory on the host first.",
            )

    def acquire(self, job: Job) -> None:
        """Switch HVO on, then raise each node's huge pages until we have what is wanted.

        :raise PoolShort: When a node gives less; says what was wanted and got of each.
        :raise PoolError: When the kernel refuses altogether.
        """
        _settle(job)
        _switch_hvo_on(job)
        record = job.record
        for node, share in sorted(record.nodes.items()):
            while share.got_bytes < share.wanted_bytes:
                job.report(f"Taking huge pages of node {node}", record.got_bytes, record.wanted_bytes)
                pages = min(share.wanted_bytes - share.got_bytes, max(self.step_bytes, record.page_size))
                if not _raise(job, node, share, pages // record.page_size):
                    raise _short(record)
        job.report("Took huge pages", record.got_bytes, record.wanted_bytes)

    def release(self, job: Job, *, keep_wanted: bool = False) -> int:
        """Lower each node's huge pages by what we took; put HVO back once nobody needs it any more.

        Others may have changed the counts meanwhile, so they are lowered from where they are now; and only by
        free pages that nobody was promised.
        """
        _settle(job)
        record = job.record
        before = record.got_bytes
        kept = record.wanted_bytes if keep_wanted else 0
        too_much = 0
        for node, share in sorted(record.nodes.items()):
            least = share.wanted_bytes if keep_wanted else 0
            while share.got_bytes > least:
                job.report(f"Giving back huge pages of node {node}", before - record.got_bytes, before - kept)
                pages = min(share.got_bytes - least, max(self.step_bytes, record.page_size)) // record.page_size
                if not _lower(job, node, share, pages):
                    break
            too_much += max(0, share.got_bytes - least)
        if not record.got_bytes:
            _switch_hvo_back(job)
        if before:
            record.saved_bytes = record.saved_bytes * record.got_bytes // before
        job.report("Gave back huge pages", before - record.got_bytes, before - kept)
        return too_much

    def mount_options(self, record: PoolRecord) -> tuple[str, ...]:
        """Return a size that is minimum and maximum: the kernel holds the pages for this mount alone."""
        size = record.wanted_bytes
        return (f"pagesize={record.page_size},size={size},min_size={size}",)

    def mount_refused(self, job: Job, message: str) -> PoolError:
        """Return ``PoolShort`` when somebody took our pages meanwhile: ``min_size`` must find enough of them."""
        found = huge_pages.huge_pages(job.record.page_size, root=job.root)
        unpromised = max(0, found.free - found.reserved) * job.record.page_size
        if unpromised >= job.record.wanted_bytes:
            return super().mount_refused(job, message)
        return PoolShort(
            f"Pool {job.record.name} took {format_size(job.record.got_bytes)} in huge pages, but only"
            f" {format_size(unpromised)} are left that nobody else uses or was promised.",
            hint="See which process takes huge pages (HugePages_Rsvd in /proc/meminfo), then try again.",
        )


def _metadata_left(size_bytes: int, page_size: int) -> int:
    return size_bytes // page_size * min(BASE_PAGE, struct_pages_of(page_size))


def _saved_at_best(record: PoolRecord, size_bytes: int) -> int:
    return struct_pages_of(size_bytes) - _metadata_left(size_bytes, record.page_size) if record.optimized else 0


def _raise(job: Job, node: int, share: NodeShare, pages: int) -> bool:
    """Raise a node's huge pages; ``False`` when it gave fewer."""
    record = job.record
    before = huge_pages.huge_pages(record.page_size, node, root=job.root).persistent
    record.step = PageCountChange(node, before, before + pages)
    job.save()
    metadata, free = kernel.struct_page_bytes(root=job.root), kernel.memory(root=job.root).free_bytes
    _set(job, node, before + pages)
    metadata_now, free_now = kernel.struct_page_bytes(root=job.root), kernel.memory(root=job.root).free_bytes
    got = min(max(0, huge_pages.huge_pages(record.page_size, node, root=job.root).persistent - before), pages)
    taken = got * record.page_size
    if metadata is not None and metadata_now is not None:
        record.saved_bytes += max(0, metadata - metadata_now)
    else:  # what is free shrank by the pages taken, less what came back of their struct pages
        record.saved_bytes += min(max(0, taken - (free - free_now)), _saved_at_best(record, taken))
        record.measured = False
    share.got_bytes += taken
    record.step = None
    job.save()
    return got == pages


def _lower(job: Job, node: int, share: NodeShare, pages: int) -> bool:
    """Lower a node's huge pages; ``False`` when nothing went, or not all of it."""
    record = job.record
    of_node = huge_pages.huge_pages(record.page_size, node, root=job.root)
    of_host = huge_pages.huge_pages(record.page_size, root=job.root)
    spare = min(of_node.free, of_node.persistent, max(0, of_host.free - of_host.reserved))
    asked = min(pages, spare)
    if not asked:
        return False
    record.step = PageCountChange(node, of_node.persistent, of_node.persistent - asked)
    job.save()
    _set(job, node, of_node.persistent - asked)
    now = huge_pages.huge_pages(record.page_size, node, root=job.root)
    gone = min(max(0, of_node.pages - now.pages), asked)
    if gone < asked:  # the rest became surplus pages: make them persistent again, to try once more later
        _set(job, node, now.persistent + asked - gone)
    share.got_bytes -= gone * record.page_size
    record.step = None
    job.save()
    return gone == pages


def _set(job: Job, node: int, pages: int) -> None:
    try:
        huge_pages.set_huge_pages(job.record.page_size, node, pages, root=job.root)
    except OSError as error:
        raise PoolError(
            f"The kernel refused to have {pages} huge pages of {format_size(job.record.page_size)} on node {node}:"
            f" {os.strerror(error.errno or 0)}.",
            hint="Pools are made by root, outside of containers; dmesg may say more.",
        ) from error


def _settle(job: Job) -> None:
    """Find out how far a step came that was cut short (kill -9), and count it.

    What the node has now tells, within the bounds of the step: should others have changed it meanwhile, we
    may leave pages behind, but think no more ours than the step was about.
    """
    record, step = job.record, job.record.step
    if step is None:
        return
    now = huge_pages.huge_pages(record.page_size, step.node, root=job.root).persistent
    low, high = sorted((0, step.to_pages - step.from_pages))
    moved = min(max(now - step.from_pages, low), high) * record.page_size
    share = record.nodes[step.node]
    share.got_bytes = max(0, share.got_bytes + moved)
    if moved > 0:
        record.saved_bytes += _saved_at_best(record, moved)
        record.measured = False
    record.step = None
    job.save()


def _switch_hvo_on(job: Job) -> None:
    record = job.record
    now = huge_pages.hvo(root=job.root)
    if now is None:
        job.report("This kernel has no HVO: the pool will save nothing", 0, record.wanted_bytes)
    elif record.hvo:
        # who switches last must not take "on" for how the administrator had it
        record.switched_hvo = record.switched_hvo or not now or _switched_by_others(job)
        job.save()
        if not now:
            _set_hvo(job, on=True)
        now = True
    record.optimized = bool(now)
    job.save()


def _switch_hvo_back(job: Job) -> None:
    record = job.record
    if record.switched_hvo and not _switched_by_others(job) and huge_pages.hvo(root=job.root):
        _set_hvo(job, on=False)
    record.switched_hvo = False
    job.save()


def _switched_by_others(job: Job) -> bool:
    return any(other.switched_hvo and other.boot_id == job.record.boot_id for other in job.others)


def _set_hvo(job: Job, *, on: bool) -> None:
    try:
        huge_pages.set_hvo(on, root=job.root)
    except OSError as error:
        raise PoolError(
            f"HVO could not be switched {'on' if on else 'off'}: {os.strerror(error.errno or 0)}.",
            hint="Set vm.hugetlb_optimize_vmemmap yourself, or make the pool without HVO.",
        ) from error


def _short(record: PoolRecord) -> PoolShort:
    shares = sorted(record.nodes.items())
    wanted = ", ".join(f"{format_size(share.wanted_bytes)} of node {node}" for node, share in shares)
    got = ", ".join(f"{format_size(share.got_bytes)} of node {node}" for node, share in shares)
    return PoolShort(
        f"Pool {record.name} is to take {wanted} in pages of {format_size(record.page_size)}, and got {got}.",
        hint="Take huge pages soon after boot, run 'echo 1 > /proc/sys/vm/compact_memory' first, or ask for less.",
    )
