# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that a domain brings along in arguments of QEMU is foreseen, and what is RAM of a QEMU is read."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

import pytest

from virt_dmem.domain_xml.qemu.guest_ram import RamUse, ram_uses
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.errors import DomainRefused

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
OBJECT = "memory-backend-memfd,id=mem,size=64M,share=on"
IVSHMEM = ("-object", OBJECT, "-device", "ivshmem-plain,memdev=mem")


def domain(arguments: Sequence[str] = (), more: str = "", prefix: str = "qemu") -> bytes:
    given = "".join(f"<{prefix}:arg value={quoteattr(argument)}/>" for argument in arguments)
    return (
        f"<domain type='kvm' xmlns:{prefix}='{QEMU}'><name>g</name><uuid>{UUID}</uuid><memory>65536</memory>"
        "<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os><devices/>"
        f"<{prefix}:commandline>{given}</{prefix}:commandline>{more}</domain>"
    ).encode()


@pytest.mark.parametrize(
    "arguments",
    [
        ("-object", OBJECT, "-machine", "memory-backend=mem"),
        ("--object", OBJECT, "--machine", "memory-backend=mem"),
        ("-M", "pc,accel=kvm,memory-backend=mem"),
        ("-machine", "memory-backend="),
        ("-machine", "memory.size=2G"),
        ("-object", '{"qom-type":"memory-backend-ram","id":"mem","size":67108864}'),
        ("-object", "{'qom-type':'memory-backend-file','id':'mem'}"),
        ("-object", "qom-type=memory-backend-ram,id=mem"),
        ("-object", "memory-backend-shm,id=mem,size=64M"),
        ("-object", "sev-snp-guest,id=sev0", "-machine", "confidential-guest-support=sev0"),
        ("-M", "q35,confidential_guest_support=tdx0"),
        ("--machine", "memory-encryption=sev0"),
        ("-m", "slots=2,maxmem=4G,size=1G"),
        ("-object", OBJECT),
        ("-numa", "node,nodeid=0,memdev=mem"),
        ("--numa", "node,memdev=mem"),
        ("-m", "128"),
        ("-m", "size=128M"),
        ("-mem-path", "/dev/hugepages"),
        ("-mem-prealloc", "-mem-path", "/dev/hugepages"),
        ("-readconfig", "/etc/qemu/memory.cfg"),
        ("-set", "object.pc.ram.mem-path=/tmp"),
        ("-set", "device.d.memdev=mem"),
        ("-global", "pc-dimm.memdev=mem"),
        ("-global", "driver=virtio-mem-pci,property=memdev,value=mem"),
        ("-device", "pc-dimm,id=d,memdev=mem"),
        ("-device", "id=d,driver=virtio-mem-pci,memdev=mem"),
        ("-device", '{"driver":"pc-dimm","memdev":"mem"}'),
        (*IVSHMEM, "-object", "memory-backend-ram,id=mem2"),
    ],
)
@pytest.mark.parametrize("prefix", ["qemu", "q"])
def test_a_domain_with_memory_of_its_own_is_refused_with_the_argument(
    arguments: tuple[str, ...], prefix: str
) -> None:
    with pytest.raises(DomainRefused, match="would not be that of a pool") as refused:
        apply(domain(arguments, prefix=prefix))
    assert arguments[-1].partition("=")[0] in str(refused.value)
    with pytest.raises(DomainRefused):
        read_domain(domain(arguments, prefix=prefix))


@pytest.mark.parametrize(
    "properties",
    [
        "<qemu:device alias='dimm0'><qemu:frontend><qemu:property name='memdev' type='string' value='m'/>"
        "</qemu:frontend></qemu:device>",
        "<qemu:device alias='ua-x'><qemu:backend><qemu:property name='share' type='bool' value='false'/>"
        "</qemu:backend></qemu:device>",
    ],
)
def test_an_override_of_memory_is_refused(properties: str) -> None:
    with pytest.raises(DomainRefused, match="<qemu:override> sets"):
        apply(domain(more=f"<qemu:override>{properties}</qemu:override>"))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        IVSHMEM,
        ("-object", '{"qom-type":"memory-backend-ram","id":"m"}', "-device", '{"driver":"ivshmem","memdev":"m"}'),
        ("-object", "memory-backend-file,id=n,mem-path=/x", "-device", "nvdimm,memdev=n,id=nv"),
        ("-machine", "pc,memory-backend=pc.ram"),
        ("-machine", "hpet=off"),
        ("-mem-prealloc",),
        ("-m", "slots=4,maxmem=8G"),
        ("-numa", "dist,src=0,dst=1,val=20"),
        ("-set", "device.net0.speed=1000"),
        ("-global", "ICH9-LPC.disable_s3=1"),
        ("-object", "rng-random,id=r,filename=/dev/urandom"),
        ("-device", "isa-applesmc,osk=memdev is a word"),
    ],
)  # fmt: skip
def test_other_arguments_are_none_of_our_business(arguments: tuple[str, ...]) -> None:
    assert b"dmem:memory" in apply(domain(arguments))


def test_a_password_in_an_argument_is_not_printed() -> None:
    with pytest.raises(DomainRefused) as refused:
        apply(domain(("-set", "object.secret0.data=letmein")))
    assert "letmein" not in str(refused.value)


def test_the_last_machine_option_counts_and_nodes_replace_it() -> None:
    libvirts = ["/usr/bin/qemu", "-machine", "pc,memory-backend=pc.ram", "-m", "64"]
    assert ram_uses(libvirts) == [RamUse("the machine", "pc.ram")]
    assert ram_uses([*libvirts, "-M", "memory-backend=mem"]) == [RamUse("the machine", "mem")]
    assert ram_uses(["-machine", "pc", "-numa", "node,memdev=ram-node0"]) == [RamUse("a NUMA node", "ram-node0")]
    assert ram_uses(["-machine", "pc", "-m", "64"]) == [RamUse("the machine", "")]
    dimm = '{"driver":"pc-dimm","id":"dimm0","memdev":"memdimm0"}'
    assert ram_uses([*libvirts, "-device", dimm])[-1] == RamUse("memory device dimm0", "memdimm0")
