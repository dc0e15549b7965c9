# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify the size of the kernel's struct pages, from which every saving is computed."""

from __future__ import annotations

from virt_dmem.pools.backends.struct_pages import BASE_PAGE, struct_pages_of
from virt_dmem.units import GIB


def test_320_gib_of_guest_memory_need_5_gib_on_pages_of_4_kib() -> None:
    assert struct_pages_of(320 * GIB) * BASE_PAGE == 5 * GIB * 4096


def test_only_whole_pages_have_one() -> None:
    assert struct_pages_of(BASE_PAGE - 1) == 0
    assert struct_pages_of(3 * BASE_PAGE - 1) == struct_pages_of(2 * BASE_PAGE) == 2 * struct_pages_of(BASE_PAGE)
