# SPDX-License-Identifier: GPL-2.0-or-later
"""Names, sizes and refusals of pools: all that goes before the first change of the host.

Sizes are spread over the nodes of a fake tree; what the kernel then does is in test_manage_real.py.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.rig.fake_tree import GIB, MIB, fake_tree
from tests.rig.pool_records import HUGE, huge_record, write_record
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolError, PoolExists, PoolNotFound, PoolShort, UsageError
from virt_dmem.pools import manage, registry
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import NodeShare


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))


@pytest.mark.parametrize("name", ["", ".", "..", "-p", ".p", "a/b", "../p", "a b", "é", "p\n", "x" * 65])
def test_a_name_that_cannot_be_is_refused_and_nothing_is_written(config: Config, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        manage.create(config, name, sizes=HUGE)
    with pytest.raises(PoolNotFound):
        registry.find(config, name)
    assert not config.pool_records_dir.exists()


def test_an_existing_pool_is_left_as_it_is(config: Config, tmp_path: Path) -> None:
    write_record(config, huge_record(config))
    with pytest.raises(PoolExists):
        manage.create(config, "p", sizes=HUGE, root=fake_tree(tmp_path / "root"))
    assert registry.find(config, "p") == huge_record(config)


def test_what_is_mounted_in_the_place_of_a_pool_is_left_as_it_is(config: Config, tmp_path: Path) -> None:
    root = fake_tree(tmp_path / "root")
    (root / "proc/self/mountinfo").write_text(f"30 1 0:50 / {config.pools_dir / 'p'} rw - tmpfs x rw\n")
    with pytest.raises(PoolExists, match="not a pool"):
        manage.create(config, "p", sizes=HUGE, root=root)
    assert registry.records(config) == []


@pytest.mark.parametrize(
    ("size", "nearest"),
    [(HUGE + 1, "2M or 4M"), (HUGE - 1, "is 2M"), (0, "2M"), (-HUGE, "2M"), (2 * 10**9, "is 1906M or 1908M")],
)
def test_a_size_between_pages_is_refused_with_the_nearest(
    config: Config, tmp_path: Path, size: int, nearest: str
) -> None:
    root = fake_tree(tmp_path / "root")
    for sizes in (size, {0: size}):
        with pytest.raises(UsageError, match="not a whole number of pages of 2 MiB") as caught:
            manage.create(config, "p", sizes=sizes, root=root)
        assert nearest in caught.value.hint
    assert registry.records(config) == []


def test_a_page_size_that_the_host_has_not_is_refused_with_those_it_has(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="16 MiB") as caught:
        manage.create(config, "p", sizes=GIB, page_size=16 * MIB, root=fake_tree(tmp_path / "root"))
    assert "2 MiB or 1 GiB" in caught.value.hint


@pytest.mark.parametrize("sizes", [{}, {1: HUGE}, {0: HUGE, 7: HUGE}, {-1: HUGE}])
def test_a_node_without_memory_or_existence_is_refused(
    config: Config, tmp_path: Path, sizes: Mapping[int, int]
) -> None:
    root = fake_tree(tmp_path / "root", memory=[GIB, 0, GIB])
    with pytest.raises(UsageError, match="cannot have memory of node") as caught:
        manage.create(config, "p", sizes=sizes, root=root)
    assert "0, 2" in caught.value.hint


def test_tmpfs_takes_memory_from_no_node_in_particular(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="node 0"):
        manage.create(config, "p", sizes={0: HUGE}, backend="tmpfs", root=fake_tree(tmp_path / "root"))


def test_a_host_without_huge_pages_says_so(config: Config, tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="no huge pages"):
        manage.create(config, "p", sizes=HUGE, root=fake_tree(tmp_path / "root", page_sizes=()))


@pytest.mark.parametrize(
    ("memory", "pages", "shares"),
    [
        ([16 * GIB], 5, {0: 5}),
        ([16 * GIB, 16 * GIB], 5, {0: 3, 1: 2}),
        ([16 * GIB, 0, 16 * GIB], 4, {0: 2, 2: 2}),
        ([16 * GIB] * 8, 20, {0: 3, 1: 3, 2: 3, 3: 3, 4: 2, 5: 2, 6: 2, 7: 2}),
        ([16 * GIB] * 8, 3, {0: 1, 1: 1, 2: 1}),
    ],
)
def test_a_total_is_spread_evenly_over_the_nodes_that_have_memory(
    tmp_path: Path, memory: list[int], pages: int, shares: dict[int, int]
) -> None:
    found = manage.shares_of(backend("hugetlbfs"), HUGE, pages * HUGE, fake_tree(tmp_path, memory=memory))
    assert found == {node: count * HUGE for node, count in shares.items()}


def test_slow_memory_is_taken_only_where_it_is_named(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=[16 * GIB] * 3, without_cpus=[1])
    kind = backend("hugetlbfs")
    assert manage.shares_of(kind, HUGE, 4 * HUGE, root) == {0: 2 * HUGE, 2: 2 * HUGE}
    assert manage.shares_of(kind, HUGE, {1: HUGE}, root) == {1: HUGE}


@pytest.mark.parametrize("sizes", [{0: 13 * GIB}, {0: GIB, 1: 13 * GIB}, 25 * GIB])
def test_more_than_a_node_has_available_is_refused_before_anything_is_taken(
    config: Config, tmp_path: Path, sizes: int | Mapping[int, int]
) -> None:
    root = fake_tree(tmp_path / "root", memory=[16 * GIB, 16 * GIB])
    with pytest.raises(PoolShort, match="12 GiB are available"):
        manage.create(config, "p", sizes=sizes, root=root)
    assert registry.records(config) == []
    assert (root / "proc/sys/vm/hugetlb_optimize_vmemmap").read_text() == "0\n"


def test_the_last_memory_of_the_host_is_left_to_it(config: Config, tmp_path: Path) -> None:
    root = fake_tree(tmp_path / "root", memory=[16 * GIB, 16 * GIB])
    with pytest.raises(PoolShort, match="it must keep 256 MiB"):
        manage.create(config, "p", sizes=24 * GIB, root=root)
    with pytest.raises(PoolShort, match="24 GiB available"):
        manage.create(config, "p", sizes=25 * GIB, backend="tmpfs", root=root)


def test_destroying_a_record_of_an_earlier_boot_gives_back_nothing(config: Config, tmp_path: Path) -> None:
    root = fake_tree(tmp_path / "root", hvo="1")
    nr = root / "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
    nr.write_text("100\n")
    record = huge_record(config)
    record.nodes, record.boot_id, record.switched_hvo = {0: NodeShare(HUGE, HUGE)}, "another boot", True
    write_record(config, record)
    manage.destroy(config, "p", root=root)
    assert nr.read_text() == "100\n"
    assert (root / "proc/sys/vm/hugetlb_optimize_vmemmap").read_text() == "1\n"
    assert registry.records(config) == []


def test_records_are_for_root_alone(config: Config, tmp_path: Path) -> None:
    root = fake_tree(tmp_path / "root")
    seen: list[int] = []

    def look(_doing: str, _done: int, _total: int) -> None:
        seen.append(stat.S_IMODE((config.pool_records_dir / "p.json").stat().st_mode))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manage.create(config, "p", sizes=HUGE, root=root, report=look)
    assert seen == [0o600]
    assert stat.S_IMODE(config.pool_records_dir.stat().st_mode) == 0o700
    assert registry.records(config) == []
