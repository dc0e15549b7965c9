# SPDX-License-Identifier: GPL-2.0-or-later
"""Implement pools of memory that is kept from the kernel at boot, and so has no ``struct page``.

Such memory is found rather than taken: whatever was reserved at boot and belongs to no other pool. The file system
on it is virt-dmem's own module (docs/guide/dmemfs.md); for kernels with the original dmemfs, see ``dmemfs_legacy``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from virt_dmem.errors import PermissionRefused, PoolError, PoolShort, UsageError
from virt_dmem.host import dmemfs_support, kernel, kernel_log
from virt_dmem.host.ram import memory_map
from virt_dmem.host.ram.dmem_cmdline import parameters, wanted
from virt_dmem.host.ram.ranges import Range, common, merged, parse_range, take, total, whole, without
from virt_dmem.pools.backends import dmemfs_legacy as original
from virt_dmem.pools.backends import dmemfs_plan
from virt_dmem.pools.backends.base import MOUNT_FLAGS, Backend, Job, run_program
from virt_dmem.pools.backends.checks import BackendCheck, Result, passed, warned
from virt_dmem.pools.backends.host_options import HostFacts, HostOption, Probe
from virt_dmem.pools.backends.struct_pages import struct_pages_of
from virt_dmem.pools.record import PoolRecord
from virt_dmem.text import counted
from virt_dmem.units import GIB, KIB, MIB, format_size

if TYPE_CHECKING:
    import argparse

__all__ = ["Dmemfs", "DmemfsRecord", "large_pages_off"]

_SMALL = 4 * KIB
"""A page of the pool that the kernel maps as it is."""


class DmemfsRecord(PoolRecord):
    """The record of a segment of dmemfs."""

    regions: dict[int, list[Range]] = msgspec.field(default_factory=dict)
    """Physical memory of the segment, by node."""
    regions_named: bool = False
    """The regions were named by the administrator; otherwise others may be chosen after the next boot."""
    original: bool = False
    """It is the original dmemfs, which does not zero its memory."""


class Dmemfs(Backend[DmemfsRecord]):
    """Ranges of physical memory, each belonging to one pool."""

    name: ClassVar[str] = "dmemfs"
    fstype: ClassVar[str] = "dmemfs"
    record = DmemfsRecord
    zeroes_on_allocation: ClassVar[bool] = True
    has_nodes: ClassVar[bool] = True
    has_struct_pages: ClassVar[bool] = False
    lockable: ClassVar[bool] = False
    prezeroable: ClassVar[bool] = False  # workers of the module zero free memory (kernel/scrub.c)

    def page_sizes(self, *, root: Path = kernel.ROOT) -> tuple[int, ...]:
        """Return the page sizes by which the module maps; 4 KiB is for cases where larger pages do not fit."""
        return (2 * MIB, GIB, 4 * KIB)

    def probe(self, *, root: Path = kernel.ROOT) -> Probe:
        """Return whether guests can run on it here, and it is registered, or its module can be loaded."""
        registered = self._registered(root)
        if registered and original.is_original(root):
            return Probe(available=True, reason="this is the original dmemfs: virt-dmem zeroes its memory")
        if reason := dmemfs_support.unsupported(root=root):
            return Probe(available=False, reason=f"dmemfs is not supported on this host: {reason}")
        if registered:
            return Probe(available=True)
        release = kernel.release(root=root)
        modules = _text(root / f"lib/modules/{release}/modules.dep")
        if any(line.partition(":")[0].rpartition("/")[2].startswith("dmemfs.ko") for line in modules.splitlines()):
            return Probe(available=True)
        return Probe(
            available=False,
            reason=f"kernel {release} has no module dmemfs; virt-dmem-dkms builds it where its headers are",
        )

    def _registered(self, root: Path) -> bool:
        return "dmemfs" in _text(root / "proc/filesystems").split()

    def metadata_left(self, size_bytes: int, page_size: int) -> int:
        """Return the bytes of the module's own tables, at most."""
        return dmemfs_plan.metadata_left(size_bytes, page_size)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add ``--region``."""
        parser.add_argument(
            "--region",
            action="append",
            default=[],
            metavar="BASE+SIZE",
            help="reserved range for dmemfs (repeatable); 'auto', the default: all that belong to no pool yet",
        )

    def reject_options(self, args: argparse.Namespace, backend: str) -> None:
        """Reject ``--region`` for other backends.

        :raise UsageError: When it is given.
        """
        if args.region:
            raise UsageError(f"A {backend} pool has no regions.", hint="--region requires --backend dmemfs.")

    def settings(self, args: argparse.Namespace, *, sized: bool) -> dict[str, Any]:
        """Return the regions that the administrator named; nothing where they are to be chosen.

        :raise UsageError: When they are not valid, or given beside a size.
        """
        if args.region in ([], ["auto"]):
            return {}
        if sized:
            raise UsageError(
                "--region cannot be combined with --size or --node.",
                hint="A region has a size of its own: omit those.",
            )
        return {
            "regions": _regions_by_node([parse_range(text) for text in args.region]),
            "regions_named": True,
        }

    def checks(self) -> tuple[BackendCheck, ...]:
        """Return the check of the kernel under dmemfs pools."""
        return (BackendCheck("dmemfs", self._check_kernel),)

    def _check_kernel(self, records: Sequence[DmemfsRecord], root: Path) -> Result:
        found = _not_reserved(records, root) or self._small_mappings(records, root)
        if found:
            return found
        if not records:
            return passed("No pool uses dmemfs.")
        nested = kernel.nested_guests_need_struct_pages(root=root)
        also = ", and no guests inside guests unless kvm.allow_unsafe_mappings is 1" if nested else ""
        return passed(
            f"{counted(len(records), 'segment is', 'segments are')} on dmemfs, whose memory cannot be pinned: no"
            f" post-copy migration{also}."
        )

    def _small_mappings(self, records: Sequence[DmemfsRecord], root: Path) -> Result | None:
        """Return a warning where the kernel maps large pages by 4 KiB."""
        if off := large_pages_off(records, root=root):
            return warned(*off)
        for record in records:
            if record.page_size <= _SMALL:
                continue
            mount = self.mounted(record, root=root)
            if mount and not _has_huge_entries(mount.device, root):
                return warned(
                    f"Linux {kernel.release(root=root)} maps the pages of pool {record.name} by 4 KiB.",
                    "Boot Linux 6.12 or later (dmesg says what dmemfs lacks), or use a pool of huge pages.",
                )
        return None

    def host_options(self, size_bytes: int, facts: HostFacts) -> list[HostOption]:
        """Return the option of memory reserved at boot."""
        return [dmemfs_plan.option(size_bytes, facts)]

    def bytes_by_node(self, path: Path, mappers: Sequence[int]) -> dict[int, int]:
        """Return the bytes of a file by node; empty with an older module, and with the original."""
        try:
            said = os.getxattr(path, "system.dmemfs.nodes").decode()
        except OSError:
            return {}
        return {
            int(node): int(size) for node, _, size in (share.partition("=") for share in said.split(",") if share)
        }

    def nodes(self, *, root: Path = kernel.ROOT) -> tuple[list[int], list[int]]:
        """Return the nodes with memory reserved at boot, all of which is meant for guests."""
        if original.is_original(root):
            found = sorted(original.registered(root))
        else:
            self._load_for_map(root)
            found = sorted(memory_map.reserved(with_pools=True, root=root))
        return found, found

    def how_to_have_memory(self, *, root: Path = kernel.ROOT) -> str:
        """Return the hint that memory is reserved at boot, and how."""
        return dmemfs_plan.how_to_reserve(root)

    def default_sizes(
        self,
        page_size: int,
        settings: Mapping[str, Any],
        others: Sequence[PoolRecord],
        *,
        root: Path = kernel.ROOT,
    ) -> dict[int, int]:
        """Return the sizes of named regions, of ``dmem=`` on the kernel's command line, or of all free memory.

        Free memory was reserved at boot and belongs to no pool.

        :raise PoolShort: When there is none, or less than ``dmem=`` asks for.
        """
        if settings.get("regions_named"):
            return {node: total(ranges) for node, ranges in settings["regions"].items()}
        free = {node: total(whole(ranges, page_size)) for node, ranges in self._free(others, root).items()}
        if original.is_original(root):
            return {node: size for node, size in free.items() if size}
        asked = wanted(parameters(memory_map.command_line(root=root)), memory_map.ram_by_node(root=root))
        sizes = {node: size // page_size * page_size for node, size in (asked or free).items()}
        sizes = {node: size for node, size in sizes.items() if size}
        if not sizes:
            raise PoolShort(
                "No memory is available for dmemfs: none was reserved at boot, or all of it belongs to pools.",
                hint=dmemfs_plan.how_to_reserve(root),
            )
        return sizes

    def check(self, job: Job[DmemfsRecord]) -> None:
        """Reject memory that was not reserved at boot, or belongs to another pool.

        :raise PoolShort: When a node has too little; the message says how much each has.
        """
        self._chosen(job)

    def acquire(self, job: Job[DmemfsRecord]) -> None:
        """Choose the pool's ranges: those it had, as far as they still exist, and free ones for the rest.

        :raise PoolShort: When there are not enough.
        """
        record = job.record
        record.original = original.is_original(job.root)
        record.regions = {node: list(ranges) for node, ranges in self._chosen(job).items()}
        for share in record.nodes.values():
            share.got_bytes = share.wanted_bytes
        self._count_saving(job)
        job.save()

    def _chosen(self, job: Job[DmemfsRecord]) -> dict[int, tuple[Range, ...]]:
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
                raise self._not_there(record, node, had, job.root)
            more = take(without(there, pieces), missing, record.page_size)
            if more is None:
                raise self._short(record, free, job.root)
            chosen[node] = merged([*pieces, *more])
        return chosen

    def _free(
        self, others: Sequence[PoolRecord], root: Path, *, named: bool = False
    ) -> dict[int, tuple[Range, ...]]:
        """Return the reserved ranges by node that belong to no other pool; ``named``: also those only named."""
        if original.is_original(root):
            return original.free(
                root, taken=any(isinstance(other, DmemfsRecord) and other.original for other in others)
            )
        self._load_for_map(root)
        in_pools = (other.regions for other in others if isinstance(other, DmemfsRecord))
        taken = [item for regions in in_pools for ranges in regions.values() for item in ranges]
        given = memory_map.given_away(root=root)
        found = {
            node: without(ranges if named else common(ranges, given), taken)
            for node, ranges in memory_map.reserved(root=root).items()
        }
        return {node: ranges for node, ranges in found.items() if ranges}

    def _load_for_map(self, root: Path) -> None:
        """Load the module where nothing else shows the firmware's map of memory."""
        if kernel.architecture(root=root) != "x86_64":
            self._load(root)

    def _not_there(self, record: DmemfsRecord, node: int, had: tuple[Range, ...], root: Path) -> PoolShort:
        missing = without(record.regions.get(node, ()), had)
        named = ", ".join(map(str, missing))
        return PoolShort(
            f"Pool {record.name} needs {named} of node {node}, which is not (whole pages of"
            f" {format_size(record.page_size)} of) memory that was reserved at boot, is unused, and shares no"
            " section of 128 MiB with the kernel's.",
            hint=dmemfs_plan.boot_with(missing, root=root),
        )

    def _short(self, record: DmemfsRecord, free: dict[int, tuple[Range, ...]], root: Path) -> PoolShort:
        sizes = {node: share.wanted_bytes for node, share in sorted(record.nodes.items())}
        has = {node: total(whole(free.get(node, ()), record.page_size)) for node in sizes}
        return PoolShort(
            f"Pool {record.name} needs {_by_node(sizes)}, but only {_by_node(has)}, in whole pages of"
            f" {format_size(record.page_size)}, were reserved at boot and belong to no pool.",
            hint=dmemfs_plan.how_to_reserve(root),
        )

    def _count_saving(self, job: Job[DmemfsRecord]) -> None:
        """Record the struct pages saved: all of them, less the module's own tables.

        That the memory has none follows from /proc/iomem; it is measured where the kernel counts all its struct
        pages, and has no more than its own memory needs.
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

    def release(self, job: Job[DmemfsRecord], *, keep_wanted: bool = False) -> int:
        """Record the memory as given back; the host can use it once it is booted without reserving it."""
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

    def mount_options(self, record: DmemfsRecord) -> tuple[str, ...]:
        """Return page size and ranges.

        ``compat=hugetlbfs`` makes statfs report the type that QEMU checks: it aligns mappings to ``f_bsize`` on
        such a file system only (``qemu_fd_getpagesize`` in its util/mmap-alloc.c).
        """
        if record.original:
            return (f"pagesize={_size(record.page_size)}",)
        regions = ":".join(f"region={item}" for _, items in sorted(record.regions.items()) for item in items)
        compat = ",compat=hugetlbfs" if record.page_size > 4 * KIB else ""
        return (f"{regions},pagesize={_size(record.page_size)}{compat}",)

    def mount(self, job: Job[DmemfsRecord]) -> None:
        """Load the module and mount the pool; its root is 0711, as every pool's.

        :raise PoolError: When the kernel rejects it, for the reason in its log, or mounts another size.
        """
        record = job.record
        self._load(job.root)
        with kernel_log.following(root=job.root) as said:
            try:
                self._mount(job, *MOUNT_FLAGS)
            except PoolError as error:
                raise _explained(record, error, said()) from error
        os.chown(record.mount, 0, 0)
        Path(record.mount).chmod(0o711)
        try:
            self._require_usable(record)
        except PoolError:
            self.unmount(record)
            raise

    def _load(self, root: Path) -> None:
        """Load the module; only the running kernel's, not into a tree of another host.

        :raise PoolError: When it cannot be loaded.
        """
        if root != kernel.ROOT or self._registered(root):
            return
        if refusal := run_program("modprobe", "dmemfs"):
            raise PoolError(
                f"The module dmemfs cannot be loaded: {refusal}",
                hint="Build it for this kernel: install virt-dmem-dkms and the kernel's headers.",
            )

    def _require_usable(self, record: DmemfsRecord) -> None:
        found = os.statvfs(record.mount)
        size = found.f_blocks * found.f_frsize
        if record.original:
            original.require_usable(record)
        elif size != record.wanted_bytes:
            raise PoolError(
                f"Pool {record.name} needs {format_size(record.wanted_bytes)}, but the mounted file system has"
                f" {format_size(size)}.",
                hint="The kernel log (dmesg) says how dmemfs read its regions.",
            )

    def capacity(self, record: DmemfsRecord, *, root: Path = kernel.ROOT) -> dict[int, int]:
        """Return the bytes by node; from the record for the original, whose statfs reports none."""
        if record.original and self.mounted(record, root=root):
            return {node: share.got_bytes for node, share in sorted(record.nodes.items())}
        return super().capacity(record, root=root)

    def zeroes(self, record: DmemfsRecord) -> bool:
        """Return whether the file system zeroes memory: the original does not."""
        return not record.original


def _explained(record: DmemfsRecord, error: PoolError, said: Sequence[str]) -> PoolError:
    """Return the error of a mount with the module's reason, which mount(8) shows with some kernels only."""
    if reason := dmemfs_support.refused_by(said):
        return PoolError(
            f"Pool {record.name} cannot be mounted, as dmemfs is not supported on this host: {reason}.",
            hint=f"On arm64 it needs {dmemfs_support.NEEDS}. Use a pool of huge pages instead.",
        )
    reasons = [line for line in said if line.startswith("dmemfs: region ")]
    return PoolError(f"{error.message} The kernel's log: {reasons[-1]}.", hint=error.hint) if reasons else error


