# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's RAM is its extents, all of them and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.unit.domains.conftest import MIB
from virt_dmem.domain_xml.qemu.guest_ram import RamUse
from virt_dmem.domains.guest_ram import _compare
from virt_dmem.errors import NotMapped
from virt_dmem.hypervisor.guest_ram import GuestRam

NODES = [RamUse("a NUMA node", "ram-node0"), RamUse("a NUMA node", "ram-node1")]
DIMM = RamUse("memory device dimm0", "memdimm0")


def compare(uses: Sequence[RamUse], boot_bytes: int | None = None) -> None:
    _compare("g", GuestRam(tuple(uses), boot_bytes), {"ram-node0": MIB, "ram-node1": MIB}, {"memdimm0"})


def test_that_is_accepted() -> None:
    compare([*NODES, DIMM])
    compare([*NODES, DIMM], 2 * MIB)


@pytest.mark.parametrize(
    ("uses", "boot_bytes", "complaint"),
    [
        ([*NODES, DIMM, RamUse("memory device d", "own")], None, "memory device d has memory backend 'own'"),
        ([RamUse("the machine", "own"), *NODES, DIMM], None, "the machine has memory backend 'own'"),
        ([RamUse("the machine", ""), DIMM], None, "memory that QEMU made by itself"),
        ([*NODES, RamUse("memory device d", "ram-node0")], None, "memory device d has memory backend 'ram-node0'"),
        ([NODES[0], DIMM], None, "'ram-node1' from the pool is used by nothing"),
        (NODES, None, "'memdimm0' from the pool is used by nothing"),
        ([*NODES, DIMM], 3 * MIB, "has 3 MiB of boot memory, and 2 MiB are from the pool"),
    ],
)
def test_everything_else_is_named(uses: list[RamUse], boot_bytes: int | None, complaint: str) -> None:
    with pytest.raises(NotMapped, match=complaint):
        compare(uses, boot_bytes)
