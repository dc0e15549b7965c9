# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices in the XML of a running domain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.rig.cpu_time import seconds
from tests.rig.domain_documents import UUID, device, domain
from virt_dmem.domain_xml.devices import (
    Device,
    device_xml,
    find_device,
    find_devices,
    free_alias,
    is_boot_backend,
    memory_of,
    require_room,
    resized_xml,
)
from virt_dmem.domain_xml.reader import DomainDocument
from virt_dmem.errors import DomainRefused
from virt_dmem.units import GIB, MIB

DIGITS = "9" * 5000
"""More than Python reads, which is 4300."""


def test_a_new_alias_is_found_at_once_however_many_are_taken_already() -> None:
    taken = b"".join(b"ua-dmem%d'" % number for number in range(300_000))
    assert seconds(lambda: free_alias(taken, taken)) < 10
    assert free_alias(taken) == "ua-dmem300000"
    assert free_alias(b"<alias name='ua-dmem0'/><alias name='ua-dmem00001'/>") == "ua-dmem1"


def test_devices_are_found_with_one_look_at_the_document() -> None:
    one = "<memory model='dimm'><target><size>2048</size><node>0</node></target><alias name='{}'/>{}</memory>"
    many = "".join(one.format(f"dimm{n}", "") for n in range(256))
    xml = domain(f"<devices>{many}</devices>")
    assert set(find_devices(xml, {f"dimm{n}" for n in range(300)})) == {f"dimm{n}" for n in range(256)}
    for mask in (DIGITS, "٣", "x"):
        source = f"<source><nodemask>{mask}</nodemask></source>"
        with pytest.raises(DomainRefused):
            find_device(domain(f"<devices>{one.format('dimm0', source)}</devices>"), "dimm0")


def test_the_hint_with_a_command_contains_no_words_of_a_tenant() -> None:
    with pytest.raises(DomainRefused) as caught:
        require_room(DomainDocument(domain().replace(b">vm<", b">web; reboot<")), "dimm", 1 << 20, 0)
    assert "reboot" not in caught.value.hint
    assert UUID in caught.value.hint


def live(maximum: str = "<maxMemory slots='1' unit='GiB'>2</maxMemory>", devices: str = "") -> DomainDocument:
    cells = "<cell id='0' memory='1' unit='GiB'/>"
    return DomainDocument(domain(f"{maximum}<devices>{devices}</devices>", cells=cells, head="type='kvm' id='1'"))


@pytest.mark.parametrize(
    ("document", "model", "size_bytes", "cell", "why"),
    [
        (live(maximum=""), "dimm", GIB, 0, "no <maxMemory>"),
        (live(), "dimm", GIB, 1, "no guest NUMA cell 1"),
        (live(), "dimm", GIB + MIB, 0, "has 1 GiB and may have 2 GiB"),
        (live(devices=device("dimm")), "dimm", MIB, 0, "All 1 memory slots"),
    ],
)
def test_a_device_without_room_is_refused(
    document: DomainDocument, model: str, size_bytes: int, cell: int, why: str
) -> None:
    with pytest.raises(DomainRefused, match=why):
        require_room(document, model, size_bytes, cell)


def test_virtio_mem_needs_no_slot() -> None:
    require_room(live(devices=device("dimm")), "virtio-mem", MIB, 0)


def test_the_memory_of_a_device_to_be_attached_is_that_device_alone() -> None:
    document = live(devices=device("dimm", "<alias name='ua-dmem0'/>"))
    memory = memory_of(document, Device("ua-dmem1", "dimm", 64 * MIB, 0, node=3))
    (cell,) = memory.cells
    assert (cell.alias, cell.size_bytes, cell.host_nodes) == ("ua-dmem1", 64 * MIB, (3,))
    assert [cell.alias for cell in document.memory().cells] == ["ram-node0", "ua-dmem0"], (
        "the document is unchanged"
    )


def test_a_device_is_attached_as_it_was_described_and_found_as_libvirt_prints_it() -> None:
    wanted = Device("ua-dmem0", "virtio-mem", 128 * MIB, 0, node=1, block_bytes=2 * MIB)
    assert find_device(live(devices=device_xml(wanted)).xml, "ua-dmem0") == wanted


def test_a_resize_changes_nothing_but_the_requested_size() -> None:
    wanted = Device("ua-dmem0", "virtio-mem", 128 * MIB, 0, block_bytes=2 * MIB)
    xml = live(devices=device_xml(wanted)).xml
    resized = resized_xml(xml, "ua-dmem0", 64 * MIB)
    assert find_device(live(devices=resized).xml, "ua-dmem0") == replace(wanted, requested_bytes=64 * MIB)
    with pytest.raises(DomainRefused, match="no virtio-mem device 'ua-dmem1'"):
        resized_xml(xml, "ua-dmem1", 64 * MIB)


def test_boot_memory_is_told_from_devices_by_its_alias() -> None:
    assert [is_boot_backend(alias) for alias in ("pc.ram", "ram-node7", "dimm0", "ua-dmem0")] == [
        True, True, False, False,
    ]  # fmt: skip
