# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools grow and shrink: planned on fake trees of larger hosts, done on this machine's kernel."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rig.fake_tree import BOOT, GIB, fake_tree
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.no_daemon import NoDaemon
from tests.rig.real_pools import HUGE, HVO, MIB, SIZE, kill_at, killed, real_config, reboot, taken
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolBusy, PoolError, PoolNotFound, PoolShort, UsageError
from virt_dmem.host import kernel, mounts
from virt_dmem.pools import manage, record_files, registry, resize
from virt_dmem.pools.backends.hugetlbfs import Hugetlbfs
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.resize import SegmentChange
from virt_dmem.pools.savings import savings
from virt_dmem.units import format_size


class Dies(NoDaemon):
    """A daemon that is asked ``calls`` times; then something happens to the command."""

    def __init__(self, calls: int, end: Callable[[], object]) -> None:
        self.calls, self.end = calls, end

    def limit(self, pool: str, size_bytes: int) -> int:
        self.calls -= 1
        if self.calls == 0:
            self.end()
        return 0


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Holds(NoDaemon):
    """A fake daemon whose domains hold so many bytes, and which notes the requests."""

    def __init__(self, held_bytes: int) -> None:
        self.held_bytes = held_bytes
        self.retired: list[str] = []

    def retire(self, segment: str) -> None:
        self.retired.append(segment)

    def limit(self, pool: str, size_bytes: int) -> int:
        return self.held_bytes


# On fake trees, where nothing is done


class Fake:
    """A pool ``p`` on a host with these nodes, its segments by number, as bytes by node."""

    def __init__(self, top: Path, segments: Mapping[int, Mapping[int, int]], nodes: int = 8) -> None:
        self.root = fake_tree(top / "root", memory=[64 * GIB] * nodes)
        self.config = Config(daemon=DaemonConfig(state_dir=str(top / "state"), run_dir=str(top / "run")))
        self.config.pool_records_dir.mkdir(parents=True)
        mounts = ""
        for number, shares in segments.items():
            name = f"p+{number}" if number else "p"
            mount = self.config.pools_dir / name
            mount.mkdir(parents=True)
            mounts += f"4{number} 21 0:5{number} / {mount} rw - hugetlbfs x rw\n"
            record = PoolRecord(
                name, "hugetlbfs", HUGE, str(mount), {n: NodeShare(b, b) for n, b in shares.items()}, "ready", BOOT
            )
            (self.config.pool_records_dir / f"{name}.json").write_bytes(msgspec.json.encode(record))
        (self.root / "proc/self/mountinfo").write_text(mounts)

    def use(self, segment: str, size_bytes: int) -> None:
        with (self.config.pools_dir / segment / "ram").open("wb") as file:
            file.truncate(size_bytes)

    def changes(self, sizes: int | Mapping[int, int]) -> list[SegmentChange]:
        return resize.resize(self.config, "p", sizes=sizes, daemon=NoDaemon(), dry_run=True, root=self.root)


def test_a_pool_grows_evenly_over_the_nodes_it_has(tmp_path: Path) -> None:
    fake = Fake(tmp_path, {0: {2: 4 * GIB, 5: 2 * GIB}})
    assert fake.changes(10 * GIB) == [SegmentChange("p+1", {}, {2: 2 * GIB, 5: 2 * GIB})]
    assert fake.changes(6 * GIB) == []


def test_a_node_gets_what_is_named_and_the_others_stay(tmp_path: Path) -> None:
    fake = Fake(tmp_path, {0: {0: 4 * GIB, 1: 2 * GIB}, 3: {1: GIB}})
    assert fake.changes({7: GIB}) == [SegmentChange("p+4", {}, {7: GIB})]
    assert fake.changes({0: 4 * GIB, 1: 2 * GIB}) == [SegmentChange("p+3", {1: GIB}, {})]
    assert fake.changes({0: 5 * GIB, 1: GIB}) == [
        SegmentChange("p+3", {1: GIB}, {}),
        SegmentChange("p", {0: 4 * GIB, 1: 2 * GIB}, {0: 4 * GIB, 1: GIB}),
        SegmentChange("p+4", {}, {0: GIB}),
    ]
    assert fake.changes({1: 0}) == [
        SegmentChange("p+3", {1: GIB}, {}),
        SegmentChange("p", {0: 4 * GIB, 1: 2 * GIB}, {0: 4 * GIB}),
    ]
    assert [str(change) for change in fake.changes({0: 5 * GIB, 1: GIB})] == [
        "remove segment p+3 of 1 GiB",
        "shrink segment p to 5 GiB (4 GiB of node 0, 1 GiB of node 1) from 6 GiB",
        "add segment p+4 of 1 GiB of node 0",
    ]


