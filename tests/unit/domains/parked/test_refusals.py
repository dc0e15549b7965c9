# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains that cannot be parked are refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from virt_dmem.allocation.models import Extent, ExtentState, Parked, ParkedStep, Phase, Reservation
from virt_dmem.domain_xml.monitor import add_monitor
from virt_dmem.domains.parked.refusals import is_parked, refuse_devices, refuse_unsettled
from virt_dmem.errors import DomainRefused
from virt_dmem.pools.segment_id import SegmentId

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


def domain(devices: str = "", more: str = "", *, monitor: bool = True) -> etree._Element:
    root = etree.fromstring(f"<domain><uuid>{UUID}</uuid>{more}<devices>{devices}</devices></domain>")
    if monitor:
        add_monitor(root, [])
    return root


def test_an_ordinary_domain_is_not_refused() -> None:
    dimm = "<memory model='dimm'><target/></memory>"
    bridge = "<interface type='network'><actual type='bridge'/></interface><disk type='file'/>"
    refuse_devices("guest", domain(dimm + bridge, "<memoryBacking><source type='file'/></memoryBacking>"))


@pytest.mark.parametrize(
    ("devices", "more", "said"),
    [
        ("<hostdev type='pci'/>", "", "a pci host device is passed through"),
        ("<interface type='network'><actual type='hostdev'/></interface>", "", "an interface is of type hostdev"),
        ("<interface type='vhostuser'/>", "", "an interface is of type vhostuser"),
        ("<disk type='nvme'/>", "", "a disk is of type nvme"),
        ("<memory model='virtio-mem'/>", "", "a virtio-mem device"),
        ("<memory model='nvdimm'/>", "", "a memory device of model nvdimm"),
        ("<memory model='dimm' discard='yes'/>", "", "a memory device has discard='yes'"),
        ("", "<memoryBacking><discard/></memoryBacking>", "has <discard/>"),
        ("", "<cpu><numa><cell id='1' discard='yes'/></numa></cpu>", "NUMA cell 1 has discard='yes'"),
    ],
)
def test_what_does_not_outlive_a_qemu_is_named(devices: str, more: str, said: str) -> None:
    with pytest.raises(DomainRefused, match=said):
        refuse_devices("guest", domain(devices, more))


def test_a_domain_without_a_second_monitor_is_refused() -> None:
    with pytest.raises(DomainRefused, match="without QEMU's second monitor"):
        refuse_devices("guest", domain(monitor=False))


def test_a_domain_with_a_device_that_is_being_changed_is_refused() -> None:
    extent = Extent(
        id=1, uuid=UUID, alias="dimm0", segment=SegmentId("p"), path=Path("/p/dimm0"), size_bytes=1, page_size=1,
        policy="none", state=ExtentState.DETACHING, boot_id="b", link="", shares={},
    )  # fmt: skip
    with pytest.raises(DomainRefused, match="Memory device dimm0 of domain guest is detaching"):
        refuse_unsettled(Reservation(UUID, "guest", "b", Phase.RUNNING, 0.0, (extent,)))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (ParkedStep.PARKED, "its saved state is /state"),
        (ParkedStep.PARKING, "it is being saved"),
        (ParkedStep.UNPARKING, "it is being restored"),
    ],
)
def test_the_refusal_of_a_parked_domain_says_how_to_go_on(step: ParkedStep, said: str) -> None:
    error = is_parked("guest", Parked(UUID, step, Path("/state"), 0.0))
    assert error.message == f"Domain guest is parked: its memory is kept in the pool, and {said}."
    assert f"virt-dmem unpark {UUID}" in error.hint
    assert f"virt-dmem unpark --discard {UUID}" in error.hint
