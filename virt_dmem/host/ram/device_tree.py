# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the memory of a host that was booted by a device tree: where it is, on which node, what is kept out of it.

Source: /sys/firmware/devicetree. Where UEFI booted the kernel, the tree has no memory: UEFI's own map has it, which
no file shows. Functions take ``root`` as those of ``kernel`` do.
"""

from __future__ import annotations

from pathlib import Path

from virt_dmem.host.kernel import ROOT
from virt_dmem.host.ram.ranges import Range, merged, without

__all__ = ["memory", "memory_by_node"]

_TREE = "sys/firmware/devicetree/base"


def memory(*, root: Path = ROOT) -> tuple[Range, ...]:
    """Return the RAM of the memory nodes, less what ``/reserved-memory`` names; empty where there are none."""
    kept_out = [item for node in sorted((root / _TREE / "reserved-memory").glob("*/")) for item in _reg(node)]
    return without((item for node in _memory_nodes(root) for item in _reg(node)), kept_out)


def memory_by_node(*, root: Path = ROOT) -> dict[int, tuple[Range, ...]]:
    """Return the ranges of each NUMA node; empty where the tree does not say of all memory which node it is on."""
    found: dict[int, list[Range]] = {}
    for node in _memory_nodes(root):
        number = node / "numa-node-id"
        if not number.exists():
            return {}
        found.setdefault(_cell(number), []).extend(_reg(node))
    return {number: merged(items) for number, items in sorted(found.items())}


def _memory_nodes(root: Path) -> list[Path]:
    """Return the memory nodes of a host that UEFI did not boot."""
    if (root / "sys/firmware/efi").exists():
        return []
    types = sorted((root / _TREE).glob("*/device_type"))
    return [path.parent for path in types if path.read_bytes().rstrip(b"\0") == b"memory"]


def _reg(node: Path) -> list[Range]:
    """Return the address ranges of a node; its parent tells how many cells of 32 bits a number has."""
    if not (node / "reg").exists():  # of /reserved-memory: memory that the kernel is to choose itself
        return []
    wide = [4 * _cell(node.parent / f"#{what}-cells") for what in ("address", "size")]
    words, raw = sum(wide), (node / "reg").read_bytes()
    return [
        Range(int.from_bytes(raw[at : at + wide[0]], "big"), int.from_bytes(raw[at + wide[0] : at + words], "big"))
        for at in range(0, len(raw) - words + 1, words)
    ]


def _cell(path: Path) -> int:
    return int.from_bytes(path.read_bytes(), "big")
