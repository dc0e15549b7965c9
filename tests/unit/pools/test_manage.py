# SPDX-License-Identifier: GPL-2.0-or-later
"""Names, sizes, records and refusals of pools: all that goes before the first change of the host.

Sizes are spread over the nodes of a fake tree; what the kernel then does is in test_pools_real.py.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from tests.rig.fake_tree import BOOT, GIB, MIB, fake_tree
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolError, PoolExists, PoolNotFound, PoolShort, UsageError
from virt_dmem.pools import manage, registry
from virt_dmem.pools.backends.base import Job
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import NodeShare, PageCountChange, PoolRecord

HUGE = 2 * MIB


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))


def write_record(config: Config, record: PoolRecord) -> None:
    config.pool_records_dir.mkdir(parents=True, exist_ok=True)
    (config.pool_records_dir / f"{record.name}.json").write_bytes(msgspec.json.encode(record))


def a_record(config: Config, name: str = "p") -> PoolRecord:
    return PoolRecord(name, "hugetlbfs", HUGE, str(config.pools_dir / name), {0: NodeShare(HUGE)})


@pytest.mark.parametrize("name", ["", ".", "..", "-p", ".p", "a/b", "../p", "a b", "é", "p\n", "x" * 33])
def test_a_name_that_cannot_be_is_refused_and_nothing_is_written(config: Config, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        manage.create(config, name, sizes=HUGE)
    with pytest.raises(PoolNotFound):
        registry.find(config, name)
    assert not config.pool_records_dir.exists()


def test_there_are_no_pools_at_first(config: Config) -> None:
    assert registry.records(config) == []
    with pytest.raises(PoolNotFound, match="'p'"):
        registry.find(config, "p")
    with pytest.raises(PoolNotFound):
        manage.destroy(config, "p")


def test_records_are_read_back_by_name(config: Config) -> None:
    for name in ("b", "a.1", "C-2"):
        write_record(config, a_record(config, name))
    (config.pool_records_dir / ".a.1.new").write_text("half a rec")
    assert [record.name for record in registry.records(config)] == ["C-2", "a.1", "b"]
    assert registry.find(config, "b") == a_record(config, "b")


DAMAGED = (
    b"", b"{", b"{}", b'{"name": 1}', b"\xff",
    b'{"name": "q", "backend": "tmpfs", "page_size": 4096, "mount": "/m/p", "nodes": {"-1": {"wanted_bytes": 1}}}',
    b'{"name": "p", "backend": "tmpfs", "page_size": 4096, "mount": "/m/q", "nodes": {"-1": {"wanted_bytes": 1}}}',
    b'{"name": "p", "backend": "tmpgs", "page_size": 4096, "mount": "/m/p", "nodes": {"-1": {"wanted_bytes": 1}}}',
    b'{"name": "p", "backend": "tmpfs", "page_size": 0, "mount": "/m/p", "nodes": {"-1": {"wanted_bytes": 1}}}',
    b'{"name": "p", "backend": "tmpfs", "page_size": 4096, "mount": "m", "nodes": {"-1": {"wanted_bytes": 1}}}',
    b'{"name": "p", "backend": "tmpfs", "page_size": 4096, "mount": "/m/p", "nodes": {"-1": {"wanted_bytes": -1}}}',
    b'{"name": "p", "backend": "tmpfs", "page_size": 4096, "mount": "/m/p", "nodes": {}}',
)  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_record_that_cannot_be_read_is_named_and_harms_no_other_pool(config: Config, content: bytes) -> None:
    write_record(config, a_record(config, "good"))
    (config.pool_records_dir / "p.json").write_bytes(content)
    with pytest.raises(PoolError, match=r"p\.json"):
        registry.find(config, "p")
    assert registry.find(config, "good").name == "good"
    assert [record.name for record in registry.records(config)] == ["good"]
    assert [Path(path).name for path in registry.readable(config)[1]] == ["p.json"]


def test_an_existing_pool_is_left_as_it_is(config: Config, tmp_path: Path) -> None:
    write_record(config, a_record(config))
    with pytest.raises(PoolExists):
        manage.create(config, "p", sizes=HUGE, root=fake_tree(tmp_path / "root"))
    assert registry.find(config, "p") == a_record(config)


def test_what_is_mounted_in_the_place_of_a_pool_is_left_as_it_is(config: Config, tmp_path: Path) -> None:
    root = fake_tree(tmp_path / "root")
    (root / "proc/self/mountinfo").write_text(f"30 1 0:50 / {config.pools_dir / 'p'} rw - tmpfs x rw\n")
    with pytest.raises(PoolExists, match="no pool of ours"):
        manage.create(config, "p", sizes=HUGE, root=root)
    assert registry.records(config) == []


@pytest.mark.parametrize(
    ("size", "nearest"), [(HUGE + 1, "2 MiB or 4 MiB"), (HUGE - 1, "is 2 MiB"), (0, "2 MiB"), (-HUGE, "2 MiB")]
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


def test_a_pool_that_is_not_mounted_has_nothing(config: Config) -> None:
    record = a_record(config)
    record.state, record.nodes = "ready", {0: NodeShare(HUGE, HUGE)}
    assert registry.capacity(record) == {0: 0}


def test_destroying_a_record_of_an_earlier_boot_gives_back_nothing(config: Config, tmp_path: Path) -> None:
    root = fake_tree(tmp_path / "root", hvo="1")
    nr = root / "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
    nr.write_text("100\n")
    record = a_record(config)
    record.nodes, record.boot_id, record.switched_hvo = {0: NodeShare(HUGE, HUGE)}, "another boot", True
    write_record(config, record)
    manage.destroy(config, "p", root=root)
    assert nr.read_text() == "100\n"
    assert (root / "proc/sys/vm/hugetlb_optimize_vmemmap").read_text() == "1\n"
    assert registry.records(config) == []


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
    config: Config, tmp_path: Path, from_pages: int, to_pages: int, now: int, got: int, expected: int
) -> None:
    root = fake_tree(tmp_path / "root")
    (root / "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages").write_text(f"{now}\n")
    record = a_record(config)
    record.nodes, record.boot_id = {0: NodeShare(16 * HUGE, got * HUGE)}, BOOT
    record.step = PageCountChange(0, from_pages, to_pages)
    saved: list[PoolRecord] = []
    # no page is free in this tree, so nothing can be given back: what remains is what the step left
    job = Job(record, (), lambda: saved.append(record), lambda *_: None, root)
    assert backend("hugetlbfs").release(job) == expected * HUGE
    assert record.step is None
    assert saved


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
