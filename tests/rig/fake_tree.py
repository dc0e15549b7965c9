# SPDX-License-Identifier: GPL-2.0-or-later
"""Build a fake /proc and /sys of another host, for features that this one lacks (nodes, old kernels).

Its files keep whatever is written to them. There is no kernel behind them, so kernel behaviour is not tested
here; tests/unit/pools/test_manage_real.py does that.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from pathlib import Path

from virt_dmem.host.ram.ranges import Range, without

MIB = 1 << 20
GIB = 1 << 30
BOOT = "0c8f1e3c-52cd-4b0e-9a3c-6a4f0f6b9c11"
PC = [(0, 0x9FC00), (MIB, 3 * GIB - MIB), (4 * GIB, 13 * GIB)]
"""The RAM of a PC with 16 GiB, as (start, size)."""
NODES = [[(0, 3 * GIB), (4 * GIB, 5 * GIB)], [(9 * GIB, 8 * GIB)]]
"""Its memory by node, if it has two."""


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fake_tree(
    root: Path,
    *,
    memory: Sequence[int] = (16 * GIB,),
    without_cpus: Collection[int] = (),
    page_sizes: Sequence[int] = (2 * MIB, GIB),
    hvo: str | None = "0",
    struct_pages: tuple[int, int] | None = (0, 65536),
) -> Path:
    """Write a tree with a node for each size in ``memory`` (0: a node without), two CPUs a node, and return it."""
    base = root / "sys/devices/system/node"
    put(base / "online", f"0-{len(memory) - 1}\n" if len(memory) > 1 else "0\n")
    with_cpus = [str(node) for node in range(len(memory)) if node not in without_cpus]
    put(base / "has_memory", ",".join(str(node) for node, size in enumerate(memory) if size) + "\n")
    put(base / "has_cpu", ",".join(with_cpus) + "\n")
    for node, size in enumerate(memory):
        put(base / f"node{node}/cpulist", "\n" if node in without_cpus else f"{2 * node}-{2 * node + 1}\n")
        put(
            base / f"node{node}/meminfo",
            f"Node {node} MemTotal:       {size // 1024} kB\n"
            f"Node {node} MemFree:        {size // 2048} kB\n"
            f"Node {node} Active(file):   {size // 8192} kB\n"
            f"Node {node} Inactive(file): {size // 8192} kB\n"
            f"Node {node} HugePages_Total:     0\n",
        )
        for page_size in page_sizes:
            _counters(base / f"node{node}/hugepages", page_size)
    for page_size in page_sizes:
        _counters(root / "sys/kernel/mm/hugepages", page_size)
        put(root / f"sys/kernel/mm/hugepages/hugepages-{page_size // 1024}kB/resv_hugepages", "0\n")
    put(root / "sys/devices/system/cpu/online", f"0-{2 * len(memory) - 1}\n")
    total = sum(memory) // 1024
    put(
        root / "proc/meminfo",
        f"MemTotal: {total} kB\nMemFree: {total // 2} kB\nMemAvailable: {total * 3 // 4} kB\nHugePages_Total: 0\n",
    )
    counted = f"nr_memmap_pages {struct_pages[0]}\nnr_memmap_boot_pages {struct_pages[1]}\n" if struct_pages else ""
    put(root / "proc/vmstat", f"nr_free_pages 1234\n{counted}pgfault 99\n")
    put(root / "proc/sys/kernel/osrelease", "6.12.0-test\n")
    put(root / "proc/sys/kernel/arch", "x86_64\n")
    put(root / "proc/sys/kernel/tainted", "4097\n")
    put(root / "proc/sys/kernel/random/boot_id", f"{BOOT}\n")
    put(root / "proc/self/mountinfo", "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n")
    if hvo is not None:
        put(root / "proc/sys/vm/hugetlb_optimize_vmemmap", f"{hvo}\n")
    return root


def fake_memory_map(
    root: Path,
    *,
    ram: Sequence[tuple[int, int]],
    reserved: Sequence[tuple[int, int]] = (),
    claimed: Sequence[tuple[int, int]] = (),
    nodes: Sequence[Sequence[tuple[int, int]]] = (),
    cmdline: str = "quiet",
) -> Path:
    """Write the kernel's memory maps: ranges are (start, size); ``nodes`` go into an ACPI table.

    ``reserved`` lies in ``ram``, and ``claimed`` in ``reserved``.
    """
    for number, (start, size) in enumerate(ram):
        base = root / f"sys/firmware/memmap/{number}"
        put(base / "start", f"{start:#x}\n")
        put(base / "end", f"{start + size - 1:#x}\n")
        put(base / "type", "System RAM\n")
    used = without([Range(*item) for item in ram], [Range(*item) for item in reserved])
    lines = [(item.start, f"{item.start:08x}-{item.end - 1:08x} : System RAM") for item in used]
    lines += [(start, f"{start:08x}-{start + size - 1:08x} : Reserved") for start, size in reserved]
    lines += [(start, f"  {start:08x}-{start + size - 1:08x} : dmemfs") for start, size in claimed]
    put(root / "proc/iomem", "".join(f"{line}\n" for _, line in sorted(lines)))
    put(root / "proc/cmdline", f"BOOT_IMAGE=/vmlinuz root=/dev/vda {cmdline}\n")
    if nodes:
        entries = b"".join(
            struct.pack("<BBIHQQIIQ", 1, 40, node, 0, start, size, 0, 1, 0)
            for node, ranges in enumerate(nodes)
            for start, size in ranges
        )
        table = b"SRAT" + struct.pack("<IB", 48 + len(entries), 3) + bytes(39) + entries
        (root / "sys/firmware/acpi/tables").mkdir(parents=True)
        (root / "sys/firmware/acpi/tables/SRAT").write_bytes(table)
    return root


def _counters(base: Path, page_size: int) -> None:
    for name in ("nr_hugepages", "free_hugepages", "surplus_hugepages"):
        put(base / f"hugepages-{page_size // 1024}kB" / name, "0\n")


def fake_process(root: Path, pid: int, *, comm: str = "sleep", cmdline: Sequence[str] = (), maps: str = "") -> None:
    """Write a process into a fake tree."""
    base = root / f"proc/{pid}"
    put(base / "comm", f"{comm}\n")
    put(base / "cmdline", "".join(f"{word}\0" for word in cmdline))
    put(base / "maps", maps)
    (base / "fd").mkdir()
