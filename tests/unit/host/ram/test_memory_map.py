# SPDX-License-Identifier: GPL-2.0-or-later
"""Find physical memory by node, and what was reserved of it at boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import GIB, MIB, NODES, PC, fake_memory_map, fake_tree, put
from virt_dmem.errors import PermissionRefused
from virt_dmem.host.ram import memory_map
from virt_dmem.host.ram.memory_map import SECTION
from virt_dmem.host.ram.ranges import Range


def two_nodes(root: Path, **more: object) -> Path:
    fake_tree(root, memory=(8 * GIB, 8 * GIB))
    return fake_memory_map(root, ram=PC, nodes=NODES, **more)  # type: ignore[arg-type]


def test_what_was_reserved_is_ram_that_the_kernel_does_not_use_on_its_node(tmp_path: Path) -> None:
    root = two_nodes(tmp_path, reserved=[(7 * GIB, GIB), (16 * GIB, GIB)])
    assert memory_map.reserved(root=root) == {0: (Range(7 * GIB, GIB),), 1: (Range(16 * GIB, GIB),)}


def test_a_range_over_two_nodes_is_divided(tmp_path: Path) -> None:
    root = two_nodes(tmp_path, reserved=[(8 * GIB, 2 * GIB)])
    assert memory_map.reserved(root=root) == {0: (Range(8 * GIB, GIB),), 1: (Range(9 * GIB, GIB),)}


def test_claimed_memory_is_not_free_any_more(tmp_path: Path) -> None:
    root = two_nodes(tmp_path, reserved=[(7 * GIB, GIB)], claimed=[(7 * GIB, 512 * MIB)])
    assert memory_map.reserved(root=root) == {0: (Range(7 * GIB + 512 * MIB, 512 * MIB),)}


def test_a_host_with_one_node_needs_no_table(tmp_path: Path) -> None:
    root = fake_memory_map(fake_tree(tmp_path), ram=PC, reserved=[(8 * GIB, 2 * GIB)])
    assert memory_map.reserved(root=root) == {0: (Range(8 * GIB, 2 * GIB),)}


def test_without_a_table_the_memory_blocks_tell_the_nodes(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=(8 * GIB, 8 * GIB))
    fake_memory_map(root, ram=PC, reserved=[(6 * GIB, GIB), (12 * GIB, GIB)])
    put(root / "sys/devices/system/memory/block_size_bytes", "8000000\n")
    for node, start, end in ((0, 0, 3), (0, 4, 6), (0, 7, 9), (1, 9, 12), (1, 13, 17)):
        for block in range(start * GIB // SECTION, end * GIB // SECTION):
            (root / f"sys/devices/system/node/node{node}/memory{block}").mkdir()
    assert memory_map.reserved(root=root) == {0: (Range(6 * GIB, GIB),), 1: (Range(12 * GIB, GIB),)}


def test_a_user_who_may_not_see_addresses_is_told(tmp_path: Path) -> None:
    root = two_nodes(tmp_path)
    put(root / "proc/iomem", "00000000-00000000 : System RAM\n00000000-00000000 : Reserved\n")
    with pytest.raises(PermissionRefused, match="root only"):
        memory_map.reserved(root=root)


@pytest.mark.parametrize(
    ("cmdline", "given"),
    [
        ("quiet", ()),
        ("memmap=1G$2G", (Range(2 * GIB, GIB),)),
        ("memmap=1G$2G,512M$0x100000000 memmap=1G!5G", (Range(2 * GIB, GIB), Range(4 * GIB, 512 * MIB))),
        ("memmap=exactmap memmap=x$y", ()),
        ("mem=8G", (Range(8 * GIB, (1 << 52) - 8 * GIB),)),
        ("mem=nopentium", ()),
    ],
)
def test_the_command_line_tells_what_was_kept_from_the_kernel(
    tmp_path: Path, cmdline: str, given: tuple[Range, ...]
) -> None:
    put(tmp_path / "proc/cmdline", f"BOOT_IMAGE=/x {cmdline}\n")
    assert memory_map.given_away(root=tmp_path) == given


def test_a_section_with_memory_of_the_kernel_has_struct_pages_and_is_left_out(tmp_path: Path) -> None:
    root = two_nodes(tmp_path, reserved=[(7 * GIB + 4 * MIB, GIB)])
    assert memory_map.reserved(root=root) == {0: (Range(7 * GIB + SECTION, GIB - SECTION),)}
    assert memory_map.bytes_with_struct_pages(root=root) == 16 * GIB - (GIB - SECTION)
