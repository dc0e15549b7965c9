# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse the ``dmem=`` parameter of the original dmemfs, and compute the memory that it asks for. Pure.

``dmem=[!]size[KMG][:align]``: this size of each node, or (``!``) all of each node but this size;
``dmem=size[KMG]@start[KMG][:align]``: that range. It may be given several times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from virt_dmem.errors import UsageError
from virt_dmem.host.ram.ranges import Range, common, total
from virt_dmem.units import MIB, parse_number, round_up

__all__ = ["Parameter", "parameters", "parse_parameter", "wanted"]

_ALIGN = 128 * MIB
"""Default alignment of the original."""


@dataclass(frozen=True)
class Parameter:
    """One ``dmem=``; sizes in bytes."""

    text: str
    size: int
    align: int = _ALIGN
    start: int | None = None
    """Start of the range; ``None``: ``size`` is of each node."""
    kept: bool = False
    """``size`` is the part of each node that the kernel keeps."""


def parameters(command_line: str) -> tuple[Parameter, ...]:
    """Return every ``dmem=`` of a kernel command line.

    :raise UsageError: When one cannot be read.
    """
    words = (word.strip('"') for word in command_line.split())
    return tuple(parse_parameter(word.removeprefix("dmem=")) for word in words if word.startswith("dmem="))


def parse_parameter(text: str) -> Parameter:
    """Parse the value of ``dmem=``.

    :raise UsageError: When it cannot be read.
    """
    shown = f"dmem={text}"
    kept = text.startswith("!")
    what, colon, align = text.removeprefix("!").partition(":")
    size, at, start = what.partition("@")
    found = Parameter(
        text=shown,
        size=parse_number(size, shown),
        align=parse_number(align, shown) if colon else _ALIGN,
        start=parse_number(start, shown) if at else None,
        kept=kept,
    )
    if found.align <= 0 or found.align & (found.align - 1) or (kept and at) or not (found.size or kept):
        raise UsageError(
            f"{shown!r} is not a valid dmem= parameter: an alignment is a power of two, a size is not 0, and '!'"
            " goes with sizes of nodes only.",
            hint="Write dmem=[!]SIZE[:ALIGN] or dmem=SIZE@START[:ALIGN].",
        )
    return found


def wanted(found: Iterable[Parameter], ram: Mapping[int, tuple[Range, ...]]) -> dict[int, int]:
    """Return the bytes of each node that these parameters ask for.

    :param ram: All RAM of the host by node.
    """
    sizes = dict.fromkeys(ram, 0)
    for parameter in found:
        for node, ranges in ram.items():
            if parameter.start is not None:
                sizes[node] += total(common(ranges, [Range(parameter.start, parameter.size)]))
            elif parameter.kept:
                sizes[node] += max(0, total(ranges) - parameter.size) // parameter.align * parameter.align
            else:
                sizes[node] += round_up(parameter.size, parameter.align)
    return {node: size for node, size in sizes.items() if size}
