# SPDX-License-Identifier: GPL-2.0-or-later
"""Which ranges of a host's RAM to keep from the kernel at boot, and how a boot loader is told.

``memmap=SIZE$START`` (``Documentation/admin-guide/kernel-parameters.txt`` of Linux, x86): such a range never gets a
``struct page``, where it is made of whole sections of 128 MiB. Pure, but for GRUB's file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from virt_dmem.errors import PermissionRefused
from virt_dmem.host.memory_map import SECTION
from virt_dmem.host.ranges import Range, common, take, total, whole, without
from virt_dmem.units import GIB, KIB, MIB

__all__ = ["GRUB_DROP_IN", "choose", "grub_drop_in", "memmap", "remove_grub", "write_grub"]

GRUB_DROP_IN = Path("/etc/default/grub.d/virt-dmem.cfg")

_LOW = Range(0, 4 * GIB)
"""What devices with 32 address bits can reach; taken only where the rest is not enough."""
_KERNEL = Range(0, GIB)
"""Never taken: here lie the kernel's image and its early data."""


def choose(ram: Mapping[int, Iterable[Range]], sizes: Mapping[int, int]) -> dict[int, tuple[Range, ...]] | None:
    """Return for each node the ranges that make its size, a multiple of 128 MiB; ``None`` when one has not so much.

    Whole sections from the upper end of a node's memory, above 4 GiB first; pieces of 1 GiB where they will do, so
    that pages of 1 GiB find them aligned.
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


def _short(number: int) -> str:
    """Return a number as memparse() of the kernel takes it, exact."""
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
        "# Written by 'virt-dmem plan-host --write-grub'; '--remove-grub' takes it away again.\n"
        f"GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX \"'{quoted}'\n"
    )


def write_grub(parameters: str, *, root: Path = Path("/")) -> Path:
    """Write GRUB's drop-in, replacing ours if there is one; return its path.

    :raise PermissionRefused: When it cannot be written.
    """
    path = root / GRUB_DROP_IN.relative_to("/")
    fresh = path.with_suffix(".new")  # GRUB reads *.cfg
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(grub_drop_in(parameters), "utf-8")
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    return path


def remove_grub(*, root: Path = Path("/")) -> bool:
    """Remove GRUB's drop-in; tell whether there was one.

    :raise PermissionRefused: When it cannot be removed.
    """
    path = root / GRUB_DROP_IN.relative_to("/")
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _refused(path, error) from error
    return True


def _refused(path: Path, error: OSError) -> PermissionRefused:
    return PermissionRefused(
        f"{path} cannot be changed: {os.strerror(error.errno or 0)}.", hint="Run this as root."
    )
