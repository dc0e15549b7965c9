# SPDX-License-Identifier: GPL-2.0-or-later
"""Compute the memory that the kernel's struct pages need."""

from __future__ import annotations

import os

__all__ = ["BASE_PAGE", "struct_pages_of"]

BASE_PAGE = os.sysconf("SC_PAGESIZE")
_STRUCT_PAGE = 64  # sizeof(struct page) wherever HVO exists: it needs a power of two


def struct_pages_of(size_bytes: int) -> int:
    """Return the bytes of struct pages that an ordinary host keeps for ``size_bytes`` of memory."""
    return size_bytes // BASE_PAGE * _STRUCT_PAGE