def _has_huge_entries(device: int, root: Path) -> bool:
    """Return whether the module maps by large entries, as it reports by mount; the original reports nothing."""
    reported = root / f"sys/fs/dmemfs/{os.major(device)}:{os.minor(device)}/huge_entries"
    return not reported.exists() or reported.read_text().strip() != "0"


def _not_reserved(records: Sequence[DmemfsRecord], root: Path) -> Result | None:
    """Return a warning where ``dmem=`` is on the kernel's command line and was not understood."""
    asked = parameters(memory_map.command_line(root=root))
    if not asked or any(record.original for record in records):
        return None
    try:
        reserved = memory_map.reserved(root=root)
        want = sum(wanted(asked, memory_map.ram_by_node(root=root)).values())
    except PermissionRefused:
        return None
    has = sum(map(total, reserved.values())) + sum(record.wanted_bytes for record in records)
    if has >= want:
        return None
    return warned(
        f"{' '.join(parameter.text for parameter in asked)} asks for {format_size(want)}, but {format_size(has)}"
        " were reserved: this kernel does not know that parameter.",
        "'virt-dmem plan-host --all --guest-memory SIZE' prints the parameters that do it.",
    )


def large_pages_off(records: Iterable[PoolRecord], *, root: Path = kernel.ROOT) -> tuple[str, str] | None:
    """Return that the kernel's setting keeps it from mapping large pages of dmemfs pools, and the remedy, if so."""
    large = [record for record in records if isinstance(record, DmemfsRecord) and record.page_size > _SMALL]
    enabled = root / "sys/kernel/mm/transparent_hugepage/enabled"
    if not large or "[never]" not in _text(enabled):
        return None
    return (
        f"Transparent huge pages are off, so the kernel maps the pages of pool {large[0].name} by 4 KiB: its guests"
        " have more TLB misses, and need more memory for page tables.",
        f"echo madvise >/{enabled.relative_to(root)}; it applies to guests from their next start on.",
    )


def _regions_by_node(regions: Sequence[Range], *, root: Path = kernel.ROOT) -> dict[int, list[Range]]:
    """Return the ranges that an administrator named, by node.

    :raise UsageError: When one is on no node.
    """
    found: dict[int, list[Range]] = {}
    for node, ranges in memory_map.node_ranges(root=root).items():
        if mine := common(regions, ranges):
            found[node] = list(mine)
    if total(item for items in found.values() for item in items) != total(regions):
        raise UsageError(
            f"{', '.join(map(str, regions))} is on no node of this host.", hint="/proc/iomem lists its memory."
        )
    return found


def _by_node(sizes: dict[int, int]) -> str:
    return ", ".join(f"{format_size(size)} of node {node}" for node, size in sizes.items()) or "nothing"


def _size(size_bytes: int) -> str:
    return {4 * KIB: "4K", 2 * MIB: "2M", GIB: "1G"}[size_bytes]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
