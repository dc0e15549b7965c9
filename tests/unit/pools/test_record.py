# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify what the record of a segment tells of its memory; ``test_record_files`` reads and writes records."""

from __future__ import annotations

from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.units import MIB


def test_after_a_reboot_nothing_was_taken_and_as_much_is_wanted() -> None:
    nodes = {0: NodeShare(8 * MIB, 8 * MIB), 1: NodeShare(4 * MIB, 2 * MIB)}
    record = PoolRecord(
        "p+1", "hugetlbfs", 2 * MIB, "/m/p+1", nodes, state="ready", boot_id="before", saved_bytes=7, measured=False
    )
    assert (record.wanted_bytes, record.got_bytes) == (12 * MIB, 10 * MIB)
    record.forget_boot("now")
    assert (record.wanted_bytes, record.got_bytes) == (12 * MIB, 0)
    assert (record.boot_id, record.saved_bytes, record.measured) == ("now", 0, True)
    assert (record.pool, record.number, record.state) == ("p", 1, "ready"), "it is still that segment"
