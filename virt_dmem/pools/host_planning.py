# SPDX-License-Identifier: GPL-2.0-or-later
"""How to set a host up for so much guest memory: what each kind of memory saves, and what it asks of the kernel.

Pure, but for ``read_host``. Parameters: ``Documentation/admin-guide/kernel-parameters.txt`` of Linux; the node
format (``hugepages=0:N,1:M``) needs Linux 5.16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from virt_dmem.host import huge_pages, kernel, memory_map, numa
from virt_dmem.host.boot_reservation import choose, memmap
from virt_dmem.host.ranges import Range
from virt_dmem.pools.backends.base import BASE_PAGE, Probe, struct_pages_of
from virt_dmem.pools.backends.table import backend
from virt_dmem.units import GIB, KIB, MIB, TIB, format_size, round_up

__all__ = ["HostFacts", "Option", "plan_host", "read_host", "warnings"]

_DAX_KEEPS = 2 * BASE_PAGE  # vmemmap_populate_compound_pages() of mm/sparse-vmemmap.c: a head and a tail page


@dataclass(frozen=True)
class HostFacts:
    """What a plan depends on; all sizes in bytes."""

    nodes: dict[int, int]
    """MemTotal of each node that has memory."""
    page_sizes: tuple[int, ...]
    """Of huge pages, smallest first."""
    hvo: bool | None
    """Whether HVO is switched on; ``None`` where the kernel has none."""
    cma_bytes: int | None
    """What the kernel keeps movable for allocations in one piece; ``None`` where it cannot (no CONFIG_CMA)."""
    ram: dict[int, tuple[Range, ...]] = field(default_factory=dict)
    """Where the memory of each node lies; empty where that is not known."""
    dmemfs: Probe = Probe(available=False, reason="there is no module dmemfs")  # noqa: RUF009 -- frozen
    """Whether this host has the file system."""


@dataclass(frozen=True)
class Option:
    """One kind of memory; ``gross_bytes`` = ``metadata_left_bytes`` + ``net_bytes``."""

    backend: str
    page_size: int
    size_bytes: int
    """The guests' memory in whole pages."""
    gross_bytes: int
    """Struct pages that an ordinary host keeps for it."""
    metadata_left_bytes: int
    """Struct pages that stay."""
    net_bytes: int
    """What is saved."""
    kernel_command_line: str
    """What to add to it; empty: nothing."""
    pool_create: str
    """The command that makes the pool; empty where this version, or this kernel, cannot make one."""
    notes: tuple[str, ...]
    recommended: bool = False
    reason: str = ""
    """Why it is recommended here."""


def read_host(*, root: Path = kernel.ROOT) -> HostFacts:
    """Look at this host, or at the tree of another one."""
    nodes = {node.node: node.memory.total_bytes for node in numa.nodes(root=root) if node.memory.total_bytes}
    return HostFacts(
        nodes=nodes,
        page_sizes=huge_pages.huge_page_sizes(root=root),
        hvo=huge_pages.hvo(root=root),
        cma_bytes=kernel.cma_bytes(root=root),
        ram=memory_map.ram_by_node(root=root),
        dmemfs=backend("dmemfs").probe(root=root),
    )


def warnings(guest_memory_bytes: int, facts: HostFacts) -> list[str]:
    """Return what does not fit together."""
    total = sum(facts.nodes.values())
    if guest_memory_bytes < total:
        return []
    return [
        f"This host has {format_size(total)} in all, and is to hold {format_size(guest_memory_bytes)} of guests:"
        " the plan is for one like it that has more."
    ]


def plan_host(guest_memory_bytes: int, facts: HostFacts) -> list[Option]:
    """Return every kind of memory for so many bytes of guest memory, one of them recommended."""
    options = [_ordinary(guest_memory_bytes)]
    options += [_huge_pages(guest_memory_bytes, size, facts) for size in facts.page_sizes]
    options += [_device_dax(guest_memory_bytes, size, facts) for size in (2 * MIB, GIB)]
    options.append(_dmemfs(guest_memory_bytes, facts))
    best, reason = _recommend(options, facts)
    return [replace(option, recommended=True, reason=reason) if option is best else option for option in options]


def _option(  # noqa: PLR0917
    backend: str, size: int, page_size: int, left: int, line: str, pool_create: str, *notes: str
) -> Option:
    gross = struct_pages_of(size)
    return Option(backend, page_size, size, gross, left, gross - left, line, pool_create, notes)


def _ordinary(size: int) -> Option:
    size = round_up(size, BASE_PAGE)
    return _option(
        "tmpfs",
        size,
        BASE_PAGE,
        struct_pages_of(size),
        "",
        f"virt-dmem pool create NAME --backend tmpfs --size {_short(size)}",
        "Ordinary pages; transparent huge pages and memfd keep as much. For trying out.",
    )


def _huge_pages(size: int, page_size: int, facts: HostFacts) -> Option:
    size = round_up(size, page_size)
    shares = _shares(size, page_size, facts)
    by_node = " ".join(f"--node {node}={_short(share)}" for node, share in shares.items())
    line = [] if facts.hvo is None else ["hugetlb_free_vmemmap=on"]
    notes = []
    if facts.hvo is None:
        notes.append("This kernel has no HVO (CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP), so all struct pages stay.")
    else:
        notes.append(
            "'pool create' also switches HVO on by itself (vm.hugetlb_optimize_vmemmap); on the command line it"
            " counts for huge pages of others, too."
        )
    if page_size >= GIB:
        notes.append(f"Each memory backend of a domain must be a multiple of {format_size(page_size)}.")
        aside = f"hugepagesz={_short(page_size)} hugepages={_per_node(shares, lambda share: share // page_size)}"
        if facts.cma_bytes is None:
            notes.append(
                "This kernel has no CMA (CONFIG_CMA): such pages are found only while memory is still in one piece,"
                f" soon after boot. '{aside}' would set them aside for sure, but 'pool create' takes new pages and"
                " none that were set aside at boot: leave it out."
            )
        else:
            line.append(f"hugetlb_cma={_per_node(shares, _short)}")
            notes.append(
                "hugetlb_cma keeps memory that such pages can be made of at any time. It makes the kernel pass over"
                " hugepages= for them, and 'pool create' takes new pages anyway."
            )
    left = struct_pages_of(size) if facts.hvo is None else backend("hugetlbfs").metadata_left(size, page_size)
    pool_create = f"virt-dmem pool create NAME --page-size {_short(page_size)} {by_node}"
    return _option("hugetlbfs", size, page_size, left, " ".join(line), pool_create, *notes)


