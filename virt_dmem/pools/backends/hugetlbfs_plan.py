# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan a host for pools of huge pages: the kernel's command line, and what it saves."""

from __future__ import annotations

from virt_dmem.host import huge_pages
from virt_dmem.pools.backends.host_options import (
    HostFacts,
    HostOption,
    by_node_options,
    exact_size,
    host_option,
    per_node,
    shares,
)
from virt_dmem.pools.backends.struct_pages import BASE_PAGE, struct_pages_of
from virt_dmem.units import format_size

__all__ = ["is_gigantic", "metadata_left", "option"]


def option(size: int, page_size: int, facts: HostFacts) -> HostOption:
    """Return how a host could provide ``size`` bytes in pages of one size: command line and command."""
    by_node = shares(size, page_size, facts)
    line, notes = [], []
    create = f"virt-dmem pool create NAME --page-size {exact_size(page_size)} {by_node_options(by_node)}"
    if facts.hvo is None:
        why = huge_pages.why_no_hvo(facts.architecture)
        notes.append(f"{why[0].upper()}{why[1:]}: all struct pages remain.")
    else:
        line.append("hugetlb_free_vmemmap=on")
        notes.append(
            "'pool create' also switches HVO on by itself (vm.hugetlb_optimize_vmemmap); on the command line it"
            " applies to huge pages of others, too."
        )
    if not is_gigantic(page_size, facts.base_page):
        notes.append(
            "Or take the pages only while domains need them, which the kernel may refuse once memory is fragmented:"
            f" 'virt-dmem pool create NAME --elastic --max {exact_size(size)}'."
        )
    if is_gigantic(page_size, facts.base_page):
        notes.append(f"Each memory backend of a domain must be a multiple of {format_size(page_size)}.")
        per_size = per_node(by_node, lambda share: share // page_size)
        if facts.cma_bytes is None:
            line.append(f"hugepagesz={exact_size(page_size)} hugepages={per_size}")
            create += " --existing-pages"
            notes.append(
                "This kernel has no CMA (CONFIG_CMA): such pages can be allocated for certain at boot only."
                " hugepages= sets them aside, and --existing-pages makes a pool of them."
            )
        else:
            line.append(f"hugetlb_cma={per_node(by_node, exact_size)}")
            notes.append(
                "hugetlb_cma keeps memory from which such pages can be allocated later, and which holds only what"
                " the kernel can move meanwhile: files, and memory of programs. 4 KiB in use are in the way of a"
                " whole page, and ext4 keeps some for as long as it is mounted: keep a page more than guests need,"
                " on each node. An elastic pool tries again for some seconds: 'virt-dmem pool create NAME"
                f" --elastic --page-size {exact_size(page_size)} --max {exact_size(size)}'."
                f" For certain they are there with 'hugepagesz={exact_size(page_size)} hugepages={per_size}'"
                " instead, and 'pool create --existing-pages'; with hugetlb_cma the kernel ignores hugepages=."
            )
    left = struct_pages_of(size, facts.base_page) if facts.hvo is None else metadata_left(size, page_size)
    return host_option(
        "hugetlbfs",
        size,
        page_size,
        left=left,
        line=" ".join(line),
        pool_create=create,
        notes=notes,
        base_page=facts.base_page,
    )


def is_gigantic(page_size: int, base_page: int) -> bool:
    """Return whether pages of that size are more than the kernel's page allocator provides at run time.

    That is at least an entry of a PMD (MAX_PAGE_ORDER): 2, 32 and 512 MiB with base pages of 4, 16 and 64 KiB.
    """
    return page_size > base_page * base_page // 8


def metadata_left(size_bytes: int, page_size: int) -> int:
    """Return the struct pages that HVO keeps: one base page for each huge page."""
    return size_bytes // page_size * min(BASE_PAGE, struct_pages_of(page_size))
