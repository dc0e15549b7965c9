# SPDX-License-Identifier: GPL-2.0-or-later
"""What backends answer without a mount; what they do to a host is in test_pools_real.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import BOOT, GIB, MIB, fake_tree, put
from virt_dmem.errors import UsageError
from virt_dmem.host import huge_pages
from virt_dmem.pools.backends.base import Job, struct_pages_of
from virt_dmem.pools.backends.table import BACKENDS, backend
from virt_dmem.pools.record import NodeShare, PoolRecord

KIB = 1024


def test_every_backend_is_found_by_its_name() -> None:
    assert set(BACKENDS) == {"hugetlbfs", "dmemfs", "tmpfs"}
    assert all(backend(name).name == name for name in BACKENDS)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'floppy'") as caught:
        backend("floppy")
    assert "hugetlbfs, dmemfs, tmpfs" in caught.value.hint


def test_page_sizes_are_those_of_the_host(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, page_sizes=(2 * MIB, GIB))
    assert backend("hugetlbfs").page_sizes(root=root) == (2 * MIB, GIB)
    assert backend("tmpfs").page_sizes(root=root) == (4 * KIB,)


def test_a_kernel_without_huge_pages_has_no_hugetlbfs(tmp_path: Path) -> None:
    probe = backend("hugetlbfs").probe(root=fake_tree(tmp_path, page_sizes=()))
    assert not probe.available
    assert "CONFIG_HUGETLBFS" in probe.reason


def test_a_kernel_without_hvo_has_hugetlbfs_with_a_warning(tmp_path: Path) -> None:
    probe = backend("hugetlbfs").probe(root=fake_tree(tmp_path, hvo=None))
    assert probe.available
    assert "no saving" in probe.reason


def test_this_machine_has_both() -> None:
    assert all(BACKENDS[name].probe().available for name in ("hugetlbfs", "tmpfs"))


@pytest.mark.parametrize(
    ("name", "page_size", "left"),
    [
        ("hugetlbfs", 2 * MIB, 640 * MIB),
        ("hugetlbfs", GIB, 1280 * KIB),
        ("dmemfs", 2 * MIB, 320 * (4096 + 128)),
        ("tmpfs", 4 * KIB, 5 * GIB),
    ],
)
def test_of_the_struct_pages_of_320_gib_so_much_is_left(name: str, page_size: int, left: int) -> None:
    assert struct_pages_of(320 * GIB) == 5 * GIB
    assert backend(name).metadata_left(320 * GIB, page_size) == left


def test_all_hand_out_clean_memory() -> None:
    assert all(kind.zeroes_on_allocation for kind in BACKENDS.values())


def test_a_page_that_the_kernel_cannot_free_stays_ours_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake kernel: it cannot get back the struct pages of 3 pages at first, and makes them surplus pages."""
    root = fake_tree(tmp_path)
    kernel = FakeKernel(root, persistent=20, stuck=3)
    monkeypatch.setattr(huge_pages, "set_huge_pages", kernel.set_huge_pages)
    record = PoolRecord("p", "hugetlbfs", 2 * MIB, "/none", {0: NodeShare(16 * MIB, 16 * MIB)}, boot_id=BOOT)
    job = Job(record, (), lambda: None, lambda *_: None, root)
    assert backend("hugetlbfs").release(job) == 3 * 2 * MIB
    assert huge_pages.huge_pages(2 * MIB, 0, root=root) == huge_pages.HugePages(pages=15, free=15, surplus=0)
    kernel.stuck = 0
    assert backend("hugetlbfs").release(job) == 0
    assert huge_pages.huge_pages(2 * MIB, 0, root=root).pages == 12


class FakeKernel:
    """What set_max_huge_pages() and add_hugetlb_folio() of mm/hugetlb.c do to the counters of node 0."""

    def __init__(self, root: Path, *, persistent: int, stuck: int) -> None:
        self.root, self.persistent, self.surplus, self.stuck = root, persistent, 0, stuck
        self._show()

    def set_huge_pages(self, _page_size: int, _node: int, pages: int, *, root: Path) -> None:
        assert root == self.root
        if pages < self.persistent:
            kept = min(self.stuck, self.persistent - pages)
            self.surplus += kept
        else:
            self.surplus -= min(self.surplus, pages - self.persistent)
        self.persistent = pages
        self._show()

    def _show(self) -> None:
        for base in ("sys/devices/system/node/node0/hugepages", "sys/kernel/mm/hugepages"):
            counters = self.root / base / "hugepages-2048kB"
            put(counters / "nr_hugepages", f"{self.persistent + self.surplus}\n")
            put(counters / "free_hugepages", f"{self.persistent + self.surplus}\n")
            put(counters / "surplus_hugepages", f"{self.surplus}\n")
