# SPDX-License-Identifier: GPL-2.0-or-later
"""Compute with physical address ranges. Pure: numbers of bytes only."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from virt_dmem.units import parse_number

__all__ = ["Range", "common", "merged", "parse_range", "take", "total", "whole", "without"]


class Range(msgspec.Struct, frozen=True, order=True):
    """``size`` bytes from ``start`` on."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after the range."""
        return self.start + self.size

    def __str__(self) -> str:
        """Return the form of mount options and of ``--region``: ``0x80000000+0x40000000``."""
        return f"{self.start:#x}+{self.size:#x}"


def parse_range(text: str) -> Range:
    """Parse a range ``BASE+SIZE``; both take K, M, G, T and ``0x``.

    :raise UsageError: When it is not one.
    """
    base, _, size = text.partition("+")
    return Range(parse_number(base, text), parse_number(size, text))


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Return the same bytes as ascending ranges that neither overlap nor touch, without empty ones."""
    found: list[Range] = []
    for item in sorted(ranges):
        if item.size <= 0:
            continue
        if found and item.start <= found[-1].end:
            last = found.pop()
            found.append(Range(last.start, max(last.end, item.end) - last.start))
        else:
            found.append(item)
    return tuple(found)


def without(ranges: Iterable[Range], holes: Iterable[Range]) -> tuple[Range, ...]:
    """Return the parts of ``ranges`` that are in none of ``holes``."""
    left = list(merged(ranges))
    for hole in merged(holes):
        left = [
            piece
            for item in left
            for piece in (
                Range(item.start, min(item.end, hole.start) - item.start),
                Range(max(item.start, hole.end), item.end - max(item.start, hole.end)),
            )
            if piece.size > 0
        ]
    return tuple(left)


def common(one: Iterable[Range], other: Iterable[Range]) -> tuple[Range, ...]:
    """Return the intersection of two sets of ranges."""
    others = merged(other)
    return merged(
        Range(max(item.start, found.start), min(item.end, found.end) - max(item.start, found.start))
        for item in merged(one)
        for found in others
    )


def whole(ranges: Iterable[Range], unit: int) -> tuple[Range, ...]:
    """Return the parts that consist of whole, aligned pieces of ``unit`` bytes."""
    found = []
    for item in merged(ranges):
        start = -(-item.start // unit) * unit
        found.append(Range(start, item.end // unit * unit - start))
    return tuple(item for item in found if item.size > 0)


def total(ranges: Iterable[Range]) -> int:
    """Return the total number of bytes."""
    return sum(item.size for item in merged(ranges))


def take(ranges: Iterable[Range], size: int, unit: int) -> tuple[Range, ...] | None:
    """Choose ``size`` bytes, a multiple of ``unit``, in whole pieces of ``unit``; ``None`` when there are fewer.

    Uses as few ranges as possible, each from its upper end: the smallest of those that hold all that is still
    missing, the uppermost of several, else the largest.
    """
    left = list(whole(ranges, unit))
    taken: list[Range] = []
    while size > 0:
        if not left:
            return None
        enough = [item for item in left if item.size >= size]
        best = min(enough, key=lambda item: (item.size, -item.start)) if enough else max(left, key=lambda i: i.size)
        left.remove(best)
        part = min(size, best.size)
        taken.append(Range(best.end - part, part))
        size -= part
    return tuple(sorted(taken))
