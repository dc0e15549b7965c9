# SPDX-License-Identifier: GPL-2.0-or-later
"""Looking pools up by their records."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.elastic_records import elastic_record
from tests.rig.pool_records import HUGE, huge_record, write_record
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolNotFound
from virt_dmem.pools import manage, registry
from virt_dmem.pools.record import NodeShare


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))


def test_there_are_no_pools_at_first(config: Config) -> None:
    assert registry.records(config) == []
    with pytest.raises(PoolNotFound, match="'p'"):
        registry.find(config, "p")
    with pytest.raises(PoolNotFound):
        manage.destroy(config, "p")


def test_records_are_read_back_by_name(config: Config) -> None:
    for name in ("b", "a.1", "C-2"):
        write_record(config, huge_record(config, name))
    (config.pool_records_dir / ".a.1.new").write_text("half a rec")
    assert [record.name for record in registry.records(config)] == ["C-2", "a.1", "b"]
    assert registry.find(config, "b") == huge_record(config, "b")


def test_a_pool_that_is_not_mounted_has_nothing(config: Config) -> None:
    record = huge_record(config)
    record.state, record.nodes = "ready", {0: NodeShare(HUGE, HUGE)}
    assert registry.capacity(record) == {0: 0}


def test_what_an_elastic_pool_takes_for_a_domain_leaves_it_ready(config: Config) -> None:
    first, taken = elastic_record(config), elastic_record(config, "p+1", state="creating")
    assert registry.shown_state([first, taken]) == "ready"
    assert registry.shown_state([taken]) == "creating"
    first.state = "destroying"
    assert registry.shown_state([first, taken]) == "destroying"
