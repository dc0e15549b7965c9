# SPDX-License-Identifier: GPL-2.0-or-later
"""Running domains, read from their live XML."""

from __future__ import annotations

from tests.rig.domain_documents import APPLIED, UUID, device, domain, metadata
from virt_dmem.config.schema import AdoptRule
from virt_dmem.domain_xml.live import MemoryDevice, read_guest
from virt_dmem.units import MIB


def test_memory_devices_with_a_file_of_their_own_are_no_guest_ram() -> None:
    models = ("dimm", "nvdimm", "virtio-mem", "virtio-pmem")
    devices = "".join(device(model, f"<alias name='{model}0'/>") for model in models)
    guest = read_guest(domain(f"<devices>{devices}</devices>"))
    assert guest.devices == (
        MemoryDevice("dimm0", "dimm", 128 * MIB),
        MemoryDevice("virtio-mem0", "virtio-mem", 128 * MIB),
    )


def test_a_guest_is_managed_if_it_was_started_with_the_request() -> None:
    plain = read_guest(domain())
    assert (plain.uuid, plain.name, plain.managed) == (UUID, "vm", False)
    assert read_guest(domain(metadata())).managed


def test_the_rule_that_adopts_a_guest_is_known() -> None:
    rules = [AdoptRule(rule="mine", domain="vm")]
    assert read_guest(domain(APPLIED), rules).rule == "mine"
    assert read_guest(domain(), rules).rule == "", "it does not, as the memory is of another kind"
    assert read_guest(domain(APPLIED)).rule == ""


def test_obstacles_of_a_running_guest_are_found() -> None:
    vdpa = "<devices><interface type='vdpa'><mac address='52:54:00:00:00:01'/></interface></devices>"
    (obstacle,) = read_guest(domain(vdpa)).obstacles
    assert "52:54:00:00:00:01 is vDPA" in obstacle.what
