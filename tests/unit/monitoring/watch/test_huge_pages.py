# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said about a lowered number of huge pages, and its repair; the counts: tests of page_counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import BOOT, MIB, fake_tree, put
from tests.rig.pool_records import write_record
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.monitoring.watch import huge_pages
from virt_dmem.monitoring.watch.base import Deviation, Sight
from virt_dmem.pools import registry
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord
from virt_dmem.pools.lock import locked
from virt_dmem.pools.record import NodeShare

NODE = "sys/devices/system/node/node0/hugepages/hugepages-2048kB"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state")))
    config.pool_records_dir.mkdir(parents=True)
    for name in ("a", "b"):
        share = {0: NodeShare(8 * MIB, 8 * MIB)}
        record = HugetlbfsRecord(name, "hugetlbfs", 2 * MIB, f"/none/{name}", share, state="ready", boot_id=BOOT)
        write_record(config, record)
    return config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fake_tree(tmp_path / "root")


def found(config: Config, root: Path, nr: int, surplus: int = 0) -> list[Deviation]:
    put(root / NODE / "nr_hugepages", f"{nr}\n")
    put(root / NODE / "surplus_hugepages", f"{surplus}\n")
    return [*huge_pages.deviations(Sight(config, registry.complete(config), root))]


def test_as_many_as_pools_took_are_enough(config: Config, root: Path) -> None:
    assert found(config, root, 8) == []


def test_pages_that_may_be_lost_are_told_of_with_pools_and_numbers(config: Config, root: Path) -> None:
    (one,) = found(config, root, 8, surplus=6)
    assert one.message == (
        "Somebody lowered the number of 2 MiB pages of node 0 to 2, where pools a, b took 8: the next 6 that are"
        " freed go to the kernel, even if a guest frees them."
    )
    assert "'virt-dmem pool mount a' and 'virt-dmem pool mount b'" in one.hint


def test_pages_that_are_lost_are_told_of(config: Config, root: Path) -> None:
    (one,) = found(config, root, 5)
    assert one.message.endswith("took 8: 6 MiB of them are gone.")


def test_surplus_pages_that_others_may_use_are_told_of_and_left_to_them(config: Config, root: Path) -> None:
    put(root / "sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages", "100\n")
    (one,) = found(config, root, 12, surplus=4)
    assert one.message.startswith("Others use 4 surplus pages of 2 MiB on node 0")
    assert one.repair is None


def test_the_number_is_raised_unless_a_pool_is_being_changed(config: Config, root: Path) -> None:
    (one,) = found(config, root, 6, surplus=2)
    assert one.repair is not None
    with locked(config):
        one.repair()
    assert (root / NODE / "nr_hugepages").read_text() == "6\n"
    one.repair()
    assert (root / NODE / "nr_hugepages").read_text() == "8\n"
