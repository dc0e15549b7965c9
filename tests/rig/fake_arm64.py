# SPDX-License-Identifier: GPL-2.0-or-later
"""Build a fake /proc and /sys of an arm64 host. A fake: no arm64 machine was there to copy them from.

Names and shapes are those that Linux gives them (arch/arm64/kernel/setup.c, mm/memblock.c), and RAM starts at 1 GiB
as on QEMU's machine ``virt``. As in ``fake_tree``, there is no kernel behind the files.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.rig.fake_tree import GIB, MIB, fake_tree, put
from virt_dmem.host.ram.ranges import Range, common, merged, total, without

__all__ = ["ISLANDS", "LINUX_7_3", "RUNTIME", "SIZES_4K", "TWO_NODES", "fake_arm64", "with_module"]

LINUX_7_3 = "7.3.4+deb13-arm64"
SIZES_4K = (64 << 10, 2 * MIB, 32 * MIB, GIB)
"""Of huge pages, with base pages of 4 KiB."""
TWO_NODES = {0: Range(GIB, 16 * GIB), 1: Range(64 * GIB, 16 * GIB)}
RUNTIME = (Range(80 * GIB - 256 * MIB, 8 * MIB),)
"""What UEFI's runtime services keep near the top of them."""
ISLANDS = (Range(80 * GIB - 512 * MIB, 40 * MIB), Range(80 * GIB - 640 * MIB, 90 * MIB))
"""The kernel and the initrd, where UEFI's stub puts them."""


def fake_arm64(
    root: Path,
    *,
    nodes: Mapping[int, Range] = TWO_NODES,
    mem: int | None = None,
    efi: bool = True,
    runtime: Sequence[Range] = RUNTIME,
    islands: Sequence[Range] = ISLANDS,
    release: str = LINUX_7_3,
    page_sizes: Sequence[int] = SIZES_4K,
    extra: str = "",
) -> Path:
    """Write the tree of a host that was booted with ``mem=``, by UEFI and ACPI or by a device tree; return it.

    ``runtime`` is memory that the kernel knows and does not use, ``islands`` what it adds back beyond ``mem=``, and
    ``extra`` goes at the end of the command line.
    """
    ram = merged(nodes.values())
    usable = without(ram, runtime)
    if mem is not None:
        usable = merged([*common(usable, _first(ram, mem)), *islands])
    memory = {node: total(common(usable, [item])) for node, item in nodes.items()}
    fake_tree(root, memory=[memory.get(node, 0) for node in range(max(nodes) + 1)], page_sizes=page_sizes, hvo=None)
    (root / "proc/sys/vm/hugetlb_optimize_vmemmap").unlink(missing_ok=True)
    put(root / "proc/sys/kernel/osrelease", f"{release}\n")
    put(root / "proc/sys/kernel/arch", "aarch64\n")
    put(root / "proc/cmdline", f"BOOT_IMAGE=/vmlinuz {'' if mem is None else f'mem={mem}'} {extra}\n")
    lines = [(item.start, f"{item.start:08x}-{item.end - 1:08x} : System RAM") for item in usable]
    lines += [(item.start, f"{item.start:08x}-{item.end - 1:08x} : reserved") for item in runtime]
    lines += [(usable[0].start + 1, f"  {usable[0].start:08x}-{usable[0].start + MIB - 1:08x} : Kernel code")]
    lines += [(0, "09000000-09000fff : ARMH0011:00")]
    put(root / "proc/iomem", "".join(f"{line}\n" for _, line in sorted(lines)))
    if efi:
        (root / "sys/firmware/efi").mkdir(parents=True)
        (root / "sys/firmware/acpi/tables").mkdir(parents=True)
        (root / "sys/firmware/acpi/tables/SRAT").write_bytes(_srat(nodes))
    else:
        _device_tree(root / "sys/firmware/devicetree/base", nodes, runtime)
    return root


def with_module(root: Path, left_by_loader: Sequence[Range] = ()) -> Path:
    """Write what the module shows once it is loaded: UEFI's RAM without what the boot loader left in it."""
    put(root / "proc/filesystems", "nodev\tdmemfs\n")
    ram = without(TWO_NODES.values(), [*RUNTIME, *left_by_loader])
    put(root / "sys/fs/dmemfs/firmware_ram", "".join(f"{item}\n" for item in ram))
    return root


def _first(ram: Sequence[Range], size: int) -> list[Range]:
    """Return the first ``size`` bytes of RAM."""
    found = []
    for item in ram:
        found.append(Range(item.start, min(item.size, size)))
        size -= found[-1].size
    return found


def _srat(nodes: Mapping[int, Range]) -> bytes:
    """Return a table whose domains are tens, of which the CPUs (GICC, two a node) come first and in their order."""
    entries = b"".join(
        struct.pack("<BBIIII", 3, 18, 10 * node, 2 * node + cpu, 1, 0) for node in nodes for cpu in (0, 1)
    )
    entries += b"".join(
        struct.pack("<BBIHQQIIQ", 1, 40, 10 * node, 0, item.start, item.size, 0, 1, 0)
        for node, item in reversed(nodes.items())
    )
    return b"SRAT" + struct.pack("<IB", 48 + len(entries), 3) + bytes(39) + entries


def _device_tree(base: Path, nodes: Mapping[int, Range], kept: Sequence[Range]) -> None:
    def node(name: str, **properties: bytes) -> None:
        for key, value in properties.items():
            put(base / name / key.replace("__", "#").replace("_of_", "-"), "")
            (base / name / key.replace("__", "#").replace("_of_", "-")).write_bytes(value)

    def reg(item: Range) -> bytes:
        return struct.pack(">QQ", item.start, item.size)

    two = struct.pack(">I", 2)
    cells = {"__address_of_cells": two, "__size_of_cells": two}
    node(".", **cells)
    node("cpus", device_type=b"cpus\0")
    node("reserved-memory", **cells)
    node("reserved-memory/linux,cma", size=struct.pack(">Q", 64 * MIB))
    for number, item in nodes.items():
        node(
            f"memory@{item.start:x}",
            device_type=b"memory\0",
            reg=reg(item),
            numa_of_node_of_id=struct.pack(">I", number),
        )
    for item in kept:
        node(f"reserved-memory/firmware@{item.start:x}", reg=reg(item))
