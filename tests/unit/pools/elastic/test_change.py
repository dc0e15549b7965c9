# SPDX-License-Identifier: GPL-2.0-or-later
"""What virt-dmem-pages refuses, on a fake tree: nothing is changed there. What it does: test_change_real.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.elastic_records import PAGE, elastic_record
from tests.rig.fake_tree import BOOT, fake_tree, put
from tests.rig.pool_records import huge_record, write_record
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolError, PoolNotFound, PoolShort
from virt_dmem.pools import registry
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits
from virt_dmem.pools.elastic import change
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import GIB


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))


@pytest.fixture
def root(tmp_path: Path, config: Config) -> Path:
    """A host on which an elastic pool ``p`` of at most 4 GiB is recorded and mounted, and a fixed one, ``f``."""
    root = fake_tree(tmp_path / "root")
    write_record(config, elastic_record(config, boot_id=BOOT))
    write_record(config, huge_record(config, "f"))
    mounts = "".join(
        f"{30 + number} 1 0:{50 + number} / {config.pools_dir / name} rw - hugetlbfs virt-dmem-{name} rw\n"
        for number, name in enumerate("pf")
    )
    put(root / "proc/self/mountinfo", mounts)
    return root


def state(config: Config, root: Path) -> list[bytes]:
    files = [*config.pool_records_dir.glob("[!.]*"), *root.rglob("nr_hugepages"), root / "proc/sys/vm"]
    return [path.read_bytes() for path in sorted(files) if path.is_file()]


@pytest.mark.parametrize(
    ("pool", "nodes", "kind", "what"),
    [
        ("none", {0: PAGE}, PoolNotFound, "no pool"),
        ("../p", {0: PAGE}, PoolNotFound, "no pool"),
        ("p+1", {0: PAGE}, PoolNotFound, "no pool"),
        ("f", {0: PAGE}, PoolError, "not elastic"),
        ("p", {}, PoolError, "cannot take these"),
        ("p", {0: 0}, PoolError, "cannot take these"),
        ("p", {0: -PAGE}, PoolError, "cannot take these"),
        ("p", {0: PAGE + 1}, PoolError, "cannot take these"),
        ("p", {1: PAGE}, PoolError, "cannot take these"),
        ("p", {0: 4 * GIB + PAGE}, PoolShort, "at most 4 GiB"),
        ("p", {0: 1 << 62}, PoolShort, "at most 4 GiB"),
    ],
)
def test_what_the_record_does_not_allow_is_not_taken(
    config: Config, root: Path, pool: str, nodes: dict[int, int], kind: type[PoolError], what: str
) -> None:
    before = state(config, root)
    with pytest.raises(kind, match=what):
        change.take(config, pool, nodes, root=root)
    assert state(config, root) == before


def test_the_host_is_not_left_with_less_than_it_is_to_keep(config: Config, root: Path) -> None:
    write_record(config, elastic_record(config, boot_id=BOOT, limits=ElasticLimits(64 * GIB, 0, 10 * GIB, 0)))
    with pytest.raises(PoolShort, match="the host has 12 GiB available and keeps 10 GiB"):
        change.take(config, "p", {0: 3 * GIB}, root=root)


def test_a_pool_that_is_not_mounted_takes_nothing(config: Config, root: Path) -> None:
    put(root / "proc/self/mountinfo", "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n")
    with pytest.raises(PoolError, match="not mounted"):
        change.take(config, "p", {0: PAGE}, root=root)


def test_a_pool_whose_first_record_is_missing_takes_nothing(config: Config, root: Path) -> None:
    write_record(config, elastic_record(config, "p+1", {0: PAGE}, boot_id=BOOT))
    (config.pool_records_dir / "p.json").unlink()
    with pytest.raises(PoolError, match="not mounted"):
        change.take(config, "p", {0: PAGE}, root=root)


@pytest.mark.parametrize("segment", ["p", "f"])
def test_what_was_not_taken_for_a_domain_is_not_given_back(config: Config, root: Path, segment: str) -> None:
    before = state(config, root)
    with pytest.raises(PoolError, match="not taken for a domain"):
        change.give_back(config, SegmentId(segment), root=root)
    assert state(config, root) == before


def test_what_is_not_there_needs_no_giving_back(config: Config, root: Path) -> None:
    before = state(config, root)
    change.give_back(config, SegmentId("p+7"), root=root)
    for name in ("none", "../p+1", "p/../f+1"):
        with pytest.raises(PoolNotFound):
            change.give_back(config, SegmentId(name), root=root)
    assert state(config, root) == before


def test_a_kernel_that_would_lose_the_pages_is_given_none_back(config: Config, root: Path) -> None:
    put(root / "proc/sys/kernel/osrelease", "6.12.117\n")
    record = elastic_record(config, "p+1", {0: PAGE}, boot_id=BOOT)
    record.optimized = True
    write_record(config, record)
    with pytest.raises(PoolError, match="would lose the huge pages"):
        change.give_back(config, SegmentId("p+1"), root=root)
    assert len(registry.segments(config, "p")) == 2


def test_at_its_start_it_undoes_what_an_earlier_boot_or_a_kill_left_and_nothing_else(
    config: Config, root: Path
) -> None:
    write_record(config, elastic_record(config, "p+1", {0: PAGE}, boot_id="another"))
    write_record(config, elastic_record(config, "p+2", {0: 0}, boot_id=BOOT, state="creating"))
    write_record(config, elastic_record(config, "p+3", {0: PAGE}, boot_id=BOOT))
    broken = huge_record(config, "g")
    broken.state = "creating"
    write_record(config, broken)
    assert change.settle(config, root=root) == []
    assert [record.name for record in registry.records(config)] == ["f", "g", "p", "p+3"]
