# SPDX-License-Identifier: GPL-2.0-or-later
"""Compute the memory that the kernel's struct pages need: 64 bytes for each page, whatever its size."""

from __future__ import annotations

import os

__all__ = ["BASE_PAGE", "struct_pages_of"]

BASE_PAGE = os.sysconf("SC_PAGESIZE")
_STRUCT_PAGE = 64  # sizeof(struct page) wherever HVO exists: it needs a power of two


def struct_pages_of(size_bytes: int, base_page: int = BASE_PAGE) -> int:
    """Return the bytes of struct pages that an ordinary host keeps for ``size_bytes`` of memory.

    :param base_page: The page size of its kernel.
    """
    return size_bytes // base_page * _STRUCT_PAGE