def test_only_empty_segments_go_and_the_refusal_has_the_numbers(tmp_path: Path) -> None:
    fake = Fake(tmp_path, {0: {0: 4 * GIB}, 1: {0: 2 * GIB}, 2: {0: GIB}})
    fake.use("p+1", GIB)
    assert fake.changes(4 * GIB) == [
        SegmentChange("p+2", {0: GIB}, {}),
        SegmentChange("p", {0: 4 * GIB}, {0: 2 * GIB}),
    ]
    assert fake.changes(2 * GIB)[-1] == SegmentChange("p", {0: 4 * GIB}, {})
    with pytest.raises(
        PoolBusy,
        match=r"7 GiB cannot give back 6 GiB: .* hold 1 GiB in segment p\+1 of 2 GiB, .* free only 5 GiB",
    ):
        fake.changes(GIB)


def test_a_pool_without_anything_is_no_pool(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="would be empty") as caught:
        Fake(tmp_path, {0: {0: GIB}}).changes({0: 0})
    assert "pool destroy p" in caught.value.hint


@pytest.mark.parametrize("sizes", [HUGE + 1, 0, {0: 1}, {9: GIB}, {-1: GIB}])
def test_a_size_that_cannot_be_is_refused(tmp_path: Path, sizes: int | Mapping[int, int]) -> None:
    with pytest.raises(UsageError):
        Fake(tmp_path, {0: {0: GIB}}).changes(sizes)


