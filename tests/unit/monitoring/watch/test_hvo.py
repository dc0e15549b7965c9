# SPDX-License-Identifier: GPL-2.0-or-later
"""HVO that was switched off after pools took their pages with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import BOOT, MIB, fake_tree
from tests.rig.pool_records import write_record
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.host import huge_pages
from virt_dmem.monitoring.watch import hvo
from virt_dmem.monitoring.watch.base import Deviation, Sight
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord
from virt_dmem.pools.lock import locked
from virt_dmem.pools.record import NodeShare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fake_tree(tmp_path / "root", hvo="0")


def found(root: Path, config: Config | None = None, **changes: bool) -> list[Deviation]:
    fields = {"optimized": True} | changes
    share = {0: NodeShare(2 * MIB, 2 * MIB)}
    record = HugetlbfsRecord("p", "hugetlbfs", 2 * MIB, "/none/p", share, state="ready", boot_id=BOOT, **fields)  # type: ignore[arg-type]
    if config:
        config.pool_records_dir.mkdir(parents=True)
        write_record(config, record)
    return [*hvo.deviations(Sight(config or Config(), [record], root))]


def test_it_is_told_where_a_pool_took_its_pages_with_it(root: Path) -> None:
    (one,) = found(root)
    assert "pages of pool p that are allocated from now on save nothing" in one.message
    huge_pages.set_hvo(True, root=root)
    assert found(root) == []


@pytest.mark.parametrize("changes", [{"hvo": False}, {"optimized": False}])
def test_a_pool_that_has_no_use_for_it_does_not_ask_for_it(root: Path, changes: dict[str, bool]) -> None:
    assert found(root, **changes) == []


def test_it_is_switched_on_again_unless_a_pool_is_being_changed(root: Path, tmp_path: Path) -> None:
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path)))
    (one,) = found(root, config)
    assert one.repair is not None
    with locked(config):
        one.repair()
    assert huge_pages.hvo(root=root) is False
    one.repair()
    assert huge_pages.hvo(root=root) is True
