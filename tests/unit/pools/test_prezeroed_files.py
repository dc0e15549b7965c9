# SPDX-License-Identifier: GPL-2.0-or-later
"""Pre-zeroed extents as files: created, populated, found again, taken, truncated, and chosen by fit."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.prezero import ONE, PAGE, RAM, TWO, extent, extents
from virt_dmem.errors import PrefaultFailed
from virt_dmem.pools import prezeroed_files
from virt_dmem.pools.prezeroed_files import Owner, PrezeroedExtent
from virt_dmem.pools.record import NodeShare, PoolRecord


@pytest.fixture
def record(tmp_path: Path) -> PoolRecord:
    """Return a segment whose mount is a plain directory."""
    return PoolRecord("p", "tmpfs", PAGE, str(tmp_path), {-1: NodeShare(64 * PAGE, 64 * PAGE)})


def test_a_new_one_grows_chunk_by_chunk_and_is_found_again(record: PoolRecord) -> None:
    made = prezeroed_files.create(record, "none", ((-1, 10 * PAGE),), RAM)
    assert made is not None
    assert (made.zeroed_bytes, made.target_bytes, made.path.stat().st_mode & 0o7777) == (0, 10 * PAGE, 0o600)
    assert made.directory.stat().st_mode & 0o7777 == 0o700
    for clean in (4, 8, 10):
        made = asyncio.run(prezeroed_files.zero_more(made, 4 * PAGE, threads=1))
        assert (made.zeroed_bytes, made.path.stat().st_blocks * 512) == (clean * PAGE, clean * PAGE)
        assert prezeroed_files.scan(record) == [made]
    assert made.is_complete


def test_one_that_is_half_done_is_taken_as_far_as_it_is(record: PoolRecord, tmp_path: Path) -> None:
    made = prezeroed_files.create(record, "none", ((-1, 6 * PAGE),), RAM)
    assert made is not None
    made = asyncio.run(prezeroed_files.zero_more(made, 4 * PAGE, threads=1))
    made.path.write_bytes(b"\0" * 4 * PAGE + b"x" * 2 * PAGE)  # a chunk that was cut short
    taken = tmp_path / f"libvirt-{TWO}" / "pc.ram"
    assert prezeroed_files.take(made, taken, 8 * PAGE) == 4 * PAGE
    assert taken.read_bytes() == b"\0" * 8 * PAGE
    assert taken.stat().st_blocks * 512 == 4 * PAGE
    assert prezeroed_files.scan(record) == []


def test_memory_that_an_earlier_version_kept_of_a_guest_is_returned_to_the_kernel(record: PoolRecord) -> None:
    made = prezeroed_files.create(record, "none", ((-1, 8 * PAGE),), RAM)
    assert made is not None
    made.path.with_name(f"u4_none_-1=8_{ONE}_pc.ram").write_bytes(b"x" * 8 * PAGE)
    (made.directory / "a directory").mkdir()
    assert prezeroed_files.scan(record) == [made]
    assert sorted(path.name for path in made.directory.iterdir()) == ["a directory", made.path.name]


def test_one_that_is_stopped_or_fails_is_as_it_was(record: PoolRecord, tmp_path: Path) -> None:
    made = prezeroed_files.create(record, "none", ((-1, 8 * PAGE),), RAM)
    assert made is not None
    with pytest.raises(PrefaultFailed):
        asyncio.run(prezeroed_files.zero_more(made, 4 * PAGE, helper=tmp_path / "there-is-none"))
    assert prezeroed_files.scan(record) == [made]
    assert made.path.stat().st_size == 0


def test_what_a_crash_left_is_cut_off_and_what_is_no_record_goes(record: PoolRecord) -> None:
    made = prezeroed_files.create(record, "none", ((-1, 8 * PAGE),), RAM)
    assert made is not None
    made = asyncio.run(prezeroed_files.zero_more(made, 4 * PAGE, threads=1))
    os.truncate(made.path, 8 * PAGE)  # the next chunk, without its memory
    other = replace(extent(((-1, 4),), owner=Owner(TWO, "pc.ram")), directory=made.directory)
    other.path.write_bytes(b"\0" * 3 * PAGE)  # shorter than it says
    (made.directory / "anything").write_text("else")
    assert prezeroed_files.scan(record) == [made]
    assert [path.name for path in made.directory.iterdir()] == [made.path.name]
    assert made.path.stat().st_size == 4 * PAGE


def test_one_that_cannot_be_named_is_not_made(record: PoolRecord) -> None:
    many = tuple((node, PAGE * 0x10000) for node in range(40))
    assert prezeroed_files.create(record, "bind", many, RAM) is None
    assert not Path(record.mount, prezeroed_files.DIRECTORY).exists()


@given(extents)
def test_its_name_is_the_record_of_it(some: PrezeroedExtent) -> None:
    assert prezeroed_files._read(some.path, PAGE) == some


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


@given(extents, extents)
def test_a_page_is_never_taken_for_another_node(some: PrezeroedExtent, wanted: PrezeroedExtent) -> None:
    if prezeroed_files.best_fit([some], wanted.policy, wanted.shares, RAM) is None:
        return
    common = min(some.zeroed_bytes, wanted.target_bytes)
    assert common
    if "interleave" in (some.policy, wanted.policy):
        assert {node for node, _ in some.shares} == {node for node, _ in wanted.shares}
    else:
        assert prezeroed_files.prefix(some.shares, common) == prezeroed_files.prefix(wanted.shares, common)


def test_a_removed_file_is_no_error_when_it_is_to_be_truncated(record: PoolRecord) -> None:
    gone = replace(extent(((-1, 8),)), directory=Path(record.mount))
    assert prezeroed_files.truncate(gone, 4 * PAGE) is None


@given(extents)
def test_memory_held_by_node_sums_up(some: PrezeroedExtent) -> None:
    assert sum(prezeroed_files.held_by_node([some]).values()) == some.zeroed_bytes


@given(extents, st.integers(0, 160))
def test_what_is_cut_keeps_the_nodes_of_its_beginning(some: PrezeroedExtent, size: int) -> None:
    after = prezeroed_files.truncated(some, min(size * PAGE, some.zeroed_bytes))
    if after is not None:
        assert after.zeroed_bytes <= some.zeroed_bytes
        assert (
            prezeroed_files.prefix(some.shares, after.target_bytes) == after.shares or some.policy == "interleave"
        )