def _device_dax(size: int, page_size: int, facts: HostFacts) -> Option:
    size = round_up(size, page_size)
    shares = _shares(size, page_size, facts)
    return _option(
        "device-dax",
        size,
        page_size,
        size // page_size * _DAX_KEEPS,
        " ".join(f"memmap={_short(share)}!START{node}" for node, share in shares.items()),
        "",
        "This version has no backend for it.",
        "For each START put an address of that node's RAM in /proc/iomem, on a boundary of 128 MiB; then 'ndctl"
        f" create-namespace --mode=devdax --map=mem --align={_short(page_size)}'. Figures as of Linux 5.17.",
    )


def _dmemfs(size: int, facts: HostFacts) -> Option:
    size = round_up(size, memory_map.SECTION)
    shares = _shares(size, memory_map.SECTION, facts)
    ranges = choose(facts.ram, shares) if facts.ram else None
    by_node = " ".join(f"--node {node}={_short(share)}" for node, share in shares.items())
    if ranges:
        line = memmap(item for items in ranges.values() for item in items)
        notes = ["These are this host's own addresses: whole sections of 128 MiB, so that no struct page is left."]
    else:
        line = " ".join(f"memmap={_short(share)}$START{node}" for node, share in shares.items())
        notes = [
            "This host has not so much, outside of its lowest 1 GiB."
            if facts.ram
            else "Where this host's memory lies is not known; root may know more.",
            "For each START put an address of that node's RAM in /proc/iomem, on a boundary of 128 MiB.",
        ]
    notes.append(
        "In GRUB's configuration '$' is written '\\\\\\$' between double quotes; --write-grub does it right. More"
        " than four such parameters switch off the kernel's choice of a random physical address (KASLR)."
    )
    notes.append(
        "Such memory cannot be pinned: no disks with cache='none', no virtio-mem, no vDPA. docs/dmemfs.md tells"
        " when huge pages are the better choice. What is left are the module's own tables."
    )
    if not facts.dmemfs.available:
        notes.append(f"Not yet here: {facts.dmemfs.reason}.")
    left = backend("dmemfs").metadata_left(size, 2 * MIB)
    pool_create = f"virt-dmem pool create NAME --backend dmemfs --page-size 2M {by_node}"
    return _option("dmemfs", size, 2 * MIB, left, line, pool_create if facts.dmemfs.available else "", *notes)


def _recommend(options: list[Option], facts: HostFacts) -> tuple[Option, str]:
    """Choose among what can be made here: by what is saved, if it can be relied on to be there."""
    huge = [option for option in options if option.backend == "hugetlbfs"]
    if not huge:
        return options[0], "This kernel has no huge pages; there is nothing to choose from."
    smallest = next((option for option in huge if option.page_size == 2 * MIB), huge[0])
    pages = format_size(smallest.page_size)
    if facts.hvo is None:
        return smallest, (
            f"Nothing that can be made here saves struct pages: this kernel has no HVO. Huge pages of {pages} are"
            " at least there before a guest needs them, and cost it fewer TLB misses."
        )
    saved = f"Saves {format_size(smallest.net_bytes)} of {format_size(smallest.gross_bytes)}"
    gigantic = next((option for option in huge if option.page_size == GIB), None)
    if gigantic and (facts.cma_bytes or 0) >= gigantic.size_bytes:
        return gigantic, (
            f"Saves {format_size(gigantic.net_bytes)} of {format_size(gigantic.gross_bytes)}, and this host already"
            f" keeps {format_size(facts.cma_bytes or 0)} in one piece (CMA)."
        )
    more = (
        f" Pages of 1 GiB would save {format_size(gigantic.net_bytes - smallest.net_bytes)} more, but cannot be"
        " relied on to be found on this host as it was booted."
        if gigantic and gigantic is not smallest
        else ""
    )
    return smallest, f"{saved}, and pages of {pages} can be had without setting anything aside at boot.{more}"


def _shares(size: int, unit: int, facts: HostFacts) -> dict[int, int]:
    """Spread a size evenly over the nodes that have memory, in whole units, as 'pool create --size' does."""
    units, more = divmod(size // unit, len(facts.nodes))
    even = {node: (units + (at < more)) * unit for at, node in enumerate(sorted(facts.nodes))}
    return {node: share for node, share in even.items() if share}


def _per_node(shares: dict[int, int], text: Callable[[int], object]) -> str:
    """Return a parameter's value: one for the host, or ``0:N,1:M`` where it has several nodes."""
    if set(shares) == {0}:
        return str(text(shares[0]))
    return ",".join(f"{node}:{text(share)}" for node, share in shares.items())


def _short(size_bytes: int) -> str:
    """Return a size as the kernel and our own options take it, exact: ``160G``."""
    for factor, letter in ((TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size_bytes % factor == 0:
            return f"{size_bytes // factor}{letter}"
    return str(size_bytes)
