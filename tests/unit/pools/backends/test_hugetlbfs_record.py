# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of a segment of huge pages."""

from __future__ import annotations

from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord, PageCountChange
from virt_dmem.pools.record import NodeShare
from virt_dmem.units import MIB


def record() -> HugetlbfsRecord:
    nodes = {0: NodeShare(8 * MIB, 8 * MIB), 1: NodeShare(8 * MIB, 8 * MIB)}
    made = HugetlbfsRecord("p", "hugetlbfs", 2 * MIB, "/none/p", nodes, boot_id="this", existing=True)
    made.of_host, made.step, made.switched_hvo = {0: 6 * MIB}, PageCountChange(0, 1, 2), True
    return made


def test_what_the_host_took_is_forgotten_and_no_more_is_its_own_than_is_left() -> None:
    made = record()
    made.forget({0: 4 * MIB})
    assert (made.got_bytes, made.of_host) == (12 * MIB, {0: 4 * MIB})


def test_after_another_boot_nothing_is_taken_and_the_wish_for_existing_pages_remains() -> None:
    made = record()
    made.forget_boot("another")
    assert (made.got_bytes, made.of_host, made.step, made.switched_hvo) == (0, {}, None, False)
    assert made.existing