def test_a_pool_that_is_not_as_recorded_is_repaired_first(tmp_path: Path) -> None:
    fake = Fake(tmp_path, {0: {0: GIB}, 1: {0: GIB}})
    (fake.root / "proc/self/mountinfo").write_text("21 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    with pytest.raises(PoolError, match="not mounted") as caught:
        fake.changes(4 * GIB)
    assert "pool mount p" in caught.value.hint
    with pytest.raises(PoolNotFound):
        resize.resize(fake.config, "q", sizes=GIB, daemon=NoDaemon(), root=fake.root)


shares = st.dictionaries(st.integers(0, 7), st.integers(1, 9).map(lambda pages: pages * HUGE), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    segments=st.dictionaries(st.integers(0, 3), shares, min_size=1),
    used=st.sets(st.integers(0, 3)),
    sizes=st.one_of(
        st.integers(1, 60).map(lambda pages: pages * HUGE),
        st.dictionaries(st.integers(0, 7), st.integers(0, 9).map(lambda pages: pages * HUGE), min_size=1),
    ),
)
def test_the_changes_lead_exactly_to_the_size_and_leave_used_segments_alone(
    tmp_path_factory: pytest.TempPathFactory,
    segments: dict[int, dict[int, int]],
    used: set[int],
    sizes: int | dict[int, int],
) -> None:
    fake = Fake(tmp_path_factory.mktemp("fake"), segments)
    names = {number: f"p+{number}" if number else "p" for number in segments}
    for number in used & segments.keys():
        fake.use(names[number], HUGE)
    after = {names[number]: dict(of_segment) for number, of_segment in segments.items()}
    before = {node: sum(of.get(node, 0) for of in segments.values()) for node in range(8)}
    try:
        changes = fake.changes(sizes)
    except PoolBusy:
        assert used & segments.keys()
        return
    except PoolError:
        assert not isinstance(sizes, int)
        return
    for change in changes:
        assert after.pop(change.segment, {}) == change.before
        assert not change.before or change.segment not in {names[number] for number in used & segments.keys()}
        if change.after:
            after[change.segment] = dict(change.after)
    has = {node: sum(of.get(node, 0) for of in after.values()) for node in range(8)}
    if isinstance(sizes, int):
        assert sum(has.values()) == sizes
    else:
        assert has == before | sizes


# On this host


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.setattr(Hugetlbfs, "step_bytes", 4 * HUGE)
    with real_config() as config:
        yield config


def to(config: Config, size_bytes: int, daemon: NoDaemon | None = None) -> list[SegmentChange]:
    return resize.resize(config, "p", sizes=size_bytes, daemon=daemon or NoDaemon())


def capacity(config: Config) -> dict[str, int]:
    return {record.name: sum(registry.capacity(record).values()) for record in registry.segments(config, "p")}


def fill(config: Config, segment: str, size_bytes: int) -> Path:
    """An extent, every page of it there."""
    file = config.pools_dir / segment / "libvirt-1/ram"
    file.parent.mkdir()
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, size_bytes)
    return file


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_a_pool_of_huge_pages_becomes_larger_and_smaller_while_it_is_used(config: Config) -> None:
    before = taken()
    manage.create(config, "p", sizes=SIZE)
    file = fill(config, "p", 4 * HUGE)
    to(config, SIZE + 8 * HUGE)
    assert capacity(config) == {"p": SIZE, "p+1": 8 * HUGE}
    assert taken() == before + 24
    found = mounts.mount_at(config.pools_dir / "p+1")
    assert found is not None
    assert f"min_size={8 * HUGE}" in found.options.split(",")
    (saved,) = savings(config)
    assert (saved.pool, saved.size_bytes, saved.net_bytes) == ("p", SIZE + 8 * HUGE, 24 * 28 * 1024)

    daemon = Holds(4 * HUGE)
    to(config, SIZE + 3 * HUGE, daemon)
    assert daemon.retired == ["p+1"]
    assert capacity(config) == {"p": SIZE, "p+1": 3 * HUGE}
    assert taken() == before + 19
    assert savings(config)[0].net_bytes == 19 * 28 * 1024
    with pytest.raises(
        PoolBusy, match="domains hold 8 MiB in segment p of 32 MiB, and the others can free only 6 MiB"
    ) as refused:
        to(config, SIZE - HUGE)
    assert "or ask for 32 MiB, which it can have now" in refused.value.hint
    assert taken() == before + 19
    to(config, SIZE)
    assert taken() == before + 16
    assert mounts.mount_at(config.pools_dir / "p+1") is None
    assert not (config.pools_dir / "p+1").exists()
    assert file.stat().st_blocks * 512 == 4 * HUGE

    file.unlink()
    file.parent.rmdir()
    to(config, 2 * HUGE)  # an empty segment becomes smaller
    assert capacity(config) == {"p": 2 * HUGE}
    assert taken() == before + 2
    manage.destroy(config, "p")
    assert (taken(), HVO.read_text(), registry.records(config)) == (before, "0\n", [])


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_the_first_segment_may_go_while_another_is_used(config: Config) -> None:
    before = taken()
    manage.create(config, "p", sizes=4 * HUGE)
    to(config, 6 * HUGE)
    fill(config, "p+1", HUGE)
    to(config, 2 * HUGE)
    assert capacity(config) == {"p+1": 2 * HUGE}
    to(config, 3 * HUGE)
    assert capacity(config) == {"p+1": 2 * HUGE, "p+2": HUGE}
    with pytest.raises(PoolBusy):
        manage.destroy(config, "p")
    assert capacity(config) == {"p+1": 2 * HUGE, "p+2": HUGE}
    (config.pools_dir / "p+1/libvirt-1/ram").unlink()
    reboot(config, "p")
    assert manage.mount(config, "p") is not None
    assert capacity(config) == {"p+1": 2 * HUGE, "p+2": HUGE}
    manage.destroy(config, "p")
    assert (taken(), registry.records(config)) == (before, [])


@pytest.mark.needs_hugepages
@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("pages", [26, 6, 18])
@in_own_mount_namespace
def test_a_resize_that_was_killed_is_finished_or_undone_and_may_be_asked_for_again(
    config: Config, at: int, pages: int
) -> None:
    before = taken()
    manage.create(config, "p", sizes=SIZE)
    to(config, 20 * HUGE)
    killed_or_done(config, pages * HUGE, at)
    manage.mount(config, "p")
    now = sum(capacity(config).values())
    assert now in {20 * HUGE, 16 * HUGE, pages * HUGE}
    assert taken() == before + now // HUGE
    to(config, pages * HUGE)
    assert sum(capacity(config).values()) == pages * HUGE
    assert taken() == before + pages
    manage.destroy(config, "p")
    assert (taken(), HVO.read_text(), registry.records(config)) == (before, "0\n", [])


