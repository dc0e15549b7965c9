# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains of machine ``virt``, booted by UEFI; hand-written, as no arm64 host was there to print their XML."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.rig.golden import GOLDEN
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.requirements import require_whole_pages
from virt_dmem.domain_xml.rewrite import apply, unapply
from virt_dmem.errors import DomainRefused
from virt_dmem.units import GIB, KIB, MIB

UEFI = (GOLDEN / "hand-written-aarch64-uefi-in.xml").read_bytes()
NUMA = (GOLDEN / "hand-written-aarch64-numa-in.xml").read_bytes()


@pytest.mark.parametrize("machine", [b"virt", b"virt-7.2", b"virt-10.0", b"virt-rhel9.6.0"])
def test_boot_memory_has_the_id_of_the_machine(machine: bytes) -> None:
    found = read_domain(UEFI.replace(b"virt-10.0", machine))
    assert found.cells == (Cell("mach-virt.ram", None, 8 * GIB, (), ""),)


def test_cells_and_dimms_are_named_as_on_any_architecture() -> None:
    found = read_domain(apply(NUMA, pool="guests")).cells
    assert [(cell.alias, cell.size_bytes, cell.host_nodes) for cell in found] == [
        ("ram-node0", 8 * GIB, (0,)),
        ("ram-node1", 8 * GIB, (1,)),
        ("dimm0", GIB, (1,)),
    ]


@pytest.mark.parametrize("page_size", [64 * KIB, 2 * MIB, 32 * MIB, GIB])
def test_any_page_size_of_the_architecture_will_do_where_memory_is_a_multiple(page_size: int) -> None:
    require_whole_pages("uefi", read_domain(UEFI).cells, page_size)
    with pytest.raises(DomainRefused, match="not a multiple of the page size"):
        require_whole_pages("uefi", (Cell("mach-virt.ram", None, GIB + 32 * KIB, (), ""),), page_size)


def test_hotplug_prepares_a_uefi_guest_and_leaves_its_firmware_alone(
    require_valid: Callable[[bytes], None],
) -> None:
    prepared = apply(UEFI, hotplug_max=64 * GIB)
    require_valid(prepared)
    assert [cell.alias for cell in read_domain(prepared).cells] == ["ram-node0"]
    assert prepared.count(b"AAVMF") == UEFI.count(b"AAVMF")
    assert unapply(prepared) == unapply(apply(UEFI))


def test_hotplug_without_acpi_is_refused_with_what_libvirt_wants_for_it() -> None:
    with pytest.raises(DomainRefused, match="has no ACPI") as caught:
        apply(UEFI.replace(b"    <acpi/>\n", b""), hotplug_max=64 * GIB)
    assert "<os firmware='efi'>" in caught.value.hint
