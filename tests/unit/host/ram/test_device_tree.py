# SPDX-License-Identifier: GPL-2.0-or-later
"""Read memory from device trees, fakes of those that a boot loader hands to the kernel."""

from __future__ import annotations

from pathlib import Path

from tests.rig.fake_arm64 import RUNTIME, TWO_NODES, fake_arm64
from virt_dmem.host.ram import device_tree
from virt_dmem.host.ram.ranges import without


def test_reserved_memory_is_no_memory_for_guests(tmp_path: Path) -> None:
    root = fake_arm64(tmp_path, efi=False)
    assert device_tree.memory(root=root) == without(TWO_NODES.values(), RUNTIME)


def test_nodes_are_known_if_all_memory_has_one(tmp_path: Path) -> None:
    root = fake_arm64(tmp_path, efi=False)
    assert device_tree.memory_by_node(root=root) == {node: (item,) for node, item in TWO_NODES.items()}
    (root / "sys/firmware/devicetree/base/memory@1000000000/numa-node-id").unlink()
    assert device_tree.memory_by_node(root=root) == {}


def test_what_uefi_booted_has_no_memory_there(tmp_path: Path) -> None:
    root = fake_arm64(tmp_path, efi=False)
    (root / "sys/firmware/efi").mkdir()
    assert (device_tree.memory(root=root), device_tree.memory_by_node(root=root)) == ((), {})
    assert device_tree.memory(root=tmp_path / "none") == ()
