# SPDX-License-Identifier: GPL-2.0-or-later
"""The original dmemfs, by what its patches say of it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from tests.rig.dmemfs_segments import KIND, acquire, check, record
from tests.rig.fake_tree import GIB, MIB, NODES, PC, fake_memory_map, fake_tree, put
from virt_dmem.errors import PoolError, PoolShort
from virt_dmem.pools.backends import dmemfs_legacy
from virt_dmem.pools.backends.checks import Status


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A kernel that was built with the original dmemfs, by what the patches say of it; a fake."""
    root = fake_memory_map(fake_tree(tmp_path, memory=(8 * GIB, 8 * GIB)), ram=PC, nodes=NODES, cmdline="dmem=2G")
    put(root / "proc/filesystems", "nodev\tproc\nnodev\tdmemfs\n")
    for node in (0, 1):
        put(root / f"sys/kernel/debug/dmem/node{node}/registered_pages", f"{2 * GIB // 4096}\n")
    return root


def test_the_original_is_told_from_ours_and_zeroed_by_us(original: Path) -> None:
    assert dmemfs_legacy.is_original(original)
    assert "original" in KIND.probe(root=original).reason
    assert KIND.default_sizes(2 * MIB, {}, (), root=original) == {0: 2 * GIB, 1: 2 * GIB}
    found = acquire(original, record({0: 2 * GIB, 1: 2 * GIB}))
    assert found.original
    assert not found.measured
    assert not KIND.zeroes(found)
    assert KIND.mount_options(found) == ("pagesize=2M",)
    with pytest.raises(PoolShort):
        acquire(original, record({0: GIB}, name="q"), found)
    assert check(original, found).status is Status.PASS


def test_the_original_without_its_debugfs_says_what_is_missing(original: Path) -> None:
    for node in (0, 1):
        (original / f"sys/kernel/debug/dmem/node{node}/registered_pages").unlink()
    with pytest.raises(PoolError, match="cannot be read") as caught:
        acquire(original, record({0: GIB}))
    assert "debugfs" in caught.value.hint


def test_whether_a_file_system_maps_at_any_address_is_tried(tmp_path: Path) -> None:
    assert dmemfs_legacy.maps_anywhere(tmp_path, 2 * MIB)
    assert list(tmp_path.iterdir()) == []
    assert ctypes.sizeof(ctypes.c_void_p) == 8
