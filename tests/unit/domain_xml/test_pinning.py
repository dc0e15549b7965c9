# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a domain that cannot work on memory without struct pages, and where they are refused."""

from __future__ import annotations

from xml.sax.saxutils import escape

import pytest

from tests.rig.fake_tree import GIB, MIB
from virt_dmem.allocation.plan import PoolFree, plan_domain
from virt_dmem.domain_xml.devices import Device, memory_of
from virt_dmem.domain_xml.pinning import may_run_guests
from virt_dmem.domain_xml.reader import DomainDocument, read_domain
from virt_dmem.domain_xml.rewrite import apply, unapply
from virt_dmem.errors import DomainRefused

DISK = "<disk type='file' device='disk'><driver name='qemu' {}/><source file='/x'/><target dev='vda'/></disk>"
PCI = (
    "<hostdev mode='subsystem' type='pci'>{}<source>"
    "<address domain='0x0000' bus='0x3b' slot='0x00' function='0x1'/></source></hostdev>"
)
UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
OS = "<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>"


def domain(devices: str = "", backing: str = "") -> bytes:
    xml = f"<domain type='kvm'><name>g</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory>{backing}{OS}"
    return f"{xml}<devices>{devices}</devices></domain>".encode()


@pytest.mark.parametrize(
    ("devices", "what", "fix"),
    [
        (DISK.format("cache='none'"), "disk vda has cache='none'", "Set cache='writeback' on disk vda"),
        (
            DISK.format("cache='none' io='native'"),
            "disk vda has cache='none'",
            "Set cache='writeback' on disk vda and remove io='native'",
        ),
        (DISK.format("cache='directsync'"), "cache='directsync'", "cache='writethrough'"),
        (DISK.format("io='native'"), "io='native'", "io='threads'"),
        (
            "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>",
            "an interface is vDPA",
            "another type",
        ),
        (
            "<disk type='vhostvdpa'><source dev='/dev/vhost-vdpa-0'/><target dev='vdb'/></disk>",
            "vdb is vDPA",
            "vdb",
        ),
        (PCI.format(""), "host device 0000:3b:00.1 is passed through by VFIO", "Remove host device 0000:3b:00.1"),
        (PCI.format("<alias name='hostdev0'/>"), "host device hostdev0 is passed", "Remove host device hostdev0"),
        (PCI.format("<driver name='vfio'/>"), "by VFIO, which takes no reference", "Remove"),
        (PCI.format("<driver iommufd='yes'/>"), "by VFIO", "Remove"),
        (
            "<hostdev mode='subsystem' type='mdev'><source><address uuid='c2-7'/></source></hostdev>",
            "host device c2-7 is passed through by VFIO",
            "Remove host device c2-7",
        ),
        ("<hostdev mode='subsystem' type='of-tomorrow'/>", "a host device is passed through", "Remove"),
        (
            "<interface type='hostdev'><mac address='52:54:00:00:00:01'/><source/></interface>",
            "interface 52:54:00:00:00:01 is a host device by VFIO",
            "another type",
        ),
        ("<interface type='network'><actual type='hostdev'/></interface>", "by VFIO", "another type"),
        (
            "<disk type='nvme'><source type='pci' namespace='1'/><target dev='vdc'/></disk>",
            "disk vdc is an NVMe device that QEMU drives by VFIO",
            "Give disk vdc another type",
        ),
        (
            "<disk type='file'><backingStore type='file'><backingStore type='nvme'/></backingStore>"
            "<target dev='vdd'/></disk>",
            "disk vdd is an NVMe device",
            "disk vdd",
        ),
        (
            "<disk type='file'><source file='/x'/><mirror type='nvme' job='copy'/><target dev='vde'/></disk>",
            "disk vde is an NVMe device",
            "disk vde",
        ),
        ("<hostdev mode='subsystem' type='scsi_host'/>", "vhost-scsi", "'block'"),
        ("<memory model='virtio-mem'><target><size>1</size></target></memory>", "virtio-mem", "'dimm'"),
    ],
)
def test_what_pins_memory_is_refused_with_the_fix(devices: str, what: str, fix: str) -> None:
    xml = domain(devices)
    with pytest.raises(DomainRefused) as caught:
        apply(xml, pool="dm", may_pin=False)
    assert "'dm', whose memory has no struct pages" in caught.value.message
    assert what in caught.value.message
    assert fix in caught.value.hint
    assert b"dmem:replaced" in apply(xml, pool="dm")


