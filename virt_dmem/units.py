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
PIB = 1024 * TIB
EIB = 1024 * PIB

_MAX_BYTES = 2**63 - 1
"""The largest off_t."""
_MAX_ADDRESS = 2**64 - 1
_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_PREFIXES = "KMGTPE"
_MOST_DIGITS = 19
"""That many are 63 bits, and int() refuses 4300."""
_SIZE = r"(?ia)(\d+)(?:\.(\d{1,18}))?\s*(|b|bytes?|([KMGTPE])(|i?B))"


def parse_size(text: str) -> int:
    """Return the bytes of a size, with libvirt's units (``virScaleInteger`` in its virutil.c).

    ``64M`` and ``64MiB`` are powers of 1024, ``64MB`` of 1000, ``4096`` and ``4096B`` bytes. A decimal fraction is
    possible where it gives whole bytes: ``1.5G``.

    :raise UsageError: When it is no size, zero, not in whole bytes, or more than a file can have.
    """
    match = re.fullmatch(_SIZE, text.strip())
    if match is None:
        raise _no_size(text)
    whole = match[1].lstrip("0") or "0"
    if len(whole) > _MOST_DIGITS:
        raise _too_large(text)
    base = 1000 if (match[5] or "").lower() == "b" else 1024
    factor: int = base ** (_PREFIXES.index(match[4].upper()) + 1) if match[4] else 1
    fraction = match[2] or ""
    parts: int = 10 ** len(fraction)
    size_bytes, rest = divmod(int(whole + fraction) * factor, parts)
    if rest:
        raise UsageError(
            f"{clipped(text, 80)!r} is not a whole number of bytes.",
            hint="Write a whole number with a smaller unit, such as 1536M for 1.5G.",
        )
    if not size_bytes:
        raise _no_size(text)
    if size_bytes > _MAX_BYTES:
        raise _too_large(text)
    return size_bytes


def _too_large(text: str) -> UsageError:
    return UsageError(f"{clipped(text, 80)!r} is too large.", hint="Every size is less than 8 EiB.")


def _no_size(text: str) -> UsageError:
    return UsageError(
        f"{clipped(text, 80)!r} is not a size.",
        hint="Write a number and K, M, G or T (powers of 1024), such as 512M or 4G; KB, MB, GB and TB are powers of"
        " 1000.",
    )


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
    """Return a size for display: at most one decimal, exact where it is a whole number of units.

    More than a 64-bit number of bytes, which nothing can have, is shown with its order of magnitude.
    """
    if abs(size_bytes) >= 1024 * EIB:
        return f"{size_bytes / EIB:.1e} EiB"
    for factor, unit in ((EIB, "EiB"), (PIB, "PiB"), (TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(size_bytes) >= factor:
            value = size_bytes / factor
            return f"{value:.0f} {unit}" if size_bytes % factor == 0 else f"{value:.1f} {unit}"
    return f"{size_bytes} B"


def round_up(size_bytes: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``size_bytes``."""
    return -(-size_bytes // multiple) * multiple
