# SPDX-License-Identifier: GPL-2.0-or-later
"""Find physical memory on arm64, where the firmware's map is in no file; over fakes of hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_arm64 import ISLANDS, RUNTIME, TWO_NODES, fake_arm64, with_module
from tests.rig.fake_tree import GIB, MIB, put
from virt_dmem.errors import PermissionRefused
from virt_dmem.host.ram import memory_map
from virt_dmem.host.ram.memory_map import SECTION
from virt_dmem.host.ram.ranges import Range, common, total, without

LEFT = Range(79 * GIB - 2 * MIB, 2 * MIB)
"""What the boot loader left: the kernel's device tree, of EFI type 2."""


def test_what_the_firmware_uses_beyond_mem_is_left_out_with_its_section(tmp_path: Path) -> None:
    """Its memory stays known to the kernel, as 'reserved', and has struct pages."""
    root = with_module(fake_arm64(tmp_path, mem=24 * GIB))
    found = memory_map.reserved(root=root)
    used = [*RUNTIME, *ISLANDS]
    assert found.keys() == {1}
    assert common(found[1], used) == ()
    assert all(item.start % SECTION == 0 == item.end % SECTION for item in found[1])
    sections = {at // SECTION for item in used for at in (item.start, item.end - 1)}
    assert total(found[1]) == 8 * GIB - len(sections) * SECTION


def test_what_the_boot_loader_left_is_left_out_though_no_resource_names_it(tmp_path: Path) -> None:
    root = fake_arm64(tmp_path, mem=24 * GIB)
    before = memory_map.reserved(root=with_module(root))[1]
    after = memory_map.reserved(root=with_module(root, [LEFT]))[1]
    assert after == without(before, [LEFT])
    assert total(before) - total(after) == LEFT.size


def test_before_the_module_is_loaded_uefis_memory_beyond_mem_is_unknown(tmp_path: Path) -> None:
    root = fake_arm64(tmp_path, mem=24 * GIB)
    assert memory_map.reserved(root=root) == {}
    assert memory_map.given_away(root=root)[0].start == 0, "it is an amount, not an address"
    assert memory_map.given_away(root=fake_arm64(tmp_path / "all")) == ()


def test_a_device_tree_tells_all_memory_without_a_module(tmp_path: Path) -> None:
    root = fake_arm64(tmp_path, mem=24 * GIB, efi=False, islands=())
    assert memory_map.firmware_ram(root=root) == without(TWO_NODES.values(), RUNTIME)
    assert memory_map.node_ranges(root=root) == {node: (item,) for node, item in TWO_NODES.items()}
    assert total(memory_map.reserved(root=root)[1]) == 8 * GIB - SECTION


def test_nodes_are_numbered_by_their_cpus_first(tmp_path: Path) -> None:
    """The memory of node 1 comes first in the table."""
    found = memory_map.node_ranges(root=fake_arm64(tmp_path))
    assert found == {node: (item,) for node, item in TWO_NODES.items()}


def test_memory_that_the_kernel_must_not_use_has_struct_pages_all_the_same(tmp_path: Path) -> None:
    root = fake_arm64(tmp_path)
    assert memory_map.in_memory_map(root=root) == tuple(TWO_NODES.values())
    assert memory_map.bytes_with_struct_pages(root=root) == 32 * GIB
    assert memory_map.firmware_ram(root=root) == memory_map.kernel_ram(root=root)


def test_a_user_who_may_not_see_addresses_is_told(tmp_path: Path) -> None:
    root = fake_arm64(tmp_path)
    put(root / "proc/iomem", "00000000-00000000 : System RAM\n00000000-00000000 : reserved\n")
    with pytest.raises(PermissionRefused, match="root only"):
        memory_map.ram_by_node(root=root)
