# SPDX-License-Identifier: GPL-2.0-or-later
"""Implement pools of huge pages, most of whose struct pages HVO frees: the default on stock kernels.

How the kernel counts (``mm/hugetlb.c``): ``nr_hugepages`` of a node shows all its pages, but a number written
there sets the *persistent* ones, without surplus. Writing too low a number turns pages in use into surplus pages;
so does a page whose struct pages cannot be reallocated for lack of memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from virt_dmem.errors import DmemError, PoolError, PoolShort, UsageError
from virt_dmem.host import huge_pages, hvo_bug, kernel, numa
from virt_dmem.os_errors import explained
from virt_dmem.pools.backends import existing_pages, hugetlbfs_plan, page_counts
from virt_dmem.pools.backends.base import Backend, Job
from virt_dmem.pools.backends.checks import BackendCheck, Result, failed, passed, warned
from virt_dmem.pools.backends.host_options import HostFacts, HostOption, Probe
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord, PageCountChange
from virt_dmem.pools.backends.struct_pages import struct_pages_of
from virt_dmem.pools.elastic import contiguous, kernel_bug
from virt_dmem.pools.elastic import options as elastic_options
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.text import counted
from virt_dmem.units import GIB, MIB, format_size, round_up

if TYPE_CHECKING:
    import argparse

__all__ = ["Hugetlbfs", "HugetlbfsRecord", "PageCountChange"]

_HOST_KEEPS = 256 * MIB  # asked for more, the kernel would reclaim from every process before it gives up


class Hugetlbfs(Backend[HugetlbfsRecord]):
    """Huge pages of one size, taken node by node and reserved for the pool's mount by the kernel."""

    name: ClassVar[str] = "hugetlbfs"
    fstype: ClassVar[str] = "hugetlbfs"
    record = HugetlbfsRecord
    zeroes_on_allocation: ClassVar[bool] = True  # hugetlb_no_page() and hugetlbfs_fallocate() clear each folio
    has_nodes: ClassVar[bool] = True
    holds_nodes: ClassVar[bool] = True
    counts_used: ClassVar[bool] = True

    step_bytes = GIB
    """Bytes taken or given back between two progress reports."""

    def page_sizes(self, *, root: Path = kernel.ROOT) -> tuple[int, ...]:
        """Return the huge page sizes of the kernel, 2 MiB first: on arm64 it has smaller ones as well."""
        sizes = huge_pages.sizes(root=root)
        return tuple(sorted(sizes, key=lambda size: (size != 2 * MIB, size)))

    def probe(self, *, root: Path = kernel.ROOT) -> Probe:
        """Return whether the kernel has huge pages and can free their struct pages."""
        if not huge_pages.sizes(root=root):
            return Probe(available=False, reason="this kernel has no huge pages (CONFIG_HUGETLBFS)")
        if huge_pages.hvo(root=root) is None:
            why = huge_pages.why_no_hvo(kernel.architecture(root=root))
            return Probe(available=True, reason=f"{why}: huge pages save nothing")
        return Probe(available=True)

    def metadata_left(self, size_bytes: int, page_size: int) -> int:
        """Return one base page for each huge page: what HVO keeps (``mm/hugetlb_vmemmap.c``)."""
        return hugetlbfs_plan.metadata_left(size_bytes, page_size)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add ``--no-hvo``, ``--existing-pages``, and those of elastic pools."""
        parser.add_argument(
            "--no-hvo",
            action="store_true",
            help="do not switch HVO on, to keep all struct pages; without effect where it is on already",
        )
        parser.add_argument(
            "--existing-pages",
            action="store_true",
            help="first take huge pages that the host has and that are free: set aside at boot (hugepages=), or by"
            " vm.nr_hugepages; the host keeps them when the pool is destroyed",
        )
        elastic_options.add(parser)

    def settings(self, args: argparse.Namespace, *, sized: bool) -> dict[str, Any]:
        """Return whether HVO is to be switched on and existing pages taken, and the limits of an elastic pool."""
        found: dict[str, Any] = {"hvo": not args.no_hvo, "existing": args.existing_pages}
        if limits := elastic_options.limits(args, sized=sized):
            found["elastic"] = limits
        return found

    def reject_options(self, args: argparse.Namespace, backend: str) -> None:
        """Reject ``--existing-pages`` and ``--elastic`` for another backend."""
        elastic_options.reject(args, backend)
        if args.existing_pages:
            raise UsageError(
                "--existing-pages is about huge pages.", hint=f"A {backend} pool takes none: leave it out."
            )

    def inherited_settings(self, record: HugetlbfsRecord) -> dict[str, Any]:
        """Return whether HVO is to be switched on and existing pages taken, and the limits of an elastic pool."""
        return {"hvo": record.hvo, "existing": record.existing, "elastic": record.elastic}

    def default_sizes(
        self,
        page_size: int,
        settings: Mapping[str, Any],
        others: Sequence[PoolRecord],
        *,
        root: Path = kernel.ROOT,
    ) -> dict[int, int]:
        """Return the bytes by node that an elastic pool always has.

        :raise UsageError: When the pool is not elastic, or its limits are no whole number of pages.
        """
        limits = settings.get("elastic")
        if limits is None:
            return super().default_sizes(page_size, settings, others, root=root)
        return elastic_options.first_sizes(limits, page_size, self.nodes(root=root)[1])

    def elastic(self, record: HugetlbfsRecord) -> bool:
        """Return whether the pool of a segment takes memory for domains, and gives it back after them."""
        return record.elastic is not None

    def checks(self) -> tuple[BackendCheck, ...]:
        """Return the checks of huge pages and HVO."""
        return BackendCheck("huge-pages", self._check_huge_pages), BackendCheck("hvo", _check_hvo)

    def _check_huge_pages(self, records: Sequence[HugetlbfsRecord], root: Path) -> Result:
        probe = self.probe(root=root)
        if not probe.available:
            outcome = failed if records else warned
            return outcome(f"hugetlbfs pools cannot be used here: {probe.reason}.", "Boot a kernel with hugetlbfs.")
        sizes = ", ".join(map(format_size, huge_pages.sizes(root=root)))
        return passed(f"The kernel has huge pages of {sizes}.")

    def host_options(self, size_bytes: int, facts: HostFacts) -> list[HostOption]:
        """Return an option for each huge page size."""
        return [hugetlbfs_plan.option(round_up(size_bytes, page), page, facts) for page in facts.page_sizes]

    def check(self, job: Job[HugetlbfsRecord]) -> None:
        """Reject a size that a node or the host does not have available.

        :raise PoolShort: When it does not.
        :raise PoolError: When the pool is to be elastic, and the kernel loses what HVO optimized.
        """
        record = job.record
        kernel_bug.reject(record, root=job.root)
        available = {node.node: node.memory.available_bytes for node in numa.nodes(root=job.root)}
        missing = {node: share.wanted_bytes - share.got_bytes for node, share in record.nodes.items()}
        if record.existing:
            missing = {
                node: max(0, size - existing_pages.spare_bytes(job, node)) if size > 0 else size
                for node, size in missing.items()
            }
        for node, wanted in missing.items():
            if wanted > available.get(node, 0):
                raise PoolShort(
                    f"Pool {record.name} needs {format_size(wanted)} of node {node}, but only"
                    f" {format_size(available.get(node, 0))} are available there.",
                    hint=f"{_existing_hint(job)}Choose a smaller size, or spread it over other nodes.",
                )
        of_host = kernel.memory(root=job.root).available_bytes
        if (needed := sum(missing.values())) > max(0, of_host - _HOST_KEEPS):
            raise PoolShort(
                f"Pool {record.name} needs {format_size(needed)}, but the host has"
                f" {format_size(of_host)} available, of which it must keep {format_size(_HOST_KEEPS)}.",
                hint=f"{_existing_hint(job)}Choose a smaller size, or free memory on the host first.",
            )

    def acquire(self, job: Job[HugetlbfsRecord]) -> None:
        """Switch HVO on, then raise each node's huge pages until the pool has its size.

        Free pages of the host come first, where the pool is to take them. Pages that the host took back meanwhile
        are allocated again.

        :raise PoolShort: When a node provides less; the message gives both figures of each.
        :raise PoolError: When the kernel rejects it.
        """
        _finish_step(job)
        _switch_hvo_on(job)
        record = job.record
        _restore(job)
        self._forget_gone(job)
        if record.existing:
            _take_existing(job)
        for node, share in sorted(record.nodes.items()):
            if not self._take_of(job, node, share) and record.elastic is None:
                raise _short(job)
        if record.got_bytes < record.wanted_bytes:  # of an elastic pool: what each node provides is known now
            raise _short(job)
        job.report("Allocated huge pages", record.got_bytes, record.wanted_bytes)

    def _take_of(self, job: Job[HugetlbfsRecord], node: int, share: NodeShare) -> bool:
        """Raise a node's huge pages until the pool has its share; return ``False`` when the node provides less."""
        record = job.record
        tries = contiguous.tries_of(job, node) if record.elastic else iter([False])
        while share.got_bytes < share.wanted_bytes:
            job.report(f"Allocating huge pages of node {node}", record.got_bytes, record.wanted_bytes)
            pages = min(share.wanted_bytes - share.got_bytes, max(self.step_bytes, record.page_size))
            if not _raise(job, node, share, pages // record.page_size) and not next(tries, False):
                return False
        return True

    def gone(self, job: Job[HugetlbfsRecord]) -> dict[int, int]:
        """Return the bytes by node of pages that the kernel took: somebody lowered their number."""
        return page_counts.gone_by_segment((job.record, *job.others), root=job.root).get(job.record.segment, {})

    def keep(self, job: Job[HugetlbfsRecord]) -> None:
        """Make surplus pages persistent: the kernel would take them when the pool is unmounted."""
        _finish_step(job)
        _restore(job, anew=False)

    def restore(self, job: Job[HugetlbfsRecord]) -> None:
        """Raise each node's huge pages to what the pools took there, where somebody lowered them.

        :raise PoolShort: When the kernel does not provide them again.
        """
        _finish_step(job)
        _restore(job)
        if gone := self.gone(job):
            has, took = job.record.got_bytes - sum(gone.values()), job.record.got_bytes
            raise PoolShort(
                f"Pool {job.record.name} has only {format_size(has)} of its {format_size(took)}: somebody lowered"
                " the number of huge pages (vm.nr_hugepages), and the kernel cannot provide again what it took.",
                hint=f"Free memory on the host, then run 'virt-dmem pool mount {job.record.pool}'; or, once no"
                f" domain holds memory of it, shrink it to {format_size(has)}.",
            )

    def created_otherwise(self, record: HugetlbfsRecord) -> str:
        """Return that HVO was on, and took the struct pages of a pool that was to keep them."""
        if record.hvo or not huge_pages.hvo() or not record.got_bytes:
            return ""
        return (
            "HVO was on already, so the struct pages of this pool are freed all the same. To keep them destroy it,"
            " run 'sysctl vm.hugetlb_optimize_vmemmap=0', and create it again."
        )

    def given_back(self, record: HugetlbfsRecord) -> int:
        """Return the bytes that were allocated for the segment: pages that the host had stay huge pages."""
        return max(0, record.got_bytes - sum(record.of_host.values()))

    def freeing(self, record: HugetlbfsRecord, *, root: Path = kernel.ROOT) -> hvo_bug.Verdict:
        """Return what is known of how the kernel frees huge pages without their struct pages."""
        return hvo_bug.verdict(kernel.release(root=root)) if record.optimized else hvo_bug.Verdict.GOOD

    def _forget_gone(self, job: Job[HugetlbfsRecord]) -> None:
        """Count what is gone as gone: it cannot be given back, and may be taken again."""
        if gone := self.gone(job):
            job.record.forget(gone)
            job.save()

    def release(self, job: Job[HugetlbfsRecord], *, keep_wanted: bool = False) -> int:
        """Lower each node's huge pages by those of this pool; restore HVO once no pool needs it.

        Others may have changed the counts meanwhile, so they are lowered from their current value, and only by
        free pages that are not reserved. What the host took back already is gone.
        """
        _finish_step(job)
        self._forget_gone(job)
        record = job.record
        before = record.got_bytes
        kept = record.wanted_bytes if keep_wanted else 0
        left = 0
        for node, share in sorted(record.nodes.items()):
            least = share.wanted_bytes if keep_wanted else 0
            while share.got_bytes > max(least, record.of_host.get(node, 0)):
                job.report(f"Freeing huge pages of node {node}", before - record.got_bytes, before - kept)
                ours = share.got_bytes - max(least, record.of_host.get(node, 0))
                if not _lower(
                    job, node, share, min(ours, max(self.step_bytes, record.page_size)) // record.page_size
                ):
                    break
            existing_pages.give_back(record, node, share.got_bytes - least)
            left += max(0, share.got_bytes - least)
        if not record.got_bytes:
            _switch_hvo_back(job)
        job.save()
        if before:
            record.saved_bytes = record.saved_bytes * record.got_bytes // before
        job.report("Freed huge pages", before - record.got_bytes, before - kept)
        return left

    def mount_options(self, record: HugetlbfsRecord) -> tuple[str, ...]:
        """Return the size as minimum and maximum: the kernel reserves the pages for this mount alone."""
        size = record.wanted_bytes
        return (f"pagesize={record.page_size},size={size},min_size={size}",)

    def mount_refused(self, job: Job[HugetlbfsRecord], message: str) -> PoolError:
        """Return ``PoolShort`` when others used the pages meanwhile: ``min_size`` must find enough of them."""
        found = huge_pages.counters(job.record.page_size, root=job.root)
        unreserved = max(0, found.free - found.reserved) * job.record.page_size
        if unreserved >= job.record.wanted_bytes:
            return super().mount_refused(job, message)
        return PoolShort(
            f"Pool {job.record.name} allocated {format_size(job.record.got_bytes)} in huge pages, but only"
            f" {format_size(unreserved)} of them are still free and not reserved by others.",
            hint="Find out which process uses huge pages (HugePages_Rsvd in /proc/meminfo), then try again.",
        )


def _check_hvo(records: Sequence[HugetlbfsRecord], root: Path) -> Result:
    """Check that HVO is available, and was on when the pages of a pool that wants it were allocated."""
    on = huge_pages.hvo(root=root)
    if on is None:
        architecture = kernel.architecture(root=root)
        why = huge_pages.why_no_hvo(architecture)
        return warned(
            f"{why[0].upper()}{why[1:]}: pools of huge pages keep all their struct pages, and nothing is saved.",
            "Use a pool on dmemfs where it is supported (/usr/share/doc/virt-dmem/guide/aarch64.md)."
            if architecture == "aarch64"
            else "Boot a kernel with HVO (x86-64, 5.19 or later), or use a pool on dmemfs.",
        )
    late = [pool.name for pool in records if pool.hvo and pool.got_bytes and not pool.optimized]
    if late:
        return warned(
            f"HVO was off when the pages of pool {', '.join(late)} were allocated: they save nothing.",
            "Shut down the pool's domains, then destroy it and create it again.",
        )
    if kernel.bad_pages_met(root=root):
        return warned(
            "The kernel has found pages in a bad state since it booted, and does not use them again: with HVO,"
            " mostly huge pages that were to be freed.",
            "Look for 'Bad page state' in dmesg. A reboot recovers the memory; do not shrink pools before it.",
        )
    return _check_freeing(kernel.release(root=root)) or passed(
        f"HVO is {'on' if on else 'available; creating a pool switches it on'}."
    )


def _check_freeing(release: str) -> Result | None:
    """Return a warning about a kernel that loses, or may lose, optimized pages when it frees them."""
    match hvo_bug.verdict(release):
        case hvo_bug.Verdict.BAD:
            return warned(
                f"Linux {release} loses huge pages that HVO optimized when they are freed.",
                "Pools work, and save as much as elsewhere. Destroy or shrink one, with --force, only right before"
                " a reboot; or boot a kernel that frees them: Debian 13's linux-image-6.12.113+deb13-amd64, or that"
                " of trixie-backports.",
            )
        case hvo_bug.Verdict.SUSPECT:
            return warned(
                f"Linux {release} may lose huge pages that HVO optimized when they are freed, as 6.12.114 to"
                " 6.12.118 do.",
                "Create and destroy a small pool, and run 'virt-dmem check' again: it sees lost pages, and a reboot"
                " recovers them.",
            )
        case _:
            return None


def _saved_at_best(record: HugetlbfsRecord, size_bytes: int) -> int:
    return (
        struct_pages_of(size_bytes) - hugetlbfs_plan.metadata_left(size_bytes, record.page_size)
        if record.optimized
        else 0
    )


def _restore(job: Job[HugetlbfsRecord], *, anew: bool = True) -> None:
    """Make the pages of this pool and of all complete ones persistent again, in its size and on its nodes."""
    complete = (other for other in job.others if other.state == "ready")
    for count in page_counts.compare((job.record, *complete), root=job.root):
        if count.page_size == job.record.page_size and count.node in job.record.nodes and count.lacking > 0:
            job.report(f"Restoring huge pages of node {count.node}", job.record.got_bytes, job.record.wanted_bytes)
            try:
                page_counts.restore(count, anew=anew, root=job.root)
            except OSError as error:
                raise _rejected(job, count.node, count.wanted, error) from error


def _raise(job: Job[HugetlbfsRecord], node: int, share: NodeShare, pages: int) -> bool:
    """Raise a node's huge pages; return ``False`` when it provides fewer."""
    record = job.record
    before = huge_pages.counters(record.page_size, node, root=job.root).persistent
    record.step = PageCountChange(node, before, before + pages)
    job.save()
    metadata, free = kernel.struct_page_bytes(root=job.root), kernel.memory(root=job.root).free_bytes
    _set(job, node, before + pages)
    metadata_now, free_now = kernel.struct_page_bytes(root=job.root), kernel.memory(root=job.root).free_bytes
    got = min(max(0, huge_pages.counters(record.page_size, node, root=job.root).persistent - before), pages)
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


def _lower(job: Job[HugetlbfsRecord], node: int, share: NodeShare, pages: int) -> bool:
    """Lower a node's huge pages; return ``False`` when not all of them could be freed."""
    record = job.record
    of_node = huge_pages.counters(record.page_size, node, root=job.root)
    of_host = huge_pages.counters(record.page_size, root=job.root)
    spare = min(of_node.free, of_node.persistent, max(0, of_host.free - of_host.reserved))
    asked = min(pages, spare)
    if not asked:
        return False
    record.step = PageCountChange(node, of_node.persistent, of_node.persistent - asked)
    job.save()
    _set(job, node, of_node.persistent - asked)
    now = huge_pages.counters(record.page_size, node, root=job.root)
    gone = min(max(0, of_node.pages - now.pages), asked)
    if gone < asked:  # the rest became surplus pages: make them persistent again, to try once more later
        _set(job, node, now.persistent + asked - gone)
    share.got_bytes -= gone * record.page_size
    record.step = None
    job.save()
    return gone == pages


def _set(job: Job[HugetlbfsRecord], node: int, pages: int) -> None:
    try:
        huge_pages.set_persistent(job.record.page_size, node, pages, root=job.root)
    except OSError as error:
        raise _rejected(job, node, pages, error) from error


def _rejected(job: Job[HugetlbfsRecord], node: int, pages: int, error: OSError) -> DmemError:
    doing = (
        f"The kernel rejected {counted(pages, 'huge page')} of {format_size(job.record.page_size)} on node {node}"
    )
    hint = "Pools have to be created by root, outside of containers; dmesg may say more."
    return explained(error, kind=PoolError, doing=doing, otherwise=hint)


def _finish_step(job: Job[HugetlbfsRecord]) -> None:
    """Account for a change of a node's pages that was interrupted (kill -9).

    The node's current count shows how far it came, within the bounds of the change: should others have changed the
    count meanwhile, pages may be left behind, but never more are taken for the pool's than the change was about.
    """
    record, step = job.record, job.record.step
    if step is None:
        return
    now = huge_pages.counters(record.page_size, step.node, root=job.root).persistent
    low, high = sorted((0, step.to_pages - step.from_pages))
    moved = min(max(now - step.from_pages, low), high) * record.page_size
    share = record.nodes[step.node]
    share.got_bytes = max(0, share.got_bytes + moved)
    if moved > 0:
        record.saved_bytes += _saved_at_best(record, moved)
        record.measured = False
    record.step = None
    job.save()


def _switch_hvo_on(job: Job[HugetlbfsRecord]) -> None:
    record = job.record
    now = huge_pages.hvo(root=job.root)
    if now is None:
        job.report("This kernel has no HVO: the pool will save nothing", 0, record.wanted_bytes)
    elif record.hvo:
        # a pool that finds HVO on because of another pool must not take that for the administrator's setting
        record.switched_hvo = record.switched_hvo or not now or _switched_by_others(job)
        job.save()
        if not now:
            _set_hvo(job, on=True)
        now = True
    record.optimized = bool(now)
    job.save()


def _switch_hvo_back(job: Job[HugetlbfsRecord]) -> None:
    record = job.record
    if record.switched_hvo and not _switched_by_others(job) and huge_pages.hvo(root=job.root):
        _set_hvo(job, on=False)
    record.switched_hvo = False
    job.save()


def _switched_by_others(job: Job[HugetlbfsRecord]) -> bool:
    return any(
        isinstance(other, HugetlbfsRecord) and other.switched_hvo and other.boot_id == job.record.boot_id
        for other in job.others
    )


def _set_hvo(job: Job[HugetlbfsRecord], *, on: bool) -> None:
    try:
        huge_pages.set_hvo(on, root=job.root)
    except OSError as error:
        doing = f"HVO could not be switched {'on' if on else 'off'}"
        hint = "Set vm.hugetlb_optimize_vmemmap yourself, or create the pool with --no-hvo."
        raise explained(error, kind=PoolError, doing=doing, otherwise=hint) from error


def _take_existing(job: Job[HugetlbfsRecord]) -> None:
    """Take free pages of the host; estimate what they save, as nobody counted when they were allocated."""
    record = job.record
    if taken := existing_pages.take(job):
        record.optimized = existing_pages.optimized_at_boot(root=job.root)
        record.saved_bytes += _saved_at_best(record, taken)
        record.measured = False
        job.save()


def _existing_hint(job: Job[HugetlbfsRecord]) -> str:
    """Return that the host has free huge pages which the pool is not to take."""
    spare = {node: existing_pages.spare_bytes(job, node) for node in job.record.nodes}
    if job.record.existing or not any(spare.values()):
        return ""
    there = ", ".join(f"{format_size(size)} of node {node}" for node, size in spare.items() if size)
    return f"The host has free huge pages of this size already ({there}): take them with --existing-pages. "


def _short(job: Job[HugetlbfsRecord]) -> PoolShort:
    record = job.record
    shares = sorted(record.nodes.items())
    had = {node: share.got_bytes for node, share in shares}
    wanted = ", ".join(f"{format_size(share.wanted_bytes)} of node {node}" for node, share in shares)
    got = ", ".join(f"{format_size(share.got_bytes)} of node {node}" for node, share in shares)
    return PoolShort(
        f"Pool {record.name} needs {wanted} in pages of {format_size(record.page_size)}, but got {got}.",
        had=had,
        hint=f"{contiguous.why_short(job)}Stop another domain, or try again: the kernel moves pages meanwhile."
        if record.elastic
        else f"{_existing_hint(job)}Create pools soon after boot, run 'echo 1 > /proc/sys/vm/compact_memory' first,"
        " or ask for less.",
    )
