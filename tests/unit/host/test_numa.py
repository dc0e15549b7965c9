# SPDX-License-Identifier: GPL-2.0-or-later
"""NUMA nodes of this machine and of fake trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rig.fake_tree import GIB, MIB, fake_tree, put
from virt_dmem.host import huge_pages, kernel, numa


@pytest.mark.parametrize("count", [1, 2, 8])
def test_nodes_come_with_their_cpus_and_memory(tmp_path: Path, count: int) -> None:
    root = fake_tree(tmp_path, memory=[(node + 1) * GIB for node in range(count)])
    found = numa.nodes(root=root)
    assert [node.node for node in found] == list(range(count))
    last = found[-1]
    assert last.cpus == (2 * count - 2, 2 * count - 1)
    assert last.memory == kernel.Memory(count * GIB, count * GIB // 2, count * GIB * 3 // 4)


def test_a_node_without_memory_is_a_node(tmp_path: Path) -> None:
    found = numa.nodes(root=fake_tree(tmp_path, memory=[GIB, 0, GIB]))
    assert [node.memory.total_bytes for node in found] == [GIB, 0, GIB]


def test_a_node_without_cpus_is_told_from_one_without_memory(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=[GIB, GIB, 0, 4 * GIB], without_cpus=[1, 3])
    assert numa.nodes_without_cpus(root=root) == {1, 3}
    assert not numa.nodes_without_cpus()


def test_a_kernel_without_numa_is_one_node_with_everything(tmp_path: Path) -> None:
    put(tmp_path / "sys/devices/system/cpu/online", "0-3\n")
    put(tmp_path / "proc/meminfo", "MemTotal: 1024 kB\nMemFree: 512 kB\nMemAvailable: 700 kB\n")
    for name in ("nr_hugepages", "free_hugepages", "surplus_hugepages", "resv_hugepages"):
        put(tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB" / name, "3\n")
    assert numa.nodes(root=tmp_path) == (
        numa.Node(0, (0, 1, 2, 3), kernel.Memory(1024 * 1024, 512 * 1024, 700 * 1024)),
    )
    assert huge_pages.counters(2 * MIB, 0, root=tmp_path).pages == 3


def test_this_machine_has_nodes_with_all_of_its_cpus_and_memory() -> None:
    found = numa.nodes()
    assert sum(len(node.cpus) for node in found) == os.cpu_count()
    assert sum(node.memory.total_bytes for node in found) == kernel.memory().total_bytes
    assert all(0 < node.memory.free_bytes <= node.memory.available_bytes for node in found)


@pytest.mark.parametrize(
    ("text", "numbers"), [("", ()), ("0\n", (0,)), ("0-3", (0, 1, 2, 3)), ("0,2-3,8\n", (0, 2, 3, 8))]
)
def test_kernel_lists_are_read(text: str, numbers: tuple[int, ...]) -> None:
    assert numa.parse_list(text) == numbers