def killed_or_done(config: Config, size_bytes: int, at: int) -> None:
    """Resize in a process that ends by kill -9 at the n-th report."""
    killed(
        lambda: (
            resize.resize(config, "p", sizes=size_bytes, daemon=NoDaemon(), report=(die := kill_at(at))),
            [die("done before that", 0, 0) for _ in range(at)],
        )
    )


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_more_than_the_host_has_leaves_the_pool_as_it_was(config: Config) -> None:
    before = taken()
    made = manage.create(config, "p", sizes=SIZE)
    with pytest.raises(PoolShort):
        to(config, kernel.memory().total_bytes // HUGE * HUGE)
    assert registry.records(config) == [made]
    assert taken() == before + 16
    manage.destroy(config, "p")


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_a_segment_that_a_process_uses_stays_as_it_is(config: Config) -> None:
    before = taken()
    made = manage.create(config, "p", sizes=SIZE)
    os.chdir(made.mount)
    with pytest.raises(PoolBusy):
        to(config, HUGE)
    os.chdir("/")
    assert registry.records(config) == [made]
    assert taken() == before + 16
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_a_tmpfs_pool_changes_its_size_in_place_and_never_below_what_is_held(config: Config) -> None:
    manage.create(config, "p", sizes=16 * MIB, backend="tmpfs")
    fill(config, "p", 8 * MIB)
    to(config, 64 * MIB)
    assert capacity(config) == {"p": 64 * MIB}
    with pytest.raises(PoolBusy, match="64 MiB cannot shrink to 4 MiB: domains hold 8 MiB"):
        to(config, 4 * MIB)
    with pytest.raises(PoolBusy, match="domains hold 10 MiB"):
        to(config, 9 * MIB, Holds(10 * MIB))  # one is about to make its extent
    assert capacity(config) == {"p": 64 * MIB}
    to(config, 10 * MIB, Holds(10 * MIB))
    assert capacity(config) == {"p": 10 * MIB}
    assert os.statvfs(config.pools_dir / "p").f_blocks * 4096 == 10 * MIB
    (config.pools_dir / "p/libvirt-1/ram").unlink()
    reboot(config, "p")
    manage.mount(config, "p")
    assert capacity(config) == {"p": 10 * MIB}
    with pytest.raises(PoolShort, match="available"):
        to(config, kernel.memory().total_bytes // MIB * MIB)
    assert capacity(config) == {"p": 10 * MIB}
    manage.destroy(config, "p")


@pytest.mark.parametrize(("calls", "begun"), [(1, False), (2, True)])
@pytest.mark.parametrize("becomes", [10 * MIB, 64 * MIB])
@in_own_mount_namespace
def test_a_change_in_place_that_was_killed_is_finished_or_undone_by_the_same_command(
    config: Config, calls: int, begun: bool, becomes: int
) -> None:
    manage.create(config, "p", sizes=32 * MIB, backend="tmpfs")
    fill(config, "p", 8 * MIB)

    def killed_resize() -> None:
        killed(lambda: to(config, becomes, Dies(calls, kill)))
        assert sum(capacity(config).values()) == min(becomes, 32 * MIB) if begun else 32 * MIB
        assert registry.find(config, "p").shown_state == "resizing"

    killed_resize()
    (finished,) = to(config, becomes)
    size = format_size(becomes)
    if begun:
        assert str(finished) == f"finish the interrupted change of segment p to {size}"
    else:
        assert f" segment p to {size} from 32 MiB, as an interrupted command was to do" in str(finished)
    assert capacity(config) == {"p": becomes}
    assert registry.find(config, "p").shown_state == "ready"
    assert to(config, becomes) == []

    to(config, 32 * MIB)
    killed_resize()
    (undone,) = to(config, 32 * MIB)
    assert begun or str(undone) == f"undo the interrupted change of segment p to {size}: it keeps 32 MiB"
    assert capacity(config) == {"p": 32 * MIB}

    killed_resize()
    (instead,) = to(config, 16 * MIB)
    assert f"instead of the {size} of an interrupted command" in str(instead)
    assert capacity(config) == {"p": 16 * MIB}
    (config.pools_dir / "p/libvirt-1/ram").unlink()
    manage.destroy(config, "p")


@pytest.mark.parametrize("calls", [1, 2])
@in_own_mount_namespace
def test_a_change_in_place_that_was_killed_is_settled_by_a_mount_and_by_a_reboot(
    config: Config, calls: int
) -> None:
    manage.create(config, "p", sizes=32 * MIB, backend="tmpfs")
    for mounted in (True, False):
        killed(lambda: to(config, 8 * MIB, Dies(calls, kill)))
        if not mounted:
            reboot(config, "p")
        assert manage.mount(config, "p") is not None
        record = registry.find(config, "p")
        assert (record.resizing, record.state) == ({}, "ready")
        assert capacity(config) == {"p": record.wanted_bytes}
        assert record.wanted_bytes == (8 * MIB if mounted and calls == 2 else 32 * MIB)
        to(config, 32 * MIB)
    manage.destroy(config, "p")


@pytest.mark.parametrize("calls", [1, 2])
@in_own_mount_namespace
def test_a_change_in_place_that_is_interrupted_leaves_the_pool_as_it_was(config: Config, calls: int) -> None:
    made = manage.create(config, "p", sizes=32 * MIB, backend="tmpfs")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to(config, 8 * MIB, Dies(calls, interrupt))
    assert registry.records(config) == [made]
    assert capacity(config) == {"p": 32 * MIB}
    with pytest.raises(PoolBusy, match="domains hold 10 MiB"):
        to(config, 8 * MIB, Holds(10 * MIB))
    assert registry.records(config) == [made]
    manage.destroy(config, "p")


@pytest.mark.parametrize("saves", [1, 2])
@in_own_mount_namespace
def test_a_change_in_place_on_a_full_disk_never_records_less_than_is_mounted(
    config: Config, saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    manage.create(config, "p", sizes=32 * MIB, backend="tmpfs")
    write, left = record_files.write, [saves]

    def full(config: Config, record: PoolRecord) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise PoolError("full", hint="")
        write(config, record)

    with monkeypatch.context() as patch:
        patch.setattr(record_files, "write", full)
        with pytest.raises(PoolError, match="full"):
            to(config, 8 * MIB)
    record = registry.find(config, "p")
    assert record.wanted_bytes == 32 * MIB
    assert capacity(config) == {"p": 32 * MIB if saves == 1 else 8 * MIB}
    assert bool(record.resizing) == (saves == 2)
    to(config, 8 * MIB)
    assert capacity(config) == {"p": 8 * MIB}
    assert registry.find(config, "p").resizing == {}
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_a_pool_that_lost_its_size_in_an_earlier_version_has_it_again(config: Config) -> None:
    """Record less than is mounted, as an earlier version did when it was killed."""
    made = manage.create(config, "p", sizes=32 * MIB, backend="tmpfs")
    fill(config, "p", 24 * MIB)
    made.nodes = {-1: NodeShare(8 * MIB, 8 * MIB)}
    record_files.write(config, made)
    with pytest.raises(PoolBusy, match="domains hold 24 MiB"):
        to(config, 16 * MIB)
    assert os.statvfs(made.mount).f_blocks * 4096 == 32 * MIB
    to(config, 32 * MIB)
    assert capacity(config) == {"p": 32 * MIB}
    (config.pools_dir / "p/libvirt-1/ram").unlink()
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_an_earlier_version_reads_the_record_of_an_interrupted_change_in_place(config: Config) -> None:
    class Earlier(msgspec.Struct):
        name: str
        backend: str
        page_size: int
        mount: str
        nodes: dict[int, NodeShare]
        state: Literal["creating", "mounting", "ready", "destroying"]

    manage.create(config, "p", sizes=32 * MIB, backend="tmpfs")
    killed(lambda: to(config, 8 * MIB, Dies(2, kill)))
    read = msgspec.json.decode(record_files.path_of(config, "p").read_bytes(), type=Earlier)
    assert (read.state, read.nodes) == ("ready", {-1: NodeShare(32 * MIB, 32 * MIB)})
    manage.destroy(config, "p")


@pytest.mark.needs_hugepages
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("pages", [26, 6, 18])
@in_own_mount_namespace
def test_a_killed_resize_is_finished_by_asking_again_and_undone_by_asking_for_the_former_size(
    config: Config, at: int, pages: int
) -> None:
    before = taken()
    manage.create(config, "p", sizes=SIZE)
    to(config, 20 * HUGE)
    for then in (pages, 20):
        killed_or_done(config, pages * HUGE, at)
        to(config, then * HUGE)
        assert sum(capacity(config).values()) == then * HUGE
        assert taken() == before + then
        assert {record.state for record in registry.records(config)} == {"ready"}
        to(config, 20 * HUGE)
    manage.destroy(config, "p")
    assert (taken(), HVO.read_text(), registry.records(config)) == (before, "0\n", [])


@pytest.mark.parametrize("is_mounted", [True, False])
@in_own_mount_namespace
def test_a_pool_in_place_whose_mount_was_interrupted_gets_the_size_that_is_asked_for(
    config: Config, is_mounted: bool
) -> None:
    made = manage.create(config, "p", sizes=32 * MIB, backend="tmpfs")
    for size in (8 * MIB, 16 * MIB):
        record = registry.find(config, "p")
        record.state = "mounting"
        record_files.write(config, record)
        if not is_mounted:
            backend("tmpfs").unmount(record)
        to(config, size)
        assert capacity(config) == {"p": size}
        assert os.statvfs(made.mount).f_blocks * 4096 == size
        assert registry.find(config, "p").state == "ready"
    manage.destroy(config, "p")
