# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify that memory released by a running guest's balloon or free-page reporting remains the guest's.

QEMU punches holes into the extent, and the kernel counts these pages as the pool's again. If another domain got
them, the guest would be killed by SIGBUS as soon as it touches its memory again. (A balloon inflates by pages of
4 KiB; QEMU 7.2 then releases none of an extent of huge pages, while reported free pages are 2 MiB.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.guest import GuestImage, guest_image
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, wait_for

MIB = 1 << 20
POOL = Path("/run/virt-dmem/pools/small")

# Waits until its memory has shrunk and grown again, and then writes to all of it. What it wrote stays: freed pages
# would be reported as free before a test has seen them.
SCRIPT = """
total() { sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; }
available() { sed -n 's/MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; }
all=$(total)
echo "waiting"
while [ "$(total)" -gt $((all - 3000)) ]; do sleep 0.2; done
while :; do now=$(total); sleep 1; [ "$(total)" = "$now" ] && break; done
echo "inflated to $now kB"
while [ "$(total)" -lt $((all - 1000)) ]; do sleep 0.2; done
echo "deflated"
dd if=/dev/zero of=/tmp/fill bs=1M count=$(($(available) / 1024 - 16)) 2>/dev/null
echo "wrote $(du -m /tmp/fill | cut -f1) MiB"
"""


@pytest.fixture(scope="module")
def image(rig: None) -> GuestImage:
    modules = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"]
    return guest_image(SCRIPT, modules=[*modules, "virtio_balloon"])


@pytest.fixture(params=["tmpfs", pytest.param("hugetlbfs", marks=pytest.mark.needs_hugepages)])
def pool(request: pytest.FixtureRequest, libvirtd: PrivateLibvirt, daemon: Daemon) -> Iterator[str]:
    """Create the pool ``small``: 256 MiB."""
    if request.param == "hugetlbfs":
        request.getfixturevalue("exclusive_hugepages")
    virt_dmem("pool", "create", "small", "--backend", request.param, "--size", "256M")
    yield "small"
    libvirtd.remove()
    virt_dmem("pool", "destroy", "small")


def start(libvirtd: PrivateLibvirt, image: GuestImage, balloon: str) -> Path:
    """Start ``breather`` of 192 MiB, and return its extent once the guest is up."""
    uuid = libvirtd.define(domain_xml("breather", memory="192MiB", image=image, devices=balloon))
    virt_dmem("apply", "breather", "--pool", "small")
    libvirtd.virsh("start", "breather")
    says(libvirtd, "waiting")
    return POOL / f"libvirt-{uuid}/pc.ram"


def says(libvirtd: PrivateLibvirt, text: str) -> str:
    found = wait_for(
        f"the guest to say {text!r}", lambda: re.search(text, libvirtd.console("breather")), timeout=60
    )
    return found[0]


def present(extent: Path) -> int:
    """Return the allocated bytes of an extent."""
    return extent.stat().st_blocks * 512


def fill_the_rest(libvirtd: PrivateLibvirt) -> None:
    """Verify the free amount: 64 MiB can be reserved, 96 cannot, although the kernel has more free."""
    left = os.statvfs(POOL)
    assert left.f_bfree * left.f_frsize >= 96 * MIB, "the kernel would give it away"
    (shown,) = virt_dmem_json("pool", "list")["pools"]
    assert (shown["reserved_bytes"], shown["free_bytes"]) == (192 * MIB, 64 * MIB)
    for name, size in (("greedy", "96MiB"), ("modest", "64MiB")):
        libvirtd.define(domain_xml(name, memory=size))
        virt_dmem("apply", name, "--pool", "small")
    with pytest.raises(RigError, match="64 MiB is free"):
        libvirtd.virsh("start", "--paused", "greedy")
    libvirtd.virsh("start", "--paused", "modest")


def lives_with_all_its_memory(libvirtd: PrivateLibvirt, extent: Path) -> None:
    libvirtd.virsh("setmem", "breather", "192M", "--live")
    says(libvirtd, "deflated")
    wrote = int(says(libvirtd, r"wrote \d+ MiB").split()[1])
    assert wrote > 80
    says(libvirtd, r"(?s)wrote.*uptime")
    assert libvirtd.state("breather") == "running"
    assert present(extent) > wrote * MIB
    (shown,) = virt_dmem_json("pool", "list")["pools"]
    assert (shown["reserved_bytes"], shown["free_bytes"]) == (256 * MIB, 0)


@pytest.mark.parametrize("pool", ["tmpfs"], indirect=True)
def test_a_balloon_gives_nothing_back_to_the_pool(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str, image: GuestImage
) -> None:
    extent = start(libvirtd, image, "<memballoon model='virtio'/>")
    assert present(extent) == 192 * MIB
    libvirtd.virsh("setmem", "breather", "96M", "--live")
    says(libvirtd, "inflated")
    assert present(extent) < 144 * MIB
    fill_the_rest(libvirtd)
    lives_with_all_its_memory(libvirtd, extent)


def test_free_pages_that_a_guest_reports_are_not_given_to_another(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str, image: GuestImage
) -> None:
    extent = start(libvirtd, image, "<memballoon model='virtio' freePageReporting='on'/>")
    wait_for("free pages to be reported", lambda: present(extent) < 128 * MIB, timeout=30)
    fill_the_rest(libvirtd)
    libvirtd.virsh("setmem", "breather", "180M", "--live")
    says(libvirtd, "inflated")
    lives_with_all_its_memory(libvirtd, extent)
