# SPDX-License-Identifier: GPL-2.0-or-later
"""Ballast grows chunk by chunk, and is truncated for the domain that needs the pages."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from virt_dmem.errors import PrefaultFailed
from virt_dmem.pools import ballast
from virt_dmem.pools.record import NodeShare, PoolRecord

PAGE = 4096


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PoolRecord:
    """Return a segment whose mount is a plain directory; chunks have four pages."""
    monkeypatch.setattr(ballast, "_CHUNK", 4 * PAGE)
    return PoolRecord("p", "tmpfs", PAGE, str(tmp_path), {0: NodeShare(64 * PAGE, 64 * PAGE)})


def test_it_grows_chunk_by_chunk_and_shrinks_at_once(record: PoolRecord) -> None:
    assert ballast.held_bytes(record, 0) == 0
    assert asyncio.run(ballast.grow(record, 0, 6 * PAGE, threads=1))
    assert ballast.held_bytes(record, 0) == 4 * PAGE
    assert not asyncio.run(ballast.grow(record, 0, 6 * PAGE, threads=1))
    assert ballast.held_bytes(record, 0) == 6 * PAGE
    assert not asyncio.run(ballast.grow(record, 0, 6 * PAGE, threads=1))
    ballast.shrink(record, 0, PAGE)
    assert ballast.held_bytes(record, 0) == PAGE
    ballast.shrink(record, 0, 4 * PAGE)
    assert ballast.held_bytes(record, 0) == PAGE


def test_a_chunk_that_fails_is_undone(record: PoolRecord, tmp_path: Path) -> None:
    asyncio.run(ballast.grow(record, 0, 4 * PAGE, threads=1))
    with pytest.raises(PrefaultFailed):
        asyncio.run(ballast.grow(record, 0, 8 * PAGE, helper=tmp_path / "there-is-none"))
    assert (tmp_path / ballast.DIRECTORY / "node0").stat().st_size == 4 * PAGE
