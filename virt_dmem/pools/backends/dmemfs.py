# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools of memory that the kernel was told at boot not to use, and so never gave a ``struct page``.

The memory is found, not taken: what was reserved at boot and belongs to no other pool. The file system over it is
our own module's (docs/dmemfs.md); where the kernel has the original dmemfs, see ``dmemfs_original``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from virt_dmem.errors import PoolError, PoolShort, UsageError
from virt_dmem.host import kernel, memory_map
from virt_dmem.host.boot_reservation import choose, memmap
from virt_dmem.host.dmem_cmdline import parameters, wanted
from virt_dmem.host.ranges import Range, common, merged, take, total, whole, without
from virt_dmem.pools.backends import dmemfs_legacy as original
from virt_dmem.pools.backends.base import Backend, Job, Probe, run_program, struct_pages_of
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import GIB, KIB, MIB, format_size, round_up

__all__ = ["Dmemfs", "regions_by_node"]

_BITS_PER_PAGE = 2
"""Of the module's own tables: is it clean, is it dirty."""
_MAPPED_BY = 4 * KIB
"""Page table for each GiB, by which the kernel itself maps the memory where pages of 1 GiB do not fit."""


class Dmemfs(Backend):
    """Ranges of physical memory, of which each pool has its own."""

    name: ClassVar[str] = "dmemfs"
    fstype: ClassVar[str] = "dmemfs"
    zeroes_on_allocation: ClassVar[bool] = True
    has_nodes: ClassVar[bool] = True
    has_struct_pages: ClassVar[bool] = False
    lockable: ClassVar[bool] = False
    ready_ahead: ClassVar[bool] = False  # workers of the module zero what is free (kernel/scrub.c)

    def page_sizes(self, *, root: Path = kernel.ROOT) -> tuple[int, ...]:
        """Return what the module maps by; smaller pages are for who cannot do with larger ones."""
        return (2 * MIB, GIB, 4 * KIB)

    def probe(self, *, root: Path = kernel.ROOT) -> Probe:
        """Tell whether the file system is there, or its module can be loaded."""
        if self._registered(root):
            if original.is_original(root):
                return Probe(available=True, reason="this is the original dmemfs: its memory is zeroed by us")
            return Probe(available=True)
        release = kernel.kernel_release(root=root)
        modules = _text(root / f"lib/modules/{release}/modules.dep")
        if any(line.partition(":")[0].rpartition("/")[2].startswith("dmemfs.ko") for line in modules.splitlines()):
            return Probe(available=True)
        return Probe(
            available=False,
            reason=f"kernel {release} has no module dmemfs; 'make install' builds it where its headers are",
        )

    def _registered(self, root: Path) -> bool:
        return "dmemfs" in _text(root / "proc/filesystems").split()

    def metadata_left(self, size_bytes: int, page_size: int) -> int:
        """Return what the module's own tables take at most."""
        return (
            round_up(size_bytes // page_size * _BITS_PER_PAGE, 8) // 8
            + round_up(size_bytes, GIB) // GIB * _MAPPED_BY
        )

    def bytes_by_node(self, path: Path, mappers: Sequence[int]) -> dict[int, int]:
        """Return what the module says of it; nothing where it is an older one, or the original."""
        try:
            said = os.getxattr(path, "system.dmemfs.nodes").decode()
        except OSError:
            return {}
        return {
            int(node): int(size) for node, _, size in (share.partition("=") for share in said.split(",") if share)
        }

    def nodes(self, *, root: Path = kernel.ROOT) -> tuple[list[int], list[int]]:
        """Return the nodes with memory that was reserved; all of it was meant for guests."""
        if original.is_original(root):
            found = sorted(original.registered(root))
        else:
            found = sorted(memory_map.reserved(with_pools=True, root=root))
        return found, found

    def how_to_have_memory(self, *, root: Path = kernel.ROOT) -> str:
        """Return that it is reserved at boot, and how."""
        return _how_to_reserve(root)

    def default_sizes(
        self, page_size: int, others: Sequence[PoolRecord], *, root: Path = kernel.ROOT
    ) -> dict[int, int]:
        """Return what ``dmem=`` on the kernel's command line says, else all that was reserved and has no pool.

        :raise PoolShort: When there is nothing, or less than ``dmem=`` says.
        """
        free = {node: total(whole(ranges, page_size)) for node, ranges in self._free(others, root).items()}
        if original.is_original(root):
            return {node: size for node, size in free.items() if size}
        asked = wanted(parameters(memory_map.command_line(root=root)), memory_map.ram_by_node(root=root))
        sizes = {node: size // page_size * page_size for node, size in (asked or free).items()}
        sizes = {node: size for node, size in sizes.items() if size}
        if not sizes:
            raise PoolShort("No memory was reserved at boot that has no pool yet.", hint=_how_to_reserve(root))
        return sizes

    def check(self, job: Job) -> None:
        """Refuse what was not reserved, or belongs to another pool.

        :raise PoolShort: Says what each node has.
        """
        self._chosen(job)

    def acquire(self, job: Job) -> None:
        """Choose the pool's ranges: those that it had, as far as they are still there, and others that are free.

        :raise PoolShort: When there are not enough.
        """
        record = job.record
        record.original = original.is_original(job.root)
        record.regions = {node: list(ranges) for node, ranges in self._chosen(job).items()}
        for share in record.nodes.values():
            share.got_bytes = share.wanted_bytes
        self._count_saving(job)
        job.save()

    def _chosen(self, job: Job) -> dict[int, tuple[Range, ...]]:
        record = job.record
        if all(share.got_bytes == share.wanted_bytes for share in record.nodes.values()):  # it may be mounted, too
            return {node: tuple(ranges) for node, ranges in record.regions.items()}
        free = self._free(job.others, job.root, named=record.regions_named)
        chosen: dict[int, tuple[Range, ...]] = {}
        for node, share in record.nodes.items():
            there = free.get(node, ())
            had = whole(common(record.regions.get(node, ()), there), record.page_size)
            pieces = take(had, min(total(had), share.wanted_bytes), record.page_size) or ()
            missing = share.wanted_bytes - total(pieces)
            if missing and record.regions_named:
                raise self._not_there(record, node, had)
            more = take(without(there, pieces), missing, record.page_size)
            if more is None:
                raise self._short(record, free, job.root)
            chosen[node] = merged([*pieces, *more])
        return chosen

    def _free(
        self, others: Sequence[PoolRecord], root: Path, *, named: bool = False
    ) -> dict[int, tuple[Range, ...]]:
        """Return the reserved ranges by node that no other pool has; ``named``: also those we would not find."""
        if original.is_original(root):
            return original.free(others, root)
        taken = [item for other in others for ranges in other.regions.values() for item in ranges]
        given = memory_map.given_away(root=root)
        found = {
            node: without(ranges if named else common(ranges, given), taken)
            for node, ranges in memory_map.reserved(root=root).items()
        }
        return {node: ranges for node, ranges in found.items() if ranges}

    def _not_there(self, record: PoolRecord, node: int, had: tuple[Range, ...]) -> PoolShort:
        missing = without(record.regions.get(node, ()), had)
        named = ", ".join(map(str, missing))
        return PoolShort(
            f"Pool {record.name} is to have {named} of node {node}, which is not (whole pages of"
            f" {format_size(record.page_size)} of) memory that was reserved at boot, has no user, and shares no"
            " section of 128 MiB with the kernel's.",
            hint=f"Boot with {memmap(missing)}, or name other ranges; 'virt-dmem plan-host' writes the parameters.",
        )

    def _short(self, record: PoolRecord, free: dict[int, tuple[Range, ...]], root: Path) -> PoolShort:
        sizes = {node: share.wanted_bytes for node, share in sorted(record.nodes.items())}
        has = {node: total(whole(free.get(node, ()), record.page_size)) for node in sizes}
        return PoolShort(
            f"Pool {record.name} is to have {_by_node(sizes)}, and {_by_node(has)}, in whole pages of"
            f" {format_size(record.page_size)}, were reserved at boot and have no pool.",
            hint=_how_to_reserve(root),
        )

    def _count_saving(self, job: Job) -> None:
        """Note that there are no struct pages, less what the module has instead.

        That the memory has none is the kernel's word (/proc/iomem); it is measured where the kernel counts all its
        struct pages and has no more than its own memory needs.
        """
        record = job.record
        if record.original:
            record.saved_bytes, record.measured = struct_pages_of(record.wanted_bytes), False
            return
        record.saved_bytes = struct_pages_of(record.wanted_bytes) - self.metadata_left(
            record.wanted_bytes, record.page_size
        )
        counted = kernel.struct_page_bytes(root=job.root)
        record.measured = counted is not None and counted <= struct_pages_of(
            memory_map.bytes_with_struct_pages(root=job.root)
        )

    def release(self, job: Job, *, keep_wanted: bool = False) -> int:
        """Note what is no longer the pool's; the host cannot use it before it is booted without reserving it."""
        record = job.record
        before = record.got_bytes
        for node, share in record.nodes.items():
            share.got_bytes = min(share.got_bytes, share.wanted_bytes) if keep_wanted else 0
            if keep_wanted:
                kept = take(record.regions.get(node, ()), share.got_bytes, record.page_size)
                record.regions[node] = list(kept or ())
        if before:
            record.saved_bytes = record.saved_bytes * record.got_bytes // before
        job.save()
        return 0

    def mount_options(self, record: PoolRecord) -> tuple[str, ...]:
        """Return page size and ranges.

        ``compat=hugetlbfs`` lets statfs say what QEMU goes by: it maps the files of such a file system at addresses
        that are multiples of ``f_bsize``, and of no other (``qemu_fd_getpagesize`` in its util/mmap-alloc.c).
        """
        if record.original:
            return (f"pagesize={_size(record.page_size)}",)
        regions = ":".join(f"region={item}" for _, items in sorted(record.regions.items()) for item in items)
        compat = ",compat=hugetlbfs" if record.page_size > 4 * KIB else ""
        return (f"{regions},pagesize={_size(record.page_size)}{compat}",)

    def mount(self, job: Job) -> None:
        """Load the module and mount the pool; its root is 0711, as every pool's.

        :raise PoolError: When the kernel refuses, or what is mounted is not what was asked for.
        """
        record = job.record
        if not self._registered(job.root):
            refusal = run_program("modprobe", "dmemfs")
            if refusal:
                raise PoolError(
                    f"The module dmemfs cannot be loaded: {refusal}",
                    hint="Build it for this kernel: 'make install' where its headers are installed.",
                )
        self._mount(job, "nosuid,nodev,noexec")
        os.chown(record.mount, 0, 0)
        Path(record.mount).chmod(0o711)
        try:
            self._look(record)
        except PoolError:
            self.unmount(record)
            raise

    def _look(self, record: PoolRecord) -> None:
        found = os.statvfs(record.mount)
        size = found.f_blocks * found.f_frsize
        if record.original:
            original.require_usable(record)
        elif size != record.wanted_bytes:
            raise PoolError(
                f"Pool {record.name} is to have {format_size(record.wanted_bytes)}, and the mounted file system has"
                f" {format_size(size)}.",
                hint="Look into the kernel's log (dmesg) for what dmemfs made of its regions.",
            )

    def capacity(self, record: PoolRecord, *, root: Path = kernel.ROOT) -> dict[int, int]:
        """Return the bytes by node; the original tells nothing in statfs, so there the record is believed."""
        if record.original and self.mounted(record, root=root):
            return {node: share.got_bytes for node, share in sorted(record.nodes.items())}
        return super().capacity(record, root=root)

    def zeroes(self, record: PoolRecord) -> bool:
        """Tell whether the file system zeroes: the original does not."""
        return not record.original


def regions_by_node(regions: Sequence[Range], *, root: Path = kernel.ROOT) -> dict[int, list[Range]]:
    """Return by node the ranges that an administrator named.

    :raise UsageError: When one lies on no node.
    """
    found: dict[int, list[Range]] = {}
    for node, ranges in memory_map.node_ranges(root=root).items():
        if mine := common(regions, ranges):
            found[node] = list(mine)
    if total(item for items in found.values() for item in items) != total(regions):
        raise UsageError(
            f"{', '.join(map(str, regions))} is on no node of this host.", hint="See /proc/iomem for its memory."
        )
    return found


def _how_to_reserve(root: Path) -> str:
    """Return the hint for a host that did not reserve enough."""
    asked = parameters(memory_map.command_line(root=root))
    plan = "'virt-dmem plan-host --guest-memory SIZE' writes the kernel parameters for it; then reboot."
    if not asked:
        return f"Memory for dmemfs is reserved at boot: {plan}"
    ram = memory_map.ram_by_node(root=root)
    ranges = choose(ram, {node: round_up(size, memory_map.SECTION) for node, size in wanted(asked, ram).items()})
    given = " ".join(parameter.text for parameter in asked)
    instead = memmap(item for items in (ranges or {}).values() for item in items)
    return (
        f"This kernel does not know {given} and reserved nothing for it."
        f" {f'Boot with {instead} beside it, or instead.' if instead else plan}"
    )


def _by_node(sizes: dict[int, int]) -> str:
    return ", ".join(f"{format_size(size)} of node {node}" for node, size in sizes.items()) or "nothing"


def _size(size_bytes: int) -> str:
    return {4 * KIB: "4K", 2 * MIB: "2M", GIB: "1G"}[size_bytes]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
