# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the host's physical memory map: by node, and which memory the kernel was told at boot not to use.

Sources: the firmware's map (x86: /sys/firmware/memmap; elsewhere what the module dmemfs shows of it, or the device
tree), the kernel's resources (/proc/iomem), the nodes (ACPI's SRAT, the device tree, else the memory blocks of
/sys). Functions take ``root`` as those of ``kernel`` do.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from virt_dmem.errors import PermissionRefused, UsageError
from virt_dmem.host.kernel import ROOT, architecture
from virt_dmem.host.numa import nodes
from virt_dmem.host.ram import device_tree
from virt_dmem.host.ram.ranges import Range, common, merged, parse_range, total, without
from virt_dmem.units import MIB, parse_number

__all__ = [
    "SECTION",
    "bytes_with_struct_pages",
    "command_line",
    "firmware_ram",
    "given_away",
    "in_memory_map",
    "kernel_ram",
    "node_ranges",
    "ram_by_node",
    "reserved",
]

SECTION = 128 * MIB
"""The kernel has struct pages for all of a section of memory or for none of it (SECTION_SIZE_BITS of x86-64, and of
arm64 but for kernels with pages of 64 KiB)."""

_TOP = 1 << 52  # beyond every physical address
_LINE = re.compile(r"^( *)([0-9a-f]+)-([0-9a-f]+) : (.*)$", re.MULTILINE)
_PROCESSOR, _MEMORY, _X2APIC, _GICC = 0, 1, 2, 3  # entries of the SRAT: ACPI 6.5, 5.2.16
_SRAT_HEADER = 48


def command_line(*, root: Path = ROOT) -> str:
    """Return the kernel's command line."""
    try:
        return (root / "proc/cmdline").read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""


def firmware_ram(*, root: Path = ROOT) -> tuple[Range, ...]:
    """Return the RAM that the firmware reported; empty on x86 without CONFIG_FIRMWARE_MEMMAP.

    Elsewhere the module dmemfs shows it once it is loaded, without what the boot loader left there; before that it
    is the memory of the device tree, or, as UEFI's map is in no file, the kernel's own RAM.

    :raise PermissionRefused: When the kernel hides the addresses from this user.
    """
    if architecture(root=root) == "x86_64":
        return _of_firmware_memmap(root)
    try:
        told = (root / "sys/fs/dmemfs/firmware_ram").read_text()
    except FileNotFoundError:
        return device_tree.memory(root=root) or kernel_ram(root=root)
    except PermissionError as error:
        raise _hidden() from error
    return merged(map(parse_range, told.split()))


def _of_firmware_memmap(root: Path) -> tuple[Range, ...]:
    found = []
    for entry in (root / "sys/firmware/memmap").glob("[0-9]*"):
        if (entry / "type").read_text().strip() == "System RAM":
            start, end = (int((entry / name).read_text(), 16) for name in ("start", "end"))
            found.append(Range(start, end + 1 - start))
    return merged(found)


def kernel_ram(*, root: Path = ROOT) -> tuple[Range, ...]:
    """Return the RAM that the kernel manages itself.

    :raise PermissionRefused: When the kernel hides the addresses from this user.
    """
    return merged(item for _, item, name in _resources(root) if name.startswith("System RAM"))


def in_memory_map(*, root: Path = ROOT) -> tuple[Range, ...]:
    """Return the RAM that the kernel knows: its own and, except on x86, what it must not use.

    That is the firmware's (of UEFI: its runtime services, ACPI's tables), as "reserved" in /proc/iomem. It stays
    known beyond ``mem=``, has struct pages, and counts for ``mem=`` (memblock's MEMBLOCK_NOMAP).

    :raise PermissionRefused: When the kernel hides the addresses from this user.
    """
    if architecture(root=root) == "x86_64":
        return kernel_ram(root=root)
    kept = [item for depth, item, name in _resources(root) if name == "reserved" and not depth]
    return merged([*kernel_ram(root=root), *kept])


def _resources(root: Path) -> Iterator[tuple[int, Range, str]]:
    """Yield depth, range and name of each line of /proc/iomem."""
    found = _LINE.findall((root / "proc/iomem").read_text("utf-8", "replace"))
    if found and all(int(end, 16) == 0 for _, _, end, _ in found):
        raise _hidden()
    for indent, start, end, name in found:
        yield len(indent) // 2, Range(int(start, 16), int(end, 16) + 1 - int(start, 16)), name


def _hidden() -> PermissionRefused:
    return PermissionRefused("The kernel shows the map of its memory to root only.", hint="Run this as root.")


def reserved(*, with_pools: bool = False, root: Path = ROOT) -> dict[int, tuple[Range, ...]]:
    """Return the RAM by node that the kernel does not use, has no struct pages for, and that is not claimed.

    It is RAM according to the firmware, not in a section with memory that the kernel knows, and in /proc/iomem
    nothing, or 'Reserved' as ``memmap=`` makes it: every user of a range (a mounted dmemfs, persistent memory, the
    firmware) has a resource of its own there.
    ``with_pools``: include memory of mounted dmemfs.

    :raise PermissionRefused: When the kernel hides the addresses from this user.
    """
    claimed = [
        item
        for depth, item, name in _resources(root)
        if (name != "Reserved" or depth) and not (with_pools and name == "dmemfs")
    ]
    sections = map(_sections, in_memory_map(root=root))
    free = without(firmware_ram(root=root), [*claimed, *sections])
    return {node: found for node, ranges in node_ranges(root=root).items() if (found := common(free, ranges))}


