# SPDX-License-Identifier: GPL-2.0-or-later
"""The backend of huge pages over fake trees; what it does to a host is in test_manage_real.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.rig.checked_machine import bare_machine, pool
from tests.rig.elastic_records import elastic_record
from tests.rig.fake_tree import BOOT, GIB, MIB, fake_tree, put
from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolShort
from virt_dmem.host import huge_pages
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.monitoring.checks.suite import CHECKS
from virt_dmem.pools.backends.base import Job
from virt_dmem.pools.backends.checks import Result, Status
from virt_dmem.pools.backends.hugetlbfs import Hugetlbfs, HugetlbfsRecord, PageCountChange
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import NodeShare, PoolRecord

HUGE = 2 * MIB


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return bare_machine(tmp_path)


def check(name: str, machine: Machine) -> Result:
    """Run one check of the suite."""
    (found,) = [one for one in CHECKS if one.name == name]
    return found.run(machine)


def test_a_kernel_without_huge_pages_has_no_hugetlbfs(tmp_path: Path) -> None:
    probe = backend("hugetlbfs").probe(root=fake_tree(tmp_path, page_sizes=()))
    assert not probe.available
    assert "CONFIG_HUGETLBFS" in probe.reason


def test_a_kernel_without_hvo_has_hugetlbfs_with_a_warning(tmp_path: Path) -> None:
    probe = backend("hugetlbfs").probe(root=fake_tree(tmp_path, hvo=None))
    assert probe.available
    assert "save nothing" in probe.reason


def test_huge_pages_are_looked_for(machine: Machine) -> None:
    assert check("huge-pages", machine).message == "The kernel has huge pages of 2 MiB, 1 GiB."


def test_a_kernel_without_huge_pages_is_a_fault_only_where_a_pool_needs_them(tmp_path: Path) -> None:
    machine = Machine(Config(), "", fake_tree(tmp_path, page_sizes=()))
    assert check("huge-pages", machine).status is Status.WARN
    pool(machine, backend="hugetlbfs")
    assert check("huge-pages", machine).status is Status.FAIL


@pytest.mark.parametrize(("hvo", "status"), [("0", Status.PASS), ("1", Status.PASS), (None, Status.WARN)])
def test_a_kernel_without_hvo_saves_nothing(tmp_path: Path, hvo: str | None, status: Status) -> None:
    assert check("hvo", Machine(Config(), "", fake_tree(tmp_path, hvo=hvo))).status is status


@pytest.mark.parametrize(
    ("release", "status"),
    [("6.12.117+deb13-amd64", Status.WARN), ("6.18.51", Status.WARN), ("6.12.113+deb13-amd64", Status.PASS)],
)
def test_a_kernel_that_loses_optimized_pages_is_named(machine: Machine, release: str, status: Status) -> None:
    put(machine.root / "proc/sys/kernel/osrelease", f"{release}\n")
    result = check("hvo", machine)
    assert result.status is status
    assert (release in result.message) is (status is Status.WARN)


@pytest.mark.parametrize(("taint", "status"), [(32, Status.WARN), (12320, Status.WARN), (4096 + 64, Status.PASS)])
def test_a_kernel_that_has_lost_pages_says_so_by_its_taint(machine: Machine, taint: int, status: Status) -> None:
    put(machine.root / "proc/sys/kernel/tainted", f"{taint}\n")
    assert check("hvo", machine).status is status


def test_a_pool_whose_pages_were_taken_without_hvo_is_named(machine: Machine) -> None:
    pool(machine, "late", backend="hugetlbfs", optimized=False)
    assert "late" in check("hvo", machine).message
    assert check("hvo", machine).status is Status.WARN


@pytest.mark.parametrize(
    ("from_pages", "to_pages", "now", "got", "expected"),
    [
        (10, 18, 10, 0, 0),  # killed before the kernel was asked
        (10, 18, 13, 0, 3),  # in the middle
        (10, 18, 18, 4, 12),  # after it, before that was written down
        (10, 18, 30, 0, 8),  # and others took pages
        (10, 18, 5, 0, 0),  # or gave them back
        (18, 10, 18, 8, 8),  # the same on the way back
        (18, 10, 15, 8, 5),
        (18, 10, 10, 8, 0),
        (18, 10, 3, 8, 0),
    ],
)
def test_a_step_that_was_cut_short_is_counted_by_what_the_node_has(
    tmp_path: Path, from_pages: int, to_pages: int, now: int, got: int, expected: int
) -> None:
    root = fake_tree(tmp_path / "root")
    (root / "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages").write_text(f"{now}\n")
    record = HugetlbfsRecord("p", "hugetlbfs", HUGE, "/none/p", {0: NodeShare(16 * HUGE, got * HUGE)}, boot_id=BOOT)
    record.step = PageCountChange(0, from_pages, to_pages)
    saved: list[PoolRecord] = []
    # no page is free in this tree, so nothing can be given back: what remains is what the step left
    job = Job(record, (), lambda: saved.append(record), lambda *_: None, root)
    assert backend("hugetlbfs").release(job) == expected * HUGE
    assert record.step is None
    assert saved


def test_a_page_that_the_kernel_cannot_free_stays_recorded_and_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake kernel: it cannot get back the struct pages of 3 pages at first, and makes them surplus pages."""
    root = fake_tree(tmp_path)
    kernel = FakeKernel(root, persistent=20, stuck=3)
    monkeypatch.setattr(huge_pages, "set_persistent", kernel.set_huge_pages)
    record = HugetlbfsRecord("p", "hugetlbfs", 2 * MIB, "/none", {0: NodeShare(16 * MIB, 16 * MIB)}, boot_id=BOOT)
    job = Job(record, (), lambda: None, lambda *_: None, root)
    assert backend("hugetlbfs").release(job) == 3 * 2 * MIB
    assert huge_pages.counters(2 * MIB, 0, root=root) == huge_pages.HugePages(pages=15, free=15, surplus=0)
    kernel.stuck = 0
    assert backend("hugetlbfs").release(job) == 0
    assert huge_pages.counters(2 * MIB, 0, root=root).pages == 12


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


