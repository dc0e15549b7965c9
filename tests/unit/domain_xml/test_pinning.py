# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a domain cannot work on memory without struct pages, and who says so."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec
import pytest

from tests.rig.fake_tree import GIB, MIB
from virt_dmem.allocation.plan import PoolFree, plan_domain
from virt_dmem.cli.main import main
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.devices import Device, memory_of
from virt_dmem.domain_xml.reader import DomainDocument, read_domain
from virt_dmem.domain_xml.rewrite import apply, unapply
from virt_dmem.domains import migration
from virt_dmem.errors import DomainRefused, ExitStatus
from virt_dmem.monitoring.checks import dmemfs
from virt_dmem.pools.record import NodeShare, PoolRecord

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
    ("devices", "what", "mend"),
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
        (PCI.format("<driver name='vfio'/>"), "by VFIO, which keeps no hold", "Remove"),
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
def test_what_pins_memory_is_refused_with_the_mend(devices: str, what: str, mend: str) -> None:
    xml = domain(devices)
    with pytest.raises(DomainRefused) as caught:
        apply(xml, pool="dm", may_pin=False)
    assert "'dm', whose memory has no struct pages" in caught.value.message
    assert what in caught.value.message
    assert mend in caught.value.hint
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
def test_devices_that_are_given_to_qemu_past_libvirt_count_too(argument: str, *, refused: bool) -> None:
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


def test_a_domain_with_a_host_device_does_not_come_in_to_memory_that_vfio_keeps_no_hold_on(tmp_path: Path) -> None:
    config = msgspec.convert({"daemon": {"state_dir": str(tmp_path)}, "libvirt": {"incoming": "refuse"}}, Config)
    (tmp_path / "pools").mkdir()
    record = PoolRecord("dm", "dmemfs", 2 * MIB, "/none/dm", {0: NodeShare(GIB)}, state="ready")
    (tmp_path / "pools/dm.json").write_bytes(msgspec.json.encode(record))
    with pytest.raises(DomainRefused, match="is passed through by VFIO"):
        migration.adapt(config, apply(domain(PCI.format("")), pool="dm"))


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


def test_check_finds_domains_that_cannot_work() -> None:
    record = PoolRecord("dm", "dmemfs", 2 * MIB, "/none/dm", {0: NodeShare(GIB)})
    other = PoolRecord("hp", "hugetlbfs", 2 * MIB, "/none/hp", {0: NodeShare(GIB)})
    memory = read_domain(domain(DISK.format("cache='none'")))
    (refusal,) = dmemfs.impossible([(memory, record), (memory, other), (read_domain(domain()), record)])
    assert "'g' cannot work on pool 'dm'" in refusal.message


def rewrite(monkeypatch: pytest.MonkeyPatch, config: Path, xml: bytes, pool: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(xml)))
    return main(["rewrite", "--config", str(config), "--pool", pool])


def test_the_filter_knows_pools_whose_records_it_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    config = tmp_path / "virt-dmem.toml"
    config.write_text(f'[daemon]\nstate_dir = "{tmp_path}"\n')
    (tmp_path / "pools").mkdir()
    for name, backend in (("dm", "dmemfs"), ("hp", "hugetlbfs")):
        record = PoolRecord(name, backend, 2 * MIB, f"/none/{name}", {0: NodeShare(GIB)}, state="ready")
        (tmp_path / f"pools/{name}.json").write_bytes(msgspec.json.encode(record))
    xml = domain(DISK.format("cache='none'"), "<memoryBacking><locked/></memoryBacking>")
    assert rewrite(monkeypatch, config, xml, "dm") == ExitStatus.FAILED
    assert capfdbinary.readouterr().out == b""
    assert rewrite(monkeypatch, config, xml, "hp") == ExitStatus.DONE
    assert capfdbinary.readouterr().err == b""
    assert rewrite(monkeypatch, config, xml, "elsewhere") == ExitStatus.DONE
    said = capfdbinary.readouterr()
    assert b"its memory is locked; disk vda has cache='none'" in said.err
    assert b"elsewhere" in said.out
