# SPDX-License-Identifier: GPL-2.0-or-later
"""Looking pools up by their records."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.elastic_records import elastic_record
from tests.rig.fake_tree import put
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


def test_a_new_segment_is_named_like_none_that_has_a_record_or_a_mount(config: Config, tmp_path: Path) -> None:
    write_record(config, huge_record(config, "p"))
    write_record(config, huge_record(config, "p+1"))
    mounts = "".join(
        f"3{number} 1 0:5{number} / {config.pools_dir.resolve() / name} rw - hugetlbfs virt-dmem-{name} rw\n"
        for number, name in enumerate(("p", "p+1", "p+2"))  # the record of the last one was removed
    )
    put(tmp_path / "root/proc/self/mountinfo", mounts)
    assert registry.unused(config, "p", 1, root=tmp_path / "root") == "p+3"
    assert registry.unused(config, "p", 1, going=["p+1"], root=tmp_path / "root") == "p+1"
    assert registry.unused(config, "q", 1, root=tmp_path / "root") == "q+1"