def test_a_pool_without_hvo_says_when_hvo_was_on_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {0: NodeShare(4 << 20, 4 << 20)}
    without = HugetlbfsRecord("p", "hugetlbfs", 2 << 20, "/m", nodes, hvo=False)
    for on, record, told in (
        (True, without, True),
        (False, without, False),
        (True, replace(without, hvo=True), False),
    ):
        monkeypatch.setattr("virt_dmem.host.huge_pages.hvo", lambda on=on, **_: on)
        assert bool(Hugetlbfs().created_otherwise(record)) is told


def test_an_elastic_pool_that_falls_short_says_whether_memory_is_missing_or_fragmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake of a kernel that finds no page."""
    root = fake_tree(tmp_path / "root", memory=[16 * GIB, 16 * GIB], hvo=None)
    for node in (0, 1):
        put(root / f"sys/devices/system/node/node{node}/compact", "")
    record = elastic_record(Config(), "p+1", {0: HUGE, 1: 14 * GIB}, boot_id=BOOT, state="creating")
    for share in record.nodes.values():
        share.got_bytes = 0
    monkeypatch.setattr(huge_pages, "set_persistent", lambda *_args, **_more: None)
    with pytest.raises(PoolShort) as caught:
        Hugetlbfs().acquire(Job(record, (), lambda: None, lambda *_: None, root))
    assert caught.value.had == {0: 0, 1: 0}
    assert "Node 0 has 12 GiB available, but so fragmented" in caught.value.hint
    assert "plan-host" not in caught.value.hint
    assert "Node 1 has only 12 GiB available for the other 14 GiB" in caught.value.hint
    assert (root / "sys/devices/system/node/node0/compact").read_text() == "1\n"
