# SPDX-License-Identifier: GPL-2.0-or-later
"""Ready extents as files, which of them is taken, which goes first, and what is targets for."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.aio import uninterrupted
from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, ExtentState
from virt_dmem.allocation.plan import PoolFree
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.allocation.prezero.forecast import forecast, plan_on_prezeroed
from virt_dmem.allocation.prezero.index import PrezeroIndex
from virt_dmem.allocation.prezero.worker import PrezeroWorker
from virt_dmem.config.schema import Config, DaemonConfig, PrefaultConfig
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.errors import PrefaultFailed
from virt_dmem.host import kernel
from virt_dmem.pools import extent_files, prezeroed_files
from virt_dmem.pools.prezeroed_files import Owner, PrezeroedExtent, Shares
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.units import MIB

PAGE = 4096
ONE, TWO = "c7a5fdbd-edaf-9455-926a-d65c16db1809", "11111111-edaf-9455-926a-d65c16db1809"
RAM = Owner(ONE, "pc.ram")


@pytest.fixture
def record(tmp_path: Path) -> PoolRecord:
    """A segment whose mount is a directory: files are files."""
    return PoolRecord("p", "tmpfs", PAGE, str(tmp_path), {-1: NodeShare(64 * PAGE, 64 * PAGE)})


def extent(shares: Shares, clean: int = -1, *, owner: Owner = RAM, policy: str = "bind") -> PrezeroedExtent:
    """One of so many pages by node, as many of them clean; -1: all."""
    whole = tuple((node, pages * PAGE) for node, pages in shares)
    pages = sum(pages for _, pages in shares) if clean < 0 else clean
    return PrezeroedExtent(Path("/pool/.ready"), pages * PAGE, policy, whole, owner, PAGE)


def pages(held: Counter[int]) -> dict[int, int]:
    return {node: size // PAGE for node, size in held.items() if size}


_shares = st.lists(
    st.tuples(st.integers(0, 7), st.integers(1, 40)), min_size=1, max_size=4, unique_by=lambda of: of[0]
)
_extents = st.builds(
    lambda shares, clean, policy: extent(tuple(shares), min(clean, sum(size for _, size in shares)), policy=policy),
    _shares,
    st.integers(0, 200),
    st.sampled_from(["bind", "preferred", "interleave"]),
)


# Files


def test_a_new_one_grows_chunk_by_chunk_and_is_found_again(record: PoolRecord) -> None:
    made = prezeroed_files.begin(record, "none", ((-1, 10 * PAGE),), RAM)
    assert made is not None
    assert (made.clean_bytes, made.goal_bytes, made.path.stat().st_mode & 0o7777) == (0, 10 * PAGE, 0o600)
    assert made.directory.stat().st_mode & 0o7777 == 0o700
    for clean in (4, 8, 10):
        made = asyncio.run(prezeroed_files.clean_more(made, 4 * PAGE, threads=1))
        assert (made.clean_bytes, made.path.stat().st_blocks * 512) == (clean * PAGE, clean * PAGE)
        assert prezeroed_files.listed(record) == [made]
    assert made.is_done


def test_one_that_is_half_done_is_taken_as_far_as_it_is(record: PoolRecord, tmp_path: Path) -> None:
    made = prezeroed_files.begin(record, "none", ((-1, 6 * PAGE),), RAM)
    assert made is not None
    made = asyncio.run(prezeroed_files.clean_more(made, 4 * PAGE, threads=1))
    made.path.write_bytes(b"\0" * 4 * PAGE + b"x" * 2 * PAGE)  # a chunk that was cut short
    taken = tmp_path / f"libvirt-{TWO}" / "pc.ram"
    assert prezeroed_files.take(made, taken, 8 * PAGE) == 4 * PAGE
    assert taken.read_bytes() == b"\0" * 8 * PAGE
    assert taken.stat().st_blocks * 512 == 4 * PAGE
    assert prezeroed_files.listed(record) == []


def test_what_an_earlier_version_kept_of_a_guest_goes_back_to_the_kernel(record: PoolRecord) -> None:
    made = prezeroed_files.begin(record, "none", ((-1, 8 * PAGE),), RAM)
    assert made is not None
    made.path.with_name(f"u4_none_-1=8_{ONE}_pc.ram").write_bytes(b"x" * 8 * PAGE)
    (made.directory / "a directory").mkdir()
    assert prezeroed_files.listed(record) == [made]
    assert sorted(path.name for path in made.directory.iterdir()) == ["a directory", made.path.name]


def test_one_that_is_stopped_or_fails_is_as_it_was(record: PoolRecord, tmp_path: Path) -> None:
    made = prezeroed_files.begin(record, "none", ((-1, 8 * PAGE),), RAM)
    assert made is not None
    with pytest.raises(PrefaultFailed):
        asyncio.run(prezeroed_files.clean_more(made, 4 * PAGE, helper=tmp_path / "there-is-none"))
    assert prezeroed_files.listed(record) == [made]
    assert made.path.stat().st_size == 0


def test_what_a_crash_left_is_cut_off_and_what_is_no_record_goes(record: PoolRecord) -> None:
    made = prezeroed_files.begin(record, "none", ((-1, 8 * PAGE),), RAM)
    assert made is not None
    made = asyncio.run(prezeroed_files.clean_more(made, 4 * PAGE, threads=1))
    os.truncate(made.path, 8 * PAGE)  # the next chunk, without its memory
    other = replace(extent(((-1, 4),), owner=Owner(TWO, "pc.ram")), directory=made.directory)
    other.path.write_bytes(b"\0" * 3 * PAGE)  # shorter than it says
    (made.directory / "anything").write_text("else")
    assert prezeroed_files.listed(record) == [made]
    assert [path.name for path in made.directory.iterdir()] == [made.path.name]
    assert made.path.stat().st_size == 4 * PAGE


def test_one_that_cannot_be_named_is_not_made(record: PoolRecord) -> None:
    many = tuple((node, PAGE * 0x10000) for node in range(40))
    assert prezeroed_files.begin(record, "bind", many, RAM) is None
    assert not Path(record.mount, prezeroed_files.DIRECTORY).exists()


@given(_extents)
def test_its_name_is_the_record_of_it(some: PrezeroedExtent) -> None:
    assert prezeroed_files._read(some.path, PAGE) == some


# Which one


def test_the_one_is_taken_that_leaves_the_least_to_do_and_then_wastes_the_least() -> None:
    other = Owner(TWO, "pc.ram")
    small, exact, large = (extent(((0, size),), owner=other) for size in (4, 8, 16))
    wanted = ("bind", ((0, 8 * PAGE),), RAM)
    assert prezeroed_files.best_fit([small, large, exact], *wanted) == exact
    assert prezeroed_files.best_fit([small, large], *wanted) == large
    assert prezeroed_files.best_fit([small], *wanted) == small
    own = extent(((0, 8),))
    assert prezeroed_files.best_fit([exact, own], *wanted) == own
    half = extent(((0, 8),), 4)
    assert prezeroed_files.best_fit([half, exact], *wanted) == exact
    assert prezeroed_files.best_fit([extent(((0, 8),), 0)], *wanted) is None, "nothing of it is clean"
    assert prezeroed_files.best_fit([extent(((1, 8),))], *wanted) is None, "it lies elsewhere"


@given(_extents, _extents)
def test_a_page_is_never_taken_for_another_node(some: PrezeroedExtent, wanted: PrezeroedExtent) -> None:
    if prezeroed_files.best_fit([some], wanted.policy, wanted.shares, RAM) is None:
        return
    common = min(some.clean_bytes, wanted.goal_bytes)
    assert common
    if "interleave" in (some.policy, wanted.policy):
        assert {node for node, _ in some.shares} == {node for node, _ in wanted.shares}
    else:
        assert prezeroed_files.prefix(some.shares, common) == prezeroed_files.prefix(wanted.shares, common)


# Who goes first


class _Segments:
    """Stands for the inventory: one segment, nothing of which is on disk."""

    @staticmethod
    def record(_name: str) -> PoolRecord:
        return PoolRecord("p", "tmpfs", PAGE, "/nowhere", {})


def stock_of(*some: PrezeroedExtent, likely: dict[str, float] | None = None) -> PrezeroIndex:
    found = PrezeroIndex(_Segments(), lambda uuid: (likely or {}).get(uuid, 0.0))  # type: ignore[arg-type]
    for one in some:
        found.add("p", one)
    return found


def test_the_least_likely_goes_first_and_only_as_much_of_it_as_must() -> None:
    likely = extent(((0, 8),), owner=Owner(ONE, "a"))
    unlikely = extent(((0, 8),), owner=Owner(TWO, "a"))
    stock = stock_of(likely, unlikely, likely={ONE: 2.0, TWO: 1.0})
    assert stock.cuts("p", {0: 16 * PAGE}) == []
    assert stock.cuts("p", {0: 11 * PAGE}) == [(unlikely, 3 * PAGE)]
    assert stock.cuts("p", {0: 5 * PAGE}) == [(unlikely, 0), (likely, 5 * PAGE)]
    assert stock.cuts("p", {0: 5 * PAGE}, below=2.0) == [(unlikely, 0)]
    assert stock.cuts("p", {}) == [(unlikely, 0), (likely, 0)]


@given(st.lists(_extents, max_size=5), st.dictionaries(st.integers(0, 7), st.integers(0, 60)))
def test_after_the_cuts_all_fit(some: list[PrezeroedExtent], room: dict[int, int]) -> None:
    numbered = [replace(one, owner=Owner(ONE, f"m{number}")) for number, one in enumerate(some)]
    stock = stock_of(*numbered)
    for one, size in stock.cuts("p", {node: count * PAGE for node, count in room.items()}):
        assert size < one.clean_bytes, "what stays whole is not touched"
        after = prezeroed_files.shortened(one, size)
        assert after is None or after.clean_bytes <= size
        stock.replace("p", one, after)
    assert all(count <= room.get(node, 0) for node, count in pages(stock.held("p")).items())
    assert pages(stock.held("p")) == pages(prezeroed_files.by_node(stock.of("p")))


def test_those_of_a_domain_are_found_and_what_has_changed_is_told() -> None:
    mine, yours = extent(((0, 8),), 4), extent(((0, 2),), owner=Owner(TWO, "pc.ram"))
    stock = stock_of(mine, yours)
    assert stock.of_domain_in("p", ONE) == [mine]
    assert stock.has("p", mine)
    more = extent(((0, 8),), 8)
    stock.replace("p", mine, more)
    assert not stock.has("p", mine)
    assert stock.of_domain_in("p", ONE) == [more]
    stock.replace("p", more, None)
    assert stock.of_domain_in("p", ONE) == []
    assert stock.of("p") == [yours]


def test_work_on_files_is_not_left_half_done_by_who_is_cancelled() -> None:
    steps = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        steps.append("done")

    async def cancelled() -> None:
        task = asyncio.create_task(uninterrupted(work()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        steps.append("cancelled")

    asyncio.run(cancelled())
    assert steps == ["done", "cancelled"]


def test_one_that_somebody_removed_is_no_error_when_it_is_to_be_cut(record: PoolRecord) -> None:
    gone = replace(extent(((-1, 8),)), directory=Path(record.mount))
    assert prezeroed_files.cut(gone, 4 * PAGE) is None


@given(_extents)
def test_memory_held_by_node_sums_up(some: PrezeroedExtent) -> None:
    assert sum(prezeroed_files.by_node([some]).values()) == some.clean_bytes


@given(_extents, st.integers(0, 160))
def test_what_is_cut_keeps_the_nodes_of_its_beginning(some: PrezeroedExtent, size: int) -> None:
    after = prezeroed_files.shortened(some, min(size * PAGE, some.clean_bytes))
    if after is not None:
        assert after.clean_bytes <= some.clean_bytes
        assert prezeroed_files.prefix(some.shares, after.goal_bytes) == after.shares or some.policy == "interleave"


# What is targets


def domain(uuid: str, *cells: int, pool: str = "p", nodes: tuple[int, ...] = ()) -> DomainMemory:
    backends = tuple(
        Cell(f"ram-node{number}", number, size * PAGE, nodes, "strict" if nodes else "")
        for number, size in enumerate(cells)
    )
    return DomainMemory(uuid, f"vm-{uuid[:4]}", pool, backends, True, True, None, None, None, None)


def free(*nodes: int) -> dict[str, PoolFree]:
    return {"p": PoolFree("p", "hugetlbfs", PAGE, {"p": {node: size * PAGE for node, size in enumerate(nodes)}})}


def found(
    *domains: DomainMemory, room: dict[str, PoolFree], most: int = 1000, **stock: list[PrezeroedExtent]
) -> list[object]:
    return [
        (wish.uuid, wish.extent.alias, {node: size // PAGE for node, size in wish.extent.shares})
        for some in forecast(domains, room, stock, {"p": most * PAGE}, "")
        for wish in some
    ]


def test_as_many_as_have_room_the_likeliest_first() -> None:
    first, second = domain(ONE, 6, 6), domain(TWO, 10)
    both = found(first, second, room=free(12, 12))
    assert [wish[:2] for wish in both] == [(ONE, "ram-node0"), (ONE, "ram-node1"), (TWO, "ram-node0")]  # type: ignore[index]
    assert found(first, second, room=free(8, 8)) == found(first, room=free(8, 8))
    assert found(second, first, room=free(10, 1)) == [(TWO, "ram-node0", {0: 10})]
    assert found(first, second, room=free(12, 12), most=11) == [(TWO, "ram-node0", {0: 10})]
    assert found(domain(ONE, 5, pool="another"), room=free(8)) == []
    assert found(domain(ONE, 5), room=free(0, 0)) == []


def test_who_has_ready_memory_keeps_it_where_it_is() -> None:
    """Alone, a plan would take the emptier node 0."""
    there = extent(((1, 5),), owner=Owner(ONE, "ram-node0"))
    assert found(domain(ONE, 5), room=free(20, 6)) == [(ONE, "ram-node0", {0: 5})]
    assert found(domain(ONE, 5), room=free(20, 6), p=[there]) == [(ONE, "ram-node0", {1: 5})]
    assert found(domain(ONE, 5, nodes=(0,)), room=free(20, 6), p=[there]) == [(ONE, "ram-node0", {0: 5})]
    assert found(domain(ONE, 5), room=free(20, 4), p=[there]) == [(ONE, "ram-node0", {0: 5})]


def test_a_start_is_planned_on_what_is_ready_for_it_or_not_at_all() -> None:
    there = extent(((1, 5),), 2, owner=Owner(ONE, "ram-node0"))
    plan = plan_on_prezeroed(domain(ONE, 5), free(20, 6), {"p": [there]}, "")
    assert plan is not None
    assert plan.extents[0].shares == ((1, 5 * PAGE),)
    assert plan_on_prezeroed(domain(ONE, 6), free(20, 6), {"p": [there]}, "") is None
    assert plan_on_prezeroed(domain(ONE, 5), free(20, 6), {}, "") is None


# The background, and who is quicker


class Rig:
    """Two used extents in a pool on a real tmpfs, a runner that zeroes them, and a helper that takes its time."""

    def __init__(self, scratch: Path) -> None:
        helper = scratch / "helper"
        self.missed = scratch / "missed"
        helper.write_text(f"""#!/bin/sh
