# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket of virt-dmem-pages is missed where a pool is elastic."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from tests.rig.fake_tree import put
from virt_dmem.config.schema import Config
from virt_dmem.monitoring.watch import pages_socket
from virt_dmem.monitoring.watch.base import Sight
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits, HugetlbfsRecord
from virt_dmem.pools.record import NodeShare
from virt_dmem.units import MIB

FIXED = HugetlbfsRecord("p", "hugetlbfs", 2 * MIB, "/x/p", {0: NodeShare(2 * MIB, 2 * MIB)})


@pytest.mark.parametrize(
    ("elastic", "there", "told"), [(True, True, False), (True, False, True), (False, False, False)]
)
def test_it_is_told_of_where_an_elastic_pool_needs_it(
    tmp_path: Path, *, elastic: bool, there: bool, told: bool
) -> None:
    record = structs.replace(FIXED, elastic=ElasticLimits(4 * MIB, 0, 0, 60)) if elastic else FIXED
    if there:
        put(tmp_path / "run/virt-dmem/sock-pages", "")
    found = [*pages_socket.deviations(Sight(Config(), [record], tmp_path))]
    assert [one.code for one in found] == ["control-socket-gone"] * told
    if told:
        assert found[0].message.endswith(
            "is gone: elastic pool p takes no memory for domains, and gives none back."
        )
        assert "'systemctl restart virt-dmem-pages.socket'" in found[0].hint
        assert found[0].repair is None