@pytest.mark.parametrize(
    "devices",
    [
        "",
        DISK.format(""),
        DISK.format("cache='writeback' io='io_uring'"),
        DISK.format("cache='unsafe'"),
        "<hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>",
        "<hostdev mode='subsystem' type='scsi'/>",
        "<disk type='file'><source file='/x'/><backingStore type='file'/><target dev='vda'/></disk>",
        "<interface type='network'><driver name='vhost'/></interface>",
        "<memory model='dimm'><target><size>1</size></target></memory>",
    ],
)
def test_what_copies_is_not_refused(devices: str) -> None:
    assert unapply(apply(domain(devices), pool="dm", may_pin=False, may_lock=False), keep_request=False)


@pytest.mark.parametrize(
    ("argument", "refused"),
    [
        ("vfio-pci,host=3b:00.1", True),
        ('{"driver":"vfio-pci","host":"3b:00.1"}', True),
        ("driver=vfio-pci,host=3b:00.1", True),
        ("iommufd,id=i", True),
        ('{"qom-type": "iommufd", "id": "i"}', True),
        ("driver=nvme,device=0000:3b:00.0,namespace=1,node-name=n", True),
        ('{"driver": "nvme", "device": "0000:3b:00.0"}', True),
        ("file=nvme://0000:3b:00.0/1,if=none", True),
        ("type=vhost-vdpa,vhostdev=/dev/vhost-vdpa-0,id=n", True),
        ("nvme,drive=d,serial=1", False),
        ('{"driver": "nvme", "drive": "d"}', False),
        ("virtio-net-pci,netdev=n", False),
        ("file=/images/no-vfio-here.img,if=none", False),
    ],
)
def test_devices_that_are_given_to_qemu_bypassing_libvirt_count_too(argument: str, *, refused: bool) -> None:
    commandline = (
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-device'/>"
        f"<qemu:arg value='{escape(argument)}'/></qemu:commandline></domain>"
    )
    xml = domain().replace(b"</domain>", commandline.encode())
    if refused:
        with pytest.raises(DomainRefused, match="<qemu:commandline> has"):
            apply(xml, pool="dm", may_pin=False)
    else:
        apply(xml, pool="dm", may_pin=False)


def test_memory_attached_to_a_guest_that_has_a_host_device_is_refused() -> None:
    live = domain(PCI.format("<alias name='hostdev0'/>"))
    memory = memory_of(DomainDocument(live), Device("memdimm0", "dimm", 32 * MIB, 0))
    free = {"dm": PoolFree("dm", "dmemfs", 2 * MIB, {"dm": {0: GIB}}, may_lock=False, may_pin=False)}
    with pytest.raises(DomainRefused, match="hostdev0 is passed through by VFIO"):
        plan_domain(memory, free, "dm")


def test_locked_memory_is_refused_for_what_it_is() -> None:
    xml = domain(backing="<memoryBacking><locked/></memoryBacking>")
    with pytest.raises(DomainRefused, match="cannot be locked: it has no struct pages"):
        apply(xml, pool="dm", may_lock=False, may_pin=False)
    with pytest.raises(DomainRefused, match="the host may swap"):
        apply(xml, pool="t", may_lock=False)


def test_a_domain_that_was_changed_after_apply_is_refused_when_it_starts() -> None:
    xml = domain(DISK.format("cache='none'"))
    free = {"dm": PoolFree("dm", "dmemfs", 2 * MIB, {"dm": {0: GIB}}, may_lock=False, may_pin=False)}
    with pytest.raises(DomainRefused, match="cache='none'"):
        plan_domain(read_domain(apply(xml, pool="dm")), free, "")
    assert plan_domain(read_domain(apply(domain(DISK.format("")), pool="dm")), free, "").total_bytes == 64 * MIB


@pytest.mark.parametrize(
    ("element", "pins"),
    [
        ("<iommufd enabled='yes'/>", True),
        ("<iommufd enabled='yes' fdgroup='a'/>", True),
        ("<iommufd enabled='no'/>", False),
    ],
)
def test_iommufd_for_the_whole_domain_pins_its_memory(element: str, pins: bool) -> None:
    found = [obstacle.what for obstacle in read_domain(domain(backing=element)).obstacles]
    assert ("<iommufd> is enabled, which pins all guest memory" in found) is pins


@pytest.mark.parametrize(
    ("cpu", "may"),
    [
        ("", False),
        ("<cpu mode='host-passthrough'/>", True),
        ("<cpu mode='host-model'/>", True),
        ("<cpu mode='maximum'/>", True),
        ("<cpu mode='host-model'><feature policy='disable' name='vmx'/></cpu>", False),
        ("<cpu mode='custom'><model>Skylake-Server</model></cpu>", False),
        ("<cpu><model>EPYC</model><feature policy='require' name='svm'/></cpu>", True),
        ("<cpu><model>EPYC</model><feature name='svm'/></cpu>", True),
    ],
)
def test_a_domain_may_run_guests_of_its_own_if_its_cpu_can(cpu: str, may: bool) -> None:
    assert may_run_guests(DomainDocument(domain(backing=cpu)).root) is may