for path; do :; done
[ -e "$path" ] || echo "$path" >>{self.missed}
exec 3<>"$path"
sleep 0.05
dd if=/dev/zero bs={8 * PAGE} count=1 conv=notrunc status=none >&3
echo '{{"event":"done","bytes":0}}'
""")
        helper.chmod(0o755)
        state, run = scratch / "state", scratch / "run"
        config = Config(
            daemon=DaemonConfig(state_dir=str(state), run_dir=str(run)),
            prefault=PrefaultConfig(helper=str(helper), ready_pressure=100.0),
        )
        self.mount = run / "pools/p"
        self.mount.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "virt-dmem-p", self.mount], check=True)
        config.pool_records_dir.mkdir(parents=True)
        shares = {-1: NodeShare(64 * MIB, 64 * MIB)}
        self.record = PoolRecord("p", "tmpfs", PAGE, str(self.mount), shares, "ready", kernel.boot_id())
        (config.pool_records_dir / "p.json").write_bytes(msgspec.json.encode(self.record))
        self.inventory = Inventory(config, Ledger(config.ledger_path, kernel.boot_id()))
        self.holding = PrezeroCache(config, Ledger(config.ledger_path, kernel.boot_id()), self.inventory)
        self.readying = PrezeroWorker(config, self.inventory, self.holding)

    def gives_back(self, uuid: str) -> Extent:
        """Return the extent of a domain, which it has just given back full of its own."""
        path = extent_files.path_of(self.mount, uuid, "pc.ram")
        extent_files.create(path, 8 * PAGE)
        path.write_bytes(b"G" * 8 * PAGE)
        shares = {-1: 8 * PAGE}
        given = Extent(
            1, uuid, "pc.ram", "p", path, 8 * PAGE, PAGE, "none", ExtentState.READY, kernel.boot_id(), "", shares
        )
        extent_files.remove(path)
        self.holding.given_back(given)
        return given


@in_own_mount_namespace
def test_when_a_domain_ran_is_remembered_while_libvirt_knows_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.holding.set_domains([domain(ONE, 8)])
    for uuid in (ONE, TWO):
        rig.gives_back(uuid)
    rig.holding.update_domain(TWO, domain(TWO, 8))
    assert rig.holding.likelihood(ONE) > rig.holding.likelihood(TWO) == 0
    for known in (None, domain(ONE, 8)):
        rig.holding.update_domain(ONE, known)
    assert rig.holding.likelihood(ONE) == 0


@in_own_mount_namespace
def test_in_a_pool_that_is_to_be_destroyed_nothing_is_begun_that_was_wished_before(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def story() -> None:
        rig.holding.set_domains([domain(ONE, 8)])
        await rig.holding.update_targets()
        assert rig.holding.targets()
        rig.inventory.retire("p")
        await rig.holding.at_rest()
        await asyncio.wait_for(rig.readying.run_dry(), 60)

    asyncio.run(story())
    assert [path for path in rig.mount.rglob("*") if path.is_file()] == []


@in_own_mount_namespace
def test_a_start_gets_no_file_that_is_being_zeroed_or_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virt_dmem.allocation.prezero.worker._CHUNK", 2 * PAGE)
    rig = Rig(tmp_path)

    async def race() -> None:
        for uuid in (ONE, TWO):
            rig.gives_back(uuid)
        zeroing = asyncio.create_task(rig.readying.run_dry())
        await asyncio.sleep(0.15)  # into the second chunk or the third
        wanted = Extent(
            2, str(uuid4()), "pc.ram", "p", extent_files.path_of(rig.mount, str(uuid4()), "pc.ram"), 8 * PAGE, PAGE,
            "none", ExtentState.PLANNED, kernel.boot_id(), "", {-1: 8 * PAGE},
        )  # fmt: skip
        clean = await rig.holding.provide([wanted])
        if clean:  # and now its guest writes
            wanted.path.write_bytes(b"g" * 8 * PAGE)
        await zeroing
        if clean:
            assert wanted.path.read_bytes() == b"g" * 8 * PAGE
            extent_files.remove(wanted.path)
        for extent in rig.holding.stock.of("p"):
            assert extent.path.read_bytes() == bytes(8 * PAGE)
            prezeroed_files.cut(extent, 0)
        rig.holding.stock.forget("p")

    async def races() -> None:
        for _ in range(5):
            await race()

    asyncio.run(races())
    assert not rig.missed.exists()