def given_away(*, root: Path = ROOT) -> tuple[Range, ...]:
    """Return the ranges that the command line keeps from the kernel: ``memmap=SIZE$BASE`` and ``mem=SIZE``.

    Memory reserved for another reason (because the kernel found it uncached, say) is not included. On arm64
    ``mem=`` is an amount, counted from the bottom, and nothing else makes the kernel forget memory: it is then all.
    """
    found = []
    by_address = architecture(root=root) == "x86_64"
    for word in command_line(root=root).split():
        name, _, value = word.strip('"').partition("=")
        try:
            if name == "memmap":
                for part in value.split(","):
                    size, dollar, start = part.partition("$")
                    if dollar:
                        found.append(Range(parse_number(start), parse_number(size)))
            elif name == "mem":
                limit = parse_number(value) if by_address else 0
                found.append(Range(limit, _TOP - limit))
        except UsageError:  # the kernel rejected it as well
            continue
    return merged(found)


def ram_by_node(*, root: Path = ROOT) -> dict[int, tuple[Range, ...]]:
    """Return the firmware's RAM by node, reserved memory included.

    :raise PermissionRefused: When the kernel hides the addresses from this user.
    """
    ram = firmware_ram(root=root)
    return {node: found for node, ranges in node_ranges(root=root).items() if (found := common(ram, ranges))}


def node_ranges(*, root: Path = ROOT) -> dict[int, tuple[Range, ...]]:
    """Return the address ranges of each node; a single node has all of them.

    From the SRAT or the device tree if they describe the nodes that are online (``numa=off`` and ``numa=fake``
    create others), else from the memory blocks of the nodes; a range without blocks belongs to the node below it.
    """
    online = [node.node for node in nodes(root=root)]
    if len(online) == 1:
        return {online[0]: (Range(0, _TOP),)}
    try:
        found = _srat((root / "sys/firmware/acpi/tables/SRAT").read_bytes())
    except (OSError, struct.error):
        found = device_tree.memory_by_node(root=root)
    return found if found and set(found) <= set(online) else _by_blocks(online, root)


def _srat(table: bytes) -> dict[int, tuple[Range, ...]]:
    """Return the memory of each node according to ACPI's SRAT.

    Nodes are numbered in the order in which their domains appear: processors first, then memory
    (``acpi_numa_init`` and ``acpi_map_pxm_to_node`` in drivers/acpi/numa/srat.c).
    """
    wide = table[8] >= 2  # before that a domain had 8 bits
    domains: dict[int, int] = {}
    memory: list[tuple[int, Range]] = []
    at = _SRAT_HEADER
    while at + 2 <= len(table):
        kind, length = table[at], table[at + 1]
        entry = table[at : at + length]
        if length < 2:
            break
        if kind == _PROCESSOR and struct.unpack_from("<I", entry, 4)[0] & 1:
            high = int.from_bytes(entry[9:12], "little") << 8 if wide else 0
            domains.setdefault(entry[2] | high, len(domains))
        elif kind == _X2APIC and struct.unpack_from("<I", entry, 12)[0] & 1:
            domains.setdefault(struct.unpack_from("<I", entry, 4)[0], len(domains))
        elif kind == _GICC and struct.unpack_from("<I", entry, 10)[0] & 1:
            domains.setdefault(struct.unpack_from("<I", entry, 2)[0], len(domains))
        elif kind == _MEMORY and struct.unpack_from("<I", entry, 28)[0] & 1:
            domain = struct.unpack_from("<I", entry, 2)[0] & (0xFFFFFFFF if wide else 0xFF)
            memory.append((domain, Range(*struct.unpack_from("<QQ", entry, 8))))
        at += length
    found: dict[int, list[Range]] = {}
    for domain, item in memory:
        found.setdefault(domains.setdefault(domain, len(domains)), []).append(item)
    return {node: ranges for node, items in sorted(found.items()) if (ranges := merged(items))}


def _by_blocks(online: list[int], root: Path) -> dict[int, tuple[Range, ...]]:
    base = root / "sys/devices/system/node"
    try:
        size = int((root / "sys/devices/system/memory/block_size_bytes").read_text(), 16)
    except FileNotFoundError:
        return {online[0]: (Range(0, _TOP),)}
    blocks = sorted(
        (int(path.name.removeprefix("memory")) * size, node)
        for node in online
        for path in (base / f"node{node}").glob("memory[0-9]*")
    )
    found: dict[int, list[Range]] = {}
    for number, (start, node) in enumerate(blocks):
        start_of_range = start if number else 0
        end = blocks[number + 1][0] if number + 1 < len(blocks) else _TOP
        found.setdefault(node, []).append(Range(start_of_range, end - start_of_range))
    return {node: merged(items) for node, items in sorted(found.items())}


def bytes_with_struct_pages(*, root: Path = ROOT) -> int:
    """Return the bytes of memory for which the kernel has struct pages: every section with memory that it knows.

    :raise PermissionRefused: When the kernel hides the addresses from this user.
    """
    return total(_sections(item) for item in in_memory_map(root=root))


def _sections(item: Range) -> Range:
    start = item.start // SECTION * SECTION
    return Range(start, -(-item.end // SECTION) * SECTION - start)
