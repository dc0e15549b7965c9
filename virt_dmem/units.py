# SPDX-License-Identifier: GPL-2.0-or-later
"""Convert sizes and durations: text to bytes and seconds, and sizes back."""

from __future__ import annotations

import re

from virt_dmem.errors import UsageError
from virt_dmem.text import clipped

__all__ = ["KIB", "MIB", "GIB", "TIB", "parse_size", "parse_number", "parse_duration", "format_size", "round_up"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_MAX_BYTES = 2**63 - 1
"""The largest off_t."""
_MAX_ADDRESS = 2**64 - 1
_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = r"(?ia)0*(\d{1,19})\s*([KMGT]?)(?:i?B)?"  # 19 digits are 63 bits, and int() refuses 4300


def parse_size(text: str) -> int:
    """Return the bytes of a size: ``64M``, ``64MiB``, ``1G``, ``4096``; K, M, G, T are powers of 1024.

    :raise UsageError: When it is no size, zero, or more than a file can have.
    """
    match = re.fullmatch(_SIZE, text.strip())
    size_bytes = int(match[1]) * _FACTORS[match[2].upper()] if match else 0
    if not 0 < size_bytes <= _MAX_BYTES:
        raise UsageError(
            f"{clipped(text, 80)!r} is not a size.", hint="Write a number and K, M, G or T, such as 512M or 4G."
        )
    return size_bytes


def parse_number(text: str, shown: str = "") -> int:
    """Return the number that the kernel's memparse() reads from ``text``: ``2G``, ``0x80000000``, ``4096``, ``0``.

    :param shown: The option it is a part of, for the message.
    :raise UsageError: When it is no such number.
    """
    match = re.fullmatch(r"(?:0x0*([0-9a-f]{1,16})|0*(\d{1,20}))([KMGT]?)", text.strip(), re.IGNORECASE | re.ASCII)
    number = -1
    if match is not None:
        number = (int(match[1], 16) if match[1] else int(match[2])) * _FACTORS[match[3].upper()]
    if not 0 <= number <= _MAX_ADDRESS:
        raise UsageError(
            f"{clipped(shown or text, 80)!r} is invalid: {clipped(text, 80)!r} is not a number of bytes.",
            hint="Write a number, decimal or with 0x, and K, M, G or T, such as 2G.",
        )
    return number


def parse_duration(text: str) -> int:
    """Return the seconds of a duration: ``90``, ``90s``, ``30m``, ``1h``, ``2d``.

    :raise UsageError: When it is no duration, or zero.
    """
    match = re.fullmatch(r"(\d{1,9})\s*([smhd]?)", text.strip(), re.IGNORECASE | re.ASCII)
    factor = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    seconds = int(match[1]) * factor[match[2].lower()] if match else 0
    if seconds <= 0:
        raise UsageError(
            f"{clipped(text, 80)!r} is not a duration.", hint="Write a number and s, m, h or d, such as 30m or 2h."
        )
    return seconds


def format_size(size_bytes: int) -> str:
    """Return a size for display: at most one decimal, exact where it is a whole number of units."""
    for factor, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(size_bytes) >= factor:
            value = size_bytes / factor
            return f"{value:.0f} {unit}" if size_bytes % factor == 0 else f"{value:.1f} {unit}"
    return f"{size_bytes} B"


def round_up(size_bytes: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``size_bytes``."""
    return -(-size_bytes // multiple) * multiple
