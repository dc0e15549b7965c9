# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan a host for pools on dmemfs: what keeps memory from its kernel, and what that saves.

x86: ranges of each node, by ``memmap=``. Elsewhere there is no such parameter, and ``mem=`` keeps the upper end of
all memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from virt_dmem.host import kernel
from virt_dmem.host.ram import memory_map
from virt_dmem.host.ram.boot_reservation import ISLANDS, choose, cut, memmap
from virt_dmem.host.ram.dmem_cmdline import parameters, wanted
from virt_dmem.host.ram.ranges import Range, common, total
from virt_dmem.pools.backends.host_options import (
    HostFacts,
    HostOption,
    by_node_options,
    exact_size,
    host_option,
    shares,
)
from virt_dmem.units import GIB, KIB, MIB, format_size, round_up

__all__ = ["boot_with", "how_to_reserve", "metadata_left", "option"]

_NAME = "dmemfs"
_BITS_PER_PAGE = 2
"""In the module's own tables: one for zeroed pages, one for written pages."""
_PAGE_TABLE_PER_GIB = 4 * KIB
"""Page table by which the kernel itself maps each GiB where pages of 1 GiB do not fit."""
_UNPINNABLE = (
    "Such memory cannot be pinned: no disks with cache='none', no virtio-mem, no vDPA."
    " /usr/share/doc/virt-dmem/guide/dmemfs.md explains when huge pages are the better choice. What remains are the"
    " module's own tables."
)
_CREATE = f"virt-dmem pool create NAME --backend {_NAME} --page-size 2M"


@dataclass
class _Plan:
    """How to boot, and the command that then creates the pool; empty where that is not possible."""

    line: str
    create: str
    notes: list[str] = field(default_factory=list)


def option(size_bytes: int, facts: HostFacts) -> HostOption:
    """Return the option of memory reserved at boot, at this host's addresses where they are known."""
    size = round_up(size_bytes, memory_map.SECTION)
    plan = _by_ranges(size, facts) if facts.architecture == "x86_64" else _from_the_top(size, facts)
    probe = facts.probe(_NAME)
    missing = [] if probe.available else [f"Not available here yet: {probe.reason}."]
    return host_option(
        _NAME,
        size,
        2 * MIB,
        left=metadata_left(size, 2 * MIB),
        line=plan.line,
        pool_create=plan.create if probe.available else "",
        notes=[_UNPINNABLE, *plan.notes, *missing],
        base_page=facts.base_page,
    )


def metadata_left(size_bytes: int, page_size: int) -> int:
    """Return the bytes of the module's own tables, at most."""
    return (
        round_up(size_bytes // page_size * _BITS_PER_PAGE, 8) // 8
        + round_up(size_bytes, GIB) // GIB * _PAGE_TABLE_PER_GIB
    )


def _by_ranges(size: int, facts: HostFacts) -> _Plan:
    by_node = shares(size, memory_map.SECTION, facts)
    ranges = choose(facts.ram, by_node) if facts.ram else None
    create = f"{_CREATE} {by_node_options(by_node)}"
    grub = (
        "In GRUB's configuration '$' is written '\\\\\\$' between double quotes; --write-grub does so. More than"
        " four such parameters disable the kernel's address randomization (physical KASLR)."
    )
    if ranges:
        line = memmap(item for items in ranges.values() for item in items)
        known = "These are addresses of this host: whole sections of 128 MiB, so that no struct page remains."
        return _Plan(line, create, [known, grub])
    line = " ".join(f"memmap={exact_size(share)}$START{node}" for node, share in by_node.items())
    why = _unknown(facts, "This host does not have that much memory outside of its lowest 1 GiB.")
    start = "For each START insert an address of that node's RAM in /proc/iomem, on a boundary of 128 MiB."
    return _Plan(line, create, [why, start, grub])


def _unknown(facts: HostFacts, too_much: str) -> str:
    if facts.ram:
        return too_much
    return "The addresses of this host's memory are not known; root may be able to read them."


def _from_the_top(size: int, facts: HostFacts) -> _Plan:
    found = cut(facts.ram, facts.in_memory_map, size) if facts.ram else None
    if found is None:
        why = _unknown(facts, "This host does not have that much memory besides what it needs itself.")
        keep = "For SIZE insert what the host keeps; the guests get the rest, from the upper end of its memory."
        return _Plan("mem=SIZE", _CREATE, [why, keep])
    notes = [
        f"mem= withholds the upper end of the host's memory, {format_size(found.size)}: the kernel, the initrd and"
        f" the firmware's tables may lie there, and {format_size(ISLANDS)} more than the guests' are for them. The"
        " pool gets what is left."
    ]
    kept = {node: total(common(ranges, [Range(0, found.start)])) for node, ranges in sorted(facts.ram.items())}
    emptied = [node for node, size in kept.items() if not size]
    if emptied:
        most = total(facts.ram[max(emptied)]) - GIB - ISLANDS
        notes.append(
            f"Node {', '.join(map(str, emptied))} would have no memory for the kernel, which then takes no guest's"
            f" memory from it by its number: this way a pool of {format_size(max(0, most))} at most is possible."
        )
        return _Plan("mem=SIZE", "", notes)
    if len(kept) > 1:
        each = ", ".join(f"{format_size(size)} of node {node}" for node, size in kept.items())
        notes.append(f"The host keeps {each}: mem= cannot choose nodes.")
    return _Plan(f"mem={exact_size(found.mem)}", _CREATE, notes)


def boot_with(ranges: Iterable[Range], *, root: Path = kernel.ROOT) -> str:
    """Return the hint by which parameters these ranges would be reserved."""
    if kernel.architecture(root=root) == "x86_64":
        return (
            f"Boot with {memmap(ranges)}, or name other ranges; 'virt-dmem plan-host --all' prints the parameters."
        )
    return "Boot with a smaller mem=, or name other ranges; 'virt-dmem plan-host --all' prints the parameter."


def how_to_reserve(root: Path) -> str:
    """Return the hint for a host on which too little was reserved."""
    asked = parameters(memory_map.command_line(root=root))
    plan = "'virt-dmem plan-host --all --guest-memory SIZE' prints the kernel parameters for it; then reboot."
    if not asked:
        return f"Memory for dmemfs is reserved at boot: {plan}"
    ram, instead = memory_map.ram_by_node(root=root), ""
    if kernel.architecture(root=root) == "x86_64":
        sizes = {node: round_up(size, memory_map.SECTION) for node, size in wanted(asked, ram).items()}
        instead = memmap(item for items in (choose(ram, sizes) or {}).values() for item in items)
    given = " ".join(parameter.text for parameter in asked)
    return (
        f"This kernel does not know {given} and reserved nothing for it."
        f" {f'Boot with {instead} beside it, or instead.' if instead else plan}"
    )
