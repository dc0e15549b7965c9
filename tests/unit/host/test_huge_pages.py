# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages and HVO of fake trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import GIB, MIB, fake_tree, put
from virt_dmem.host import huge_pages


def test_huge_page_sizes_are_those_the_kernel_offers(tmp_path: Path) -> None:
    assert huge_pages.sizes(root=fake_tree(tmp_path)) == (2 * MIB, GIB)
    assert huge_pages.sizes(root=tmp_path / "nothing") == ()


def test_huge_pages_are_counted_by_node_and_reservations_for_the_host(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=[GIB, GIB])
    base = root / "sys/devices/system/node/node1/hugepages/hugepages-2048kB"
    put(base / "nr_hugepages", "10\n")
    put(base / "free_hugepages", "4\n")
    put(base / "surplus_hugepages", "3\n")
    put(root / "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "2\n")
    found = huge_pages.counters(2 * MIB, 1, root=root)
    assert found == huge_pages.HugePages(10, 4, 3, 0)
    assert found.persistent == 7
    assert huge_pages.counters(2 * MIB, root=root).reserved == 2


@pytest.mark.parametrize(("content", "expected"), [("0", False), ("1", True), (None, None)])
def test_hvo_is_on_off_or_not_there(tmp_path: Path, content: str | None, expected: bool | None) -> None:
    assert huge_pages.hvo(root=fake_tree(tmp_path, hvo=content)) is expected


def test_a_node_is_compacted_by_itself_or_else_all_memory_or_nothing(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=[GIB, GIB])
    huge_pages.compact(1, root=root)  # a kernel without compaction
    everything, one = root / "proc/sys/vm/compact_memory", root / "sys/devices/system/node/node1/compact"
    put(everything, "")
    huge_pages.compact(1, root=root)
    assert everything.read_text() == "1\n"
    put(everything, "")
    put(one, "")
    huge_pages.compact(1, root=root)
    assert (one.read_text(), everything.read_text()) == ("1\n", "")
