# SPDX-License-Identifier: GPL-2.0-or-later
"""Start domains with memory devices: their memory is the pool's, under libvirt's own names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.rig.command import virt_dmem, virt_dmem_fails, virt_dmem_json
from tests.rig.domains import domain_xml
from tests.rig.processes import wait_for

if TYPE_CHECKING:
    from tests.rig.daemon import Daemon
    from tests.rig.private_libvirt import PrivateLibvirt

MIB = 1 << 20


def device(model: str, size_mib: int, inside: str = "", *, source: str = "", target: str = "") -> str:
    return (
        f"<memory model='{model}'>{source}<target><size unit='MiB'>{size_mib}</size><node>0</node>{target}</target>"
        f"{inside}</memory>"
    )


@pytest.mark.needs_tmpfs
def test_dimms_and_virtio_mem_are_prepared_linked_and_given_back(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    blocks = "<block unit='KiB'>2048</block><requested unit='MiB'>{}</requested>"
    devices = (
        device("virtio-mem", 16, target=blocks.format(0))
        + device("dimm", 32, "<address type='dimm' slot='2'/>")
        + device("virtio-mem", 16, "<alias name='ua-elastic'/>", target=blocks.format(8))
        + device("dimm", 24, source="<source><pagesize unit='KiB'>2048</pagesize></source>")
        + device("virtio-mem", 8, target=blocks.format(4))
    )
    libvirtd.define(domain_xml("devices", cells=["32MiB", "32MiB"], max_memory="1GiB", slots=8, devices=devices))
    virt_dmem("apply", "devices", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "devices")
    domain = virt_dmem_json("show", "devices")["domain"]
    assert domain["phase"] == "running"
    assert {extent["alias"]: extent["size_bytes"] // MIB for extent in domain["extents"]} == {
        "ram-node0": 32,
        "ram-node1": 32,
        "virtiomem0": 16,
        "dimm2": 32,
        "ua-elastic": 16,
        "dimm0": 24,
        "virtiomem1": 8,
    }
    libvirtd.virsh("destroy", "devices")
    wait_for("everything to be freed", lambda: not virt_dmem_json("list")["domains"])


@pytest.mark.needs_tmpfs
def test_what_virtio_mem_may_plug_is_admitted_in_full(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    large = device("virtio-mem", 512, target="<block unit='KiB'>2048</block><requested unit='MiB'>0</requested>")
    libvirtd.define(domain_xml("large", cells=["32MiB"], max_memory="1GiB", devices=large))
    virt_dmem("apply", "large", "--pool", tmpfs_pool)
    assert "544 MiB" in libvirtd.virsh("start", "--paused", "large", check=False)


def test_a_dimm_on_huge_pages_is_mapped_whole(
    libvirtd: PrivateLibvirt, daemon: Daemon, hugetlbfs_pool: str
) -> None:
    libvirtd.define(domain_xml("huge", cells=["32MiB"], max_memory="1GiB", devices=device("dimm", 64)))
    virt_dmem("apply", "huge", "--pool", hugetlbfs_pool)
    libvirtd.virsh("start", "--paused", "huge")
    assert [extent["alias"] for extent in virt_dmem_json("show", "huge")["domain"]["extents"]] == [
        "ram-node0",
        "dimm0",
    ]


def test_a_dimm_of_odd_pages_is_refused_with_the_nearest(
    libvirtd: PrivateLibvirt, daemon: Daemon, hugetlbfs_pool: str
) -> None:
    libvirtd.define(domain_xml("odd", cells=["32MiB"], max_memory="1GiB", devices=device("dimm", 33)))
    said = virt_dmem_fails("apply", "odd", "--pool", hugetlbfs_pool, status=1)
    assert "dimm0" in said
    assert "32 MiB or 34 MiB" in said
