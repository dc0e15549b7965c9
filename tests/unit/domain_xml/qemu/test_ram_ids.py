# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of boot memory by machine type, against the QEMUs of this host."""

from __future__ import annotations

import shutil

import pytest

from tests.rig.domain_documents import domain
from tests.rig.qemu_ram_ids import ARCHES, ask
from virt_dmem.domain_xml.qemu.ram_ids import RAM_IDS
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.errors import DomainRefused

QEMUS = [name for name in sorted(ARCHES) if shutil.which(f"qemu-system-{name}")]


@pytest.mark.parametrize("name", QEMUS)
def test_the_qemus_of_this_host_name_their_boot_memory_as_we_do(name: str) -> None:
    version, machines = ask(f"qemu-system-{name}")
    assert machines
    for machine, ram_id in machines.items():
        xml = domain(machine=f"arch='{ARCHES[name].split()[0]}' machine='{machine}'")
        if ram_id:
            assert read_domain(xml).cells[0].alias == ram_id, f"{machine} of QEMU {version}"
        else:
            with pytest.raises(DomainRefused, match="makes no memory backend"):
                read_domain(xml)


def test_no_machine_is_in_the_table_twice() -> None:
    names = [
        (arch, family) for arches, _, families in RAM_IDS for arch in arches.split() for family in families.split()
    ]
    assert len(names) == len(set(names)) > 300
