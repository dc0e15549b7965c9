# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan a host for an amount of guest memory: what each kind of memory saves, and what it asks of the kernel.

Pure, but for ``read_host``. Each backend brings its own options.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from virt_dmem.errors import PermissionRefused
from virt_dmem.host import huge_pages, kernel, numa
from virt_dmem.host.ram import memory_map
from virt_dmem.host.ram.ranges import Range
from virt_dmem.pools.backends.host_options import HostFacts, HostOption
from virt_dmem.pools.backends.table import BACKENDS
from virt_dmem.units import GIB, MIB, format_size

__all__ = ["plan_host", "read_host", "warnings"]


def read_host(*, root: Path = kernel.ROOT) -> HostFacts:
    """Read the facts of this host, or of the one whose file system is at ``root``."""
    nodes = {node.node: node.memory.total_bytes for node in numa.nodes(root=root) if node.memory.total_bytes}
    ram: dict[int, tuple[Range, ...]] = {}
    known: tuple[Range, ...] = ()
    with contextlib.suppress(PermissionRefused, FileNotFoundError):
        ram = memory_map.ram_by_node(root=root)
        known = memory_map.in_memory_map(root=root)
    return HostFacts(
        nodes=nodes,
        page_sizes=huge_pages.sizes(root=root),
        hvo=huge_pages.hvo(root=root),
        cma_bytes=kernel.cma_bytes(root=root),
        ram=ram,
        in_memory_map=known,
        architecture=kernel.architecture(root=root),
        probes={name: kind.probe(root=root) for name, kind in BACKENDS.items()},
    )


def warnings(guest_memory_bytes: int, facts: HostFacts) -> list[str]:
    """Return what makes a plan for ``guest_memory_bytes`` impossible on this host."""
    total = sum(facts.nodes.values())
    if guest_memory_bytes < total:
        return []
    return [
        f"This host has {format_size(total)} in all, less than the {format_size(guest_memory_bytes)} of guests: the"
        " plan is for a host like it with more memory."
    ]


def plan_host(guest_memory_bytes: int, facts: HostFacts) -> list[HostOption]:
    """Return every kind of memory for ``guest_memory_bytes``, one of them recommended.

    In order: ordinary memory, memory with struct pages, and memory without.
    """
    kinds = sorted(BACKENDS.values(), key=lambda kind: (not kind.from_host, not kind.has_struct_pages))
    options = [option for kind in kinds for option in kind.host_options(guest_memory_bytes, facts)]
    best, reason = _recommend(options, facts)
    return [replace(option, recommended=True, reason=reason) if option is best else option for option in options]


def _recommend(options: list[HostOption], facts: HostFacts) -> tuple[HostOption, str]:
    """Choose the pool that saves most among those that this host can be relied on to allocate."""
    huge = [option for option in options if option.backend == "hugetlbfs"]
    if not huge:
        return options[0], "This kernel has no huge pages; there is no alternative."
    smallest = next((option for option in huge if option.page_size == 2 * MIB), huge[0])
    pages = format_size(smallest.page_size)
    if facts.hvo is None:
        return _recommend_without_hvo(options, smallest, facts)
    saved = f"Saves {format_size(smallest.net_bytes)} of {format_size(smallest.gross_bytes)}"
    gigantic = next((option for option in huge if option.page_size == GIB), None)
    if gigantic and (facts.cma_bytes or 0) >= gigantic.size_bytes:
        return gigantic, (
            f"Saves {format_size(gigantic.net_bytes)} of {format_size(gigantic.gross_bytes)}, and this host already"
            f" keeps {format_size(facts.cma_bytes or 0)} of contiguous memory (CMA)."
        )
    more = (
        f" Pages of 1 GiB would save {format_size(gigantic.net_bytes - smallest.net_bytes)} more, but on this"
        " host, as it was booted, their allocation may fail."
        if gigantic and gigantic is not smallest
        else ""
    )
    return smallest, f"{saved}, and pages of {pages} can be allocated without reserving anything at boot.{more}"


def _recommend_without_hvo(
    options: list[HostOption], smallest: HostOption, facts: HostFacts
) -> tuple[HostOption, str]:
    """Choose memory without struct pages where this host can have it, else huge pages that save nothing."""
    no_hvo = huge_pages.why_no_hvo(facts.architecture)
    without = [name for name, kind in BACKENDS.items() if not kind.has_struct_pages]
    raw = next(option for option in options if option.backend in without)
    saved = f"{format_size(raw.net_bytes)} of {format_size(raw.gross_bytes)}"
    if raw.pool_create:
        return raw, (
            f"Saves {saved}, where huge pages save nothing: {no_hvo}. It has to be reserved at boot, and cannot be"
            " pinned; for guests that need that, huge pages are the choice."
        )
    why = facts.probe(raw.backend).reason or raw.notes[-1]
    return smallest, (
        f"No pool that this host supports saves struct pages: {no_hvo}. Huge pages of"
        f" {format_size(smallest.page_size)} are at least allocated before a guest needs them, and cause fewer TLB"
        f" misses. {raw.backend} would save {saved}, but: {why.rstrip('.')}."
    )
