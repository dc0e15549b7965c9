# SPDX-License-Identifier: GPL-2.0-or-later
"""Gross, left and net of each pool. What a kernel counted is in test_manage_real.py."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.rig.fake_arm64 import fake_arm64
from tests.rig.fake_tree import GIB, MIB, fake_tree
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.pools import registry
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.savings import PoolSavings, savings, why_none


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))
    config.pool_records_dir.mkdir(parents=True)
    return config


def write(config: Config, record: PoolRecord) -> None:
    (config.pool_records_dir / f"{record.name}.json").write_bytes(msgspec.json.encode(record))


def test_without_pools_there_is_nothing_to_tell(config: Config) -> None:
    assert savings(config) == []


def test_a_pool_that_is_not_mounted_saves_nothing(config: Config) -> None:
    nodes = {0: NodeShare(GIB, GIB)}
    write(config, PoolRecord("p", "hugetlbfs", 2 * MIB, "/nowhere/p", nodes, saved_bytes=14 * MIB))
    assert savings(config) == [PoolSavings("p", "hugetlbfs", 2 * MIB, 0, 0, 0, 0, measured=True)]


def test_what_is_left_and_net_make_up_gross_and_an_estimate_says_so(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        config,
        PoolRecord("p", "hugetlbfs", 2 * MIB, "/p", {0: NodeShare(GIB, GIB)}, saved_bytes=14 * MIB, measured=False),
    )
    monkeypatch.setattr(registry, "capacity", lambda record, root: {0: GIB})  # as if it were mounted
    (found,) = savings(config)
    assert (found.gross_bytes, found.metadata_left_bytes, found.net_bytes) == (16 * MIB, 2 * MIB, 14 * MIB)
    assert not found.measured
    assert msgspec.to_builtins(found)["net_bytes"] == 14 * MIB


def test_that_huge_pages_save_nothing_is_said_with_the_reason(tmp_path: Path) -> None:
    of_huge_pages = PoolSavings("p", "hugetlbfs", 32 * MIB, GIB, 16 * MIB, 16 * MIB, 0, measured=True)
    on_dmemfs = PoolSavings("q", "dmemfs", 2 * MIB, GIB, 16 * MIB, 0, 16 * MIB, measured=True)
    arm64, x86 = fake_arm64(tmp_path / "arm64"), fake_tree(tmp_path / "x86", hvo=None)
    assert "Linux has no HVO on arm64" in why_none([of_huge_pages, on_dmemfs], root=arm64)
    assert "CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP" in why_none([of_huge_pages], root=x86)
    assert why_none([on_dmemfs], root=arm64) == ""
    assert why_none([of_huge_pages], root=fake_tree(tmp_path / "hvo")) == ""
