# SPDX-License-Identifier: GPL-2.0-or-later
"""Offer numbers as hostile documents write them."""

__all__ = ["DIGITS", "NUMBERS"]

DIGITS = "9" * 5000
"""More than Python reads: 4300, whatever leads them."""

NUMBERS = [
    DIGITS,
    f"-{DIGITS}",
    "0" * 5000 + "1",
    "-1",
    "+1",
    str(2**63),
    str(2**64),
    "1e9",
    "٣",
    "0x10",
    "1_0",
    "",
]
