# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``virt-dmem check`` looks at for dmemfs: the kernel it runs on, and domains that cannot work on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domain_xml.requirements import require_possible
from virt_dmem.errors import DmemError, DomainRefused, PermissionRefused
from virt_dmem.host import kernel, memory_map
from virt_dmem.host.dmem_cmdline import parameters, wanted
from virt_dmem.host.ranges import total
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import KIB, format_size

__all__ = ["complaint", "impossible"]


def complaint(records: Sequence[PoolRecord], *, root: Path) -> tuple[str, str] | None:
    """Return what is not as it should be for dmemfs, and what to do; ``None`` when all is well."""
    if lost := _not_reserved(records, root):
        return lost
    large = [record for record in records if record.page_size > 4 * KIB]
    if not large:
        return None
    enabled = root / "sys/kernel/mm/transparent_hugepage/enabled"
    if enabled.exists() and "[never]" in enabled.read_text():
        return (
            f"Transparent huge pages are off, so the kernel maps the pages of pool {large[0].name} by 4 KiB:"
            " its guests take more TLB misses, and more memory for page tables.",
            f"echo madvise >/{enabled.relative_to(root)}; guests have it from their next start on.",
        )
    for record in large:
        mount = backend(record.backend).mounted(record, root=root)
        if mount and not _has_huge_entries(mount.device, root):
            return (
                f"Linux {kernel.kernel_release(root=root)} maps the pages of pool {record.name} by 4 KiB.",
                "Boot Linux 6.12 or later (dmesg tells what dmemfs lacks), or use a pool of huge pages.",
            )
    return None


def _has_huge_entries(device: int, root: Path) -> bool:
    """Tell what the module says of a mount; the original dmemfs says nothing."""
    told = root / f"sys/fs/dmemfs/{os.major(device)}:{os.minor(device)}/huge_entries"
    return not told.exists() or told.read_text().strip() != "0"


def _not_reserved(records: Sequence[PoolRecord], root: Path) -> tuple[str, str] | None:
    """Look whether ``dmem=`` is on the kernel's command line and was not understood."""
    asked = parameters(memory_map.command_line(root=root))
    if not asked or any(record.original for record in records):
        return None
    try:
        reserved = memory_map.reserved(root=root)
    except PermissionRefused:
        return None
    want = sum(wanted(asked, memory_map.ram_by_node(root=root)).values())
    has = sum(map(total, reserved.values())) + sum(record.wanted_bytes for record in records)
    if has >= want:
        return None
    return (
        f"{' '.join(parameter.text for parameter in asked)} asks for {format_size(want)}, and {format_size(has)}"
        " were reserved: this kernel does not know that parameter.",
        "'virt-dmem plan-host --guest-memory SIZE' writes the memmap= parameters that do it.",
    )


def impossible(domains: Iterable[tuple[DomainMemory, PoolRecord]]) -> list[DomainRefused]:
    """Return for each domain that cannot work on its pool why not."""
    found = []
    for memory, record in domains:
        kind = backend(record.backend)
        try:
            require_possible(memory, record.pool, may_lock=kind.lockable, may_pin=kind.has_struct_pages)
        except DmemError as refusal:
            found.append(DomainRefused(refusal.message, hint=refusal.hint))
    return found
