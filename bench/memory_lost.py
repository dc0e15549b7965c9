# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the overhead of a GiB of guest memory: struct pages, and the page tables of its QEMU.

Struct pages by the kernel's own counters (``nr_memmap_pages`` and ``nr_memmap_boot_pages`` in /proc/vmstat) before
and after the memory is allocated: 64 bytes for each 4 KiB that the kernel manages, less what HVO frees. Page
tables by VmPTE of a QEMU that maps and touches all of it.
"""

from __future__ import annotations

import argparse
import mmap
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.alone import run_alone
from bench.hugepages import borrowed, mounted
from bench.qemu_alone import page_table_bytes
from bench.results import Results
from tests.rig.namespace import enter_private_namespace
from tests.rig.processes import RigError
from virt_dmem.units import GIB

NAME, STRUCT_PAGES, PAGE_TABLES = "memory lost", "struct pages", "page tables of one QEMU"
HVO = Path("/proc/sys/vm/hugetlb_optimize_vmemmap")
_PLAIN = GIB // 4096 * 64
KINDS = (
    ("memfd, 4 KiB", "tmpfs", "huge=never", 0, False),
    ("pool of tmpfs", "tmpfs", "huge=within_size", 0, False),
    ("huge pages of 2 MiB", "hugetlbfs", "pagesize=2M", 2 << 20, False),
    ("pool of huge pages of 2 MiB", "hugetlbfs", "pagesize=2M", 2 << 20, True),
    ("pool of huge pages of 1 GiB", "hugetlbfs", "pagesize=1G", 1 << 30, True),
)
"""Name, file system, options, huge page size, whether with HVO, which virt-dmem's pools enable."""


def memmap_bytes() -> int | None:
    """Return the size of all struct pages in bytes; ``None`` if the kernel does not count them (before 6.11)."""
    found = re.findall(r"^nr_memmap(?:_boot)?_pages (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    return sum(map(int, found)) * mmap.PAGESIZE if len(found) == 2 else None


@contextmanager
def hvo(on: bool) -> Iterator[None]:
    """Enable or disable HVO for pages that are allocated from now on."""
    if not HVO.exists():
        if on:
            raise RigError("This kernel has no HVO.")
        yield
        return
    before = HVO.read_text()
    HVO.write_text("1\n" if on else "0\n")
    try:
        yield
    finally:
        HVO.write_text(before)


def qemu_page_tables(path: Path) -> int:
    """Return the size of the page tables for a 1 GiB file that a QEMU has touched in full."""
    backend = f"memory-backend-file,id=m,share=on,size={GIB},mem-path={path},prealloc="
    without = page_table_bytes(f"{backend}off")
    return max(0, page_table_bytes(f"{backend}on") - without)


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Measure all types; these are counters, so that all rounds agree."""
    enter_private_namespace()
    if memmap_bytes() is None:
        results.notes.append("memory lost: this kernel does not count struct pages; nothing was measured")
        return
    for name, fstype, options, huge_page, with_hvo in KINDS:
        try:
            for _ in range(arguments.rounds):
                with ExitStack() as undo:
                    before = memmap_bytes() or 0
                    if huge_page:
                        undo.enter_context(hvo(with_hvo))
                        undo.enter_context(borrowed(GIB, huge_page))
                    given_back = before - (memmap_bytes() or 0)
                    file = undo.enter_context(mounted(fstype, options)) / "extent"
                    file.touch()
                    undo.callback(file.unlink)
                    os.truncate(file, GIB)
                    tables = qemu_page_tables(file)
                    left = (_PLAIN - given_back) / (1 << 20)
                    results.add(NAME, STRUCT_PAGES, name, left, unit="MiB/GiB", size_bytes=GIB)
                    results.add(NAME, PAGE_TABLES, name, tables / (1 << 20), unit="MiB/GiB", size_bytes=GIB)
        except RigError as error:
            results.notes.append(f"memory lost: no {name}: {error}")


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, rounds=3))
