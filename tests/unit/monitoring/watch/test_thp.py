# SPDX-License-Identifier: GPL-2.0-or-later
"""Transparent huge pages that are off are told of where large pages on dmemfs need them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import put
from virt_dmem.config.schema import Config
from virt_dmem.monitoring.watch import thp
from virt_dmem.monitoring.watch.base import Sight
from virt_dmem.pools.backends.dmemfs import DmemfsRecord
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.units import KIB, MIB

SHARE = {0: NodeShare(2 * MIB, 2 * MIB)}


@pytest.mark.parametrize(
    ("setting", "record", "told"),
    [
        ("always madvise [never]", DmemfsRecord("p", "dmemfs", 2 * MIB, "/x/p", SHARE), True),
        ("always [madvise] never", DmemfsRecord("p", "dmemfs", 2 * MIB, "/x/p", SHARE), False),
        ("always madvise [never]", DmemfsRecord("p", "dmemfs", 4 * KIB, "/x/p", SHARE), False),
        ("always madvise [never]", PoolRecord("p", "tmpfs", 4 * KIB, "/x/p", SHARE), False),
        (None, DmemfsRecord("p", "dmemfs", 2 * MIB, "/x/p", SHARE), False),
    ],
)
def test_it_is_told_of_where_a_pool_needs_them(
    tmp_path: Path, setting: str | None, record: PoolRecord, told: bool
) -> None:
    if setting:
        put(tmp_path / "sys/kernel/mm/transparent_hugepage/enabled", f"{setting}\n")
    found = [*thp.deviations(Sight(Config(), [record], tmp_path))]
    assert [one.code for one in found] == ["thp-switched-off"] * told
    if told:
        assert "maps the pages of pool p by 4 KiB" in found[0].message
        assert "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled" in found[0].hint
        assert found[0].repair is None
