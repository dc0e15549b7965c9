# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages of pools against those of the host, on trees that stand for hosts; the real one: test_lowered.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import BOOT, GIB, MIB, fake_tree, put
from virt_dmem.pools.backends import page_counts
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.segment_id import SegmentId

HUGE = 2 * MIB


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fake_tree(tmp_path, memory=(16 * GIB, 16 * GIB))


def record(name: str = "p", boot: str = BOOT, page_size: int = HUGE, **pages: int) -> HugetlbfsRecord:
    """Return the record of a pool with so many pages of ``node0`` and ``node1``."""
    nodes = {int(node[4:]): NodeShare(count * page_size, count * page_size) for node, count in pages.items()}
    return HugetlbfsRecord(name, "hugetlbfs", page_size, f"/none/{name}", nodes, boot_id=boot)


def has(root: Path, node: int | None, page_size: int = HUGE, **counts: int) -> None:
    """Write counters (``nr``, ``free``, ``surplus``, ``resv``, ``nr_overcommit``) of a node or of the host."""
    base = "sys/kernel/mm/hugepages" if node is None else f"sys/devices/system/node/node{node}/hugepages"
    for name, count in counts.items():
        put(root / base / f"hugepages-{page_size // 1024}kB/{name}_hugepages", f"{count}\n")


def number(root: Path, node: int) -> int:
    return int((root / f"sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages").read_text())


def compare(root: Path, *records: PoolRecord) -> list[tuple[int, int, int]]:
    """Return node, lacking and lost pages of each count."""
    return [(count.node, count.lacking, count.gone) for count in page_counts.compare(records, root=root)]


def test_each_node_and_size_is_compared_by_itself(root: Path) -> None:
    has(root, 0, nr=10)
    has(root, 1, nr=30)
    has(root, 1, GIB, nr=1)
    pools = [record("a", node0=8, node1=16), record("b", node1=16), record("c", page_size=GIB, node1=2)]
    assert [
        (one.page_size, one.node, one.recorded, one.pools) for one in page_counts.compare(pools, root=root)
    ] == [
        (HUGE, 0, 8, ("a",)),
        (HUGE, 1, 32, ("a", "b")),
        (GIB, 1, 2, ("c",)),
    ]
    assert compare(root, *pools) == [(0, 0, 0), (1, 2, 2), (1, 1, 1)]


def test_pages_of_an_earlier_boot_and_of_other_backends_are_not_expected(root: Path) -> None:
    tmpfs = PoolRecord("t", "tmpfs", 4096, "/none/t", {-1: NodeShare(MIB, MIB)}, boot_id=BOOT)
    assert compare(root, record(boot="an earlier one", node0=8), tmpfs) == []


def test_pages_in_use_whose_number_was_lowered_are_lacking_but_not_gone(root: Path) -> None:
    has(root, 0, nr=16, surplus=16)
    assert compare(root, record(node0=16)) == [(0, 16, 0)]


def test_surplus_pages_among_those_of_others_are_lacking_all_the_same(root: Path) -> None:
    has(root, 0, nr=1040, surplus=16)
    assert compare(root, record(node0=16)) == [(0, 16, 0)]


def test_what_others_may_have_beyond_the_number_stays_surplus(root: Path) -> None:
    has(root, None, nr_overcommit=100)
    has(root, 0, nr=1040, surplus=16)
    assert compare(root, record(node0=16)) == [(0, 0, 0)]


def test_pages_that_are_reserved_and_not_there_are_gone_whatever_others_have(root: Path) -> None:
    has(root, None, resv=10, free=6)
    has(root, 0, nr=1036)
    assert compare(root, record(node0=16)) == [(0, 4, 4)]


def test_a_node_that_is_gone_has_no_page(root: Path) -> None:
    assert compare(root, record(node7=4)) == [(7, 4, 4)]
    (count,) = page_counts.compare([record(node7=4)], root=root)
    with pytest.raises(FileNotFoundError):
        page_counts.restore(count, root=root)


@pytest.mark.parametrize(
    ("nr", "surplus", "unbacked", "anew", "raised_to"),
    [
        (64, 64, 0, True, 64),
        (54, 54, 0, True, 64),  # ten are gone
        (54, 54, 0, False, 54),
        (0, 0, 0, False, 0),
        (1078, 54, 10, True, 1088),  # among those of others
        (1078, 54, 10, False, 1078),
        (100, 0, 0, True, 100),  # nothing is wrong: never lowered
    ],
)
def test_the_number_is_raised_to_what_exists_and_what_is_gone(
    root: Path, nr: int, surplus: int, unbacked: int, anew: bool, raised_to: int
) -> None:
    has(root, None, resv=unbacked)
    has(root, 0, nr=nr, surplus=surplus)
    (count,) = page_counts.compare([record(node0=64)], root=root)
    page_counts.restore(count, anew=anew, root=root)
    assert number(root, 0) == raised_to


def test_what_is_gone_is_gone_of_the_pools_of_its_node(root: Path) -> None:
    has(root, 0, nr=10)
    has(root, 1, nr=32)
    pools = [record("a", node0=8, node1=16), record("b", node0=8), record("c", node1=16)]
    gone = page_counts.gone_by_segment(pools, root=root)
    assert gone == {SegmentId("a"): {0: 6 * HUGE}}
    assert "12 MiB of pool a are gone" in page_counts.describe_gone(gone)
    has(root, 0, nr=4)
    assert page_counts.gone_by_segment(pools, root=root) == {
        SegmentId("a"): {0: 8 * HUGE},
        SegmentId("b"): {0: 4 * HUGE},
    }
