# SPDX-License-Identifier: GPL-2.0-or-later
"""Test DMA of a VFIO device behind an IOMMU to dmemfs memory: it reaches no other file.

The device is QEMU's "edu", which does what kernel/tests/vfiotest.c tells it. Behind "intel-iommu" the host's own
disk was read wrong (QEMU 10, TCG), so the IOMMU is AMD's.
"""

from __future__ import annotations

import lzma
from typing import TYPE_CHECKING

import pytest

from tests.lab import module_build

if TYPE_CHECKING:
    from tests.lab.image import Image
    from tests.lab.machine import Machine

MACHINE = {
    "node_gib": (2,),
    "machine": "q35",
    "devices": ("amd-iommu", "edu"),
    "cmdline": "memmap=256M$0x50000000",
    "name": "vfio",
}
POOL = "region=0x50000000+256M,pagesize=2M"
FIND = "grep -l 0x11e8 /sys/bus/pci/devices/*/device | xargs dirname | xargs basename"


@pytest.fixture(scope="module")
def device(lab_image: Image, machine: Machine) -> str:
    """Bind the host's device to VFIO; return its group and its address."""
    built = module_build.build(lab_image)
    machine.run("xz -dc >/root/dmemfs.ko && insmod /root/dmemfs.ko", stdin=lzma.compress(built.module))
    machine.run("xz -dc >/usr/bin/vfiotest && chmod 755 /usr/bin/vfiotest", stdin=lzma.compress(built.vfio_program))
    address = machine.run(FIND).stdout.strip()
    path = f"/sys/bus/pci/devices/{address}"
    machine.run("modprobe vfio-pci && modprobe vfio_iommu_type1", timeout=300)
    machine.run(f"echo vfio-pci >{path}/driver_override && echo {address} >/sys/bus/pci/drivers/vfio-pci/bind")
    group = machine.run(f"basename $(readlink {path}/iommu_group)").stdout.strip()
    return f"/dev/vfio/{group} {address}"


@pytest.mark.parametrize("how", ["punch", "truncate"])
def test_a_device_goes_on_writing_to_what_a_file_lost_and_never_to_another_file(
    machine: Machine, device: str, how: str
) -> None:
    machine.run(f"mount -t dmemfs -o {POOL} pool /mnt")
    try:
        said = machine.run(f"vfiotest /mnt {device} {how}").stdout
    finally:
        machine.wait_for("rm -f /mnt/* && umount /mnt", timeout=20)
    assert "writes in the other file: 0 of 16" in said
    # its own page comes back zeroed, at the address that the device uses
    assert "back: 0, then 90" in said
