# SPDX-License-Identifier: GPL-2.0-or-later
"""Choose ranges of a host's RAM to keep from the kernel at boot, and configure the boot loader for it.

``memmap=SIZE$START`` (``Documentation/admin-guide/kernel-parameters.txt`` of Linux, x86): such a range has no
``struct page``, where it consists of whole sections of 128 MiB. On arm64 ``mem=SIZE`` is what the kernel keeps,
counted from the bottom (``memblock_mem_limit_remove_map``), and what it was loaded to. Pure, but for GRUB's file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.errors import DmemError, PermissionRefused
from virt_dmem.host.ram.memory_map import SECTION
from virt_dmem.host.ram.ranges import Range, common, take, total, whole, without
from virt_dmem.os_errors import explained
from virt_dmem.replaced_file import replace_file
from virt_dmem.units import GIB, KIB, MIB

__all__ = [
    "GRUB_DROP_IN",
    "ISLANDS",
    "Cut",
    "choose",
    "cut",
    "grub_drop_in",
    "is_complete",
    "memmap",
    "remove_grub",
    "write_grub",
]

GRUB_DROP_IN = Path("/etc/default/grub.d/virt-dmem.cfg")

_LOW = Range(0, 4 * GIB)
"""Memory that devices with 32 address bits can access; used only where the rest is not enough."""
_KERNEL = Range(0, GIB)
"""Never used: it has the kernel's image and its early data."""
ISLANDS = 4 * SECTION
"""Withheld beside what is wanted: sections in which the boot loader put the kernel, the initrd and tables. By UEFI
they are high up: two were lost on an emulated host with EDK2."""


@dataclass(frozen=True)
class Cut:
    """Memory from ``start`` on, ``size`` bytes of RAM, withheld by ``mem=mem``."""

    start: int
    size: int
    mem: int


def cut(ram: Mapping[int, Iterable[Range]], in_memory_map: Iterable[Range], size: int) -> Cut | None:
    """Withhold the upper end of all memory, so that ``size`` bytes, a multiple of 128 MiB, are left for guests.

    The highest node first, as ``mem=`` knows no nodes; ``None`` when the kernel would be left less than 1 GiB.

    :param in_memory_map: What the kernel counts for ``mem=``.
    """
    sections = whole((item for items in ram.values() for item in items), SECTION)
    missing = size + ISLANDS
    if total(sections) - missing < GIB:
        return None
    for item in reversed(sections):
        if item.size >= missing:
            start = item.end - missing
            return Cut(start, size + ISLANDS, total(common(in_memory_map, [Range(0, start)])))
        missing -= item.size
    return None


def choose(ram: Mapping[int, Iterable[Range]], sizes: Mapping[int, int]) -> dict[int, tuple[Range, ...]] | None:
    """Return ranges of each node for its size, a multiple of 128 MiB; ``None`` when a node has too little.

    Whole sections from the upper end of a node's memory, above 4 GiB first; pieces of 1 GiB where possible, so that
    they are aligned for pages of 1 GiB.
    """
    found = {}
    for node, size in sizes.items():
        mine = without(ram.get(node, ()), [_KERNEL])
        pieces = _above_first(mine, size, GIB) if size % GIB == 0 else None
        pieces = pieces or _above_first(mine, size, SECTION)
        if pieces is None:
            return None
        found[node] = pieces
    return found


def _above_first(ram: tuple[Range, ...], size: int, unit: int) -> tuple[Range, ...] | None:
    above = whole(without(ram, [_LOW]), unit)
    if total(above) >= size:
        return take(above, size, unit)
    below = take(common(ram, [_LOW]), size - total(above), unit)
    return None if below is None else tuple(sorted([*above, *below]))


def memmap(ranges: Iterable[Range]) -> str:
    """Return the kernel parameters that reserve these ranges."""
    return " ".join(f"memmap={_short(item.size)}${_short(item.start)}" for item in sorted(ranges))


def is_complete(parameters: str) -> bool:
    """Return whether nothing is left to insert, as it is where addresses are unknown."""
    return "$START" not in parameters and "mem=SIZE" not in parameters


def _short(number: int) -> str:
    """Return a number as the kernel's memparse() reads it, exact."""
    for factor, letter in ((GIB, "G"), (MIB, "M"), (KIB, "K")):
        if number and number % factor == 0:
            return f"{number // factor}{letter}"
    return f"{number:#x}"


def grub_drop_in(parameters: str) -> str:
    r"""Return a file for /etc/default/grub.d that adds kernel parameters.

    It is read by sh, and what it sets is put into grub.cfg, which GRUB reads: for ``$`` to arrive at the kernel
    GRUB must read ``\$``, and so sh must be given ``\$`` in single quotes.
    """
    quoted = parameters.replace("\\", "\\\\").replace("$", "\\$").replace("'", "'\\''")
    return (
        "# Written by 'virt-dmem plan-host --write-grub'; '--remove-grub' removes it.\n"
        f"GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX \"'{quoted}'\n"
    )


def write_grub(parameters: str, *, root: Path = Path("/")) -> Path:
    """Write virt-dmem's drop-in for GRUB; return its path.

    GRUB reads ``*.cfg``, so none that is incomplete.

    :raise PermissionRefused: When it may not be written.
    :raise DmemError: When it cannot be written for another reason.
    """
    path = root / GRUB_DROP_IN.relative_to("/")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, grub_drop_in(parameters).encode(), mode=0o644)
    except OSError as error:
        raise _refused(path, error) from error
    return path


def remove_grub(*, root: Path = Path("/")) -> bool:
    """Remove virt-dmem's drop-in for GRUB; return whether there was one.

    :raise PermissionRefused: When it may not be removed.
    :raise DmemError: When it cannot be removed for another reason.
    """
    path = root / GRUB_DROP_IN.relative_to("/")
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _refused(path, error) from error
    return True


def _refused(path: Path, error: OSError) -> DmemError:
    kind = PermissionRefused if isinstance(error, PermissionError) else DmemError
    return explained(
        error, path, kind=kind, doing="GRUB's settings cannot be changed", otherwise="Run this as root."
    )
