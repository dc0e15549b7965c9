# SPDX-License-Identifier: GPL-2.0-or-later
"""Nodes and blocks of memory that go offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import BOOT, GIB, MIB, fake_tree, put
from virt_dmem.config.schema import Config
from virt_dmem.monitoring.watch import nodes
from virt_dmem.monitoring.watch.base import Sight
from virt_dmem.monitoring.watch.nodes import MemoryBlocks
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord
from virt_dmem.pools.record import NodeShare, PoolRecord


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fake_tree(tmp_path, memory=(16 * GIB, 16 * GIB))
    put(tmp_path / "sys/devices/system/memory/block_size_bytes", f"{128 * MIB:x}\n")
    for number in range(16):
        block(tmp_path, number, "online" if number < 12 else "offline")
    return tmp_path


def block(root: Path, number: int, state: str) -> None:
    put(root / f"sys/devices/system/memory/memory{number}/state", f"{state}\n")


def record(node: int) -> PoolRecord:
    return HugetlbfsRecord("p", "hugetlbfs", 2 * MIB, "/none/p", {node: NodeShare(MIB, MIB)}, boot_id=BOOT)


def test_a_node_of_a_pool_without_memory_is_told_of(root: Path) -> None:
    tmpfs = PoolRecord("t", "tmpfs", 4096, "/none/t", {-1: NodeShare(MIB, MIB)})
    assert [*nodes.deviations(Sight(Config(), [record(1), tmpfs], root))] == []
    put(root / "sys/devices/system/node/has_memory", "0\n")
    (found,) = nodes.deviations(Sight(Config(), [record(1), record(0)], root))
    assert found.message == "Node 1 has no memory any more, and pool p took some of it."


def test_blocks_that_go_offline_are_told_of_until_they_are_back(root: Path) -> None:
    look = MemoryBlocks()

    def messages(hotplugs: int) -> list[str]:
        return [one.message for one in look(Sight(Config(), [record(0)], root, hotplugs=hotplugs))]

    assert messages(0) == []  # those that never were online are left alone
    for number in range(4, 10):
        block(root, number, "offline")
    assert messages(0) == []  # the kernel has not said so yet
    (message,) = messages(1)
    assert message.startswith("768 MiB of the host's memory went offline")
    assert "(memory4, memory5, memory6, memory7, memory8, …)" in message
    for number in range(4, 16):
        block(root, number, "online")
    assert messages(2) == []


def test_a_kernel_without_hotplug_has_no_blocks(tmp_path: Path) -> None:
    assert [*MemoryBlocks()(Sight(Config(), [record(0)], tmp_path))] == []
