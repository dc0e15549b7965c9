# SPDX-License-Identifier: GPL-2.0-or-later
"""What read_domain takes from a domain XML, and what it refuses."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.domain_strategy import domains
from tests.rig.qemu_ram_ids import ARCHES, ask
from tests.unit.conftest import GOLDEN
from virt_dmem.domain_xml.elements import NAMESPACE
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.ram_ids import RAM_IDS
from virt_dmem.domain_xml.reader import is_managed, read_domain
from virt_dmem.domain_xml.requirements import require_whole_pages
from virt_dmem.errors import DomainRefused, DomainXmlInvalid
from virt_dmem.units import GIB, MIB

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


def domain(
    inside: str = "",
    *,
    memory: str = "<memory>1048576</memory>",
    machine: str = "arch='x86_64' machine='pc-q35-7.2'",
    head: str = "type='kvm'",
    cells: str = "",
    vcpu: str = "<vcpu>2</vcpu>",
) -> bytes:
    numa = f"<cpu><numa>{cells}</numa></cpu>" if cells else ""
    return (
        f"<domain {head}><name>vm</name><uuid>{UUID}</uuid>{memory}{vcpu}<os><type {machine}>hvm</type></os>"
        f"{numa}{inside}</domain>"
    ).encode()


def metadata(inside: str) -> str:
    return f"<metadata><dmem:memory xmlns:dmem='{NAMESPACE}'{inside}/></metadata>"


CELLS = "<cell id='0' memory='512' unit='MiB'/><cell id='1' memory='1' unit='GiB'/>"


# Sizes


@pytest.mark.parametrize(
    ("memory", "size_bytes"),
    [
        ("<memory>1048576</memory>", GIB),
        ("<memory unit='KiB'>1048576</memory>", GIB),
        ("<memory unit='k'>1048576</memory>", GIB),
        ("<memory unit='b'>1073741824</memory>", GIB),
        ("<memory unit='bytes'>1073741824</memory>", GIB),
        ("<memory unit='M'> 1024 </memory>", GIB),
        ("<memory unit='mib'>1024</memory>", GIB),
        ("<memory unit='G'>1</memory>", GIB),
        ("<memory unit='TiB'>1</memory>", 1024 * GIB),
        ("<memory unit='PiB'>1</memory>", 1024 * 1024 * GIB),
        ("<memory unit='GB'>1</memory>", 954 * MIB),  # 953.67, rounded up to MiB as libvirt does at start
        ("<memory unit='KB'>1</memory>", MIB),
        # What libvirt 9.0 gave QEMU for these two (virsh domxml-to-native).
        ("<memory unit='KiB'>500001</memory>", 512753664),
        ("<memory unit='MB'>200</memory>", 200278016),
    ],
)
def test_sizes_are_what_libvirt_gives_qemu(memory: str, size_bytes: int) -> None:
    assert read_domain(domain(memory=memory)).total_bytes == size_bytes


@pytest.mark.parametrize(
    "memory",
    [
        "", "<memory/>", "<memory>0</memory>", "<memory>-1</memory>", "<memory>1e9</memory>",
        "<memory>0x10</memory>",
        "<memory unit='XB'>1</memory>", "<memory unit='KiBs'>1</memory>", "<memory unit='Ki'>1</memory>",
        "<memory>\uff11</memory>", "<memory>1</memory><memory>1</memory>",
        f"<memory>{'9' * 5000}</memory>",
    ],
)  # fmt: skip
def test_unreadable_sizes_are_refused(memory: str) -> None:
    with pytest.raises(DomainXmlInvalid):
        read_domain(domain(memory=memory))


def test_ppc_guests_get_multiples_of_256_mib() -> None:
    ppc = "arch='ppc64le' machine='pseries-7.2'"
    memory = read_domain(domain(memory="<memory unit='MiB'>257</memory>", machine=ppc))
    assert memory.total_bytes == 512 * MIB


def test_memory_that_comes_with_an_nvdimm_is_not_boot_memory() -> None:
    nvdimm = "<devices><memory model='nvdimm'><target><size unit='MiB'>256</size></target></memory></devices>"
    assert read_domain(domain(nvdimm)).total_bytes == 768 * MIB


# Names of memory backends


@pytest.mark.parametrize(
    ("machine", "alias"),
    [
        ("arch='x86_64' machine='pc-i440fx-7.2'", "pc.ram"),
        ("arch='x86_64' machine='q35'", "pc.ram"),
        ("arch='i686' machine='isapc'", "pc.ram"),
        ("arch='x86_64' machine='pc-q35-rhel9.4.0'", "pc.ram"),
        ("arch='x86_64' machine='microvm'", "microvm.ram"),
        ("arch='aarch64' machine='virt-9.2'", "mach-virt.ram"),
        ("arch='armv7l' machine='virt'", "mach-virt.ram"),
        ("arch='ppc64le' machine='pseries-7.2'", "ppc_spapr.ram"),
        ("arch='s390x' machine='s390-ccw-virtio-7.2'", "s390.ram"),
        ("arch='riscv64' machine='virt'", "riscv_virt_board.ram"),
        ("arch='loongarch64' machine='virt'", "loongarch.ram"),
        ("arch='m68k' machine='virt-7.2'", "m68k_virt.ram"),
        ("arch='sparc' machine='SS-5'", "sun4m.ram"),
        ("arch='armv6l' machine='raspi0'", "ram"),
        ("arch='mipsel' machine='malta'", "mips_malta.ram"),
    ],
)
def test_boot_memory_is_named_after_the_machine(machine: str, alias: str) -> None:
    (cell,) = read_domain(domain(machine=machine)).cells
    assert (cell.alias, cell.cell) == (alias, None)


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


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        ("arch='sparc64' machine='sun4u'", "makes no memory backend"),
        ("arch='x86_64' machine='x-remote'", "makes no memory backend"),
        ("arch='x86_64' machine='pc2'", "is not known"),
        ("arch='arm64' machine='pc'", "is not known"),
    ],
)
def test_a_machine_without_a_name_is_refused_unless_it_has_cells(machine: str, why: str) -> None:
    with pytest.raises(DomainRefused, match=why):
        read_domain(domain(machine=machine))
    assert read_domain(domain(machine=machine, cells=CELLS)).cells[0].alias == "ram-node0"


def test_cells_are_named_by_their_ids() -> None:
    memory = read_domain(domain(cells="<cell id='1' memory='2048'/><cell id='0' memory='1' unit='GiB'/>"))
    assert memory.cells == (Cell("ram-node0", 0, GIB, (), ""), Cell("ram-node1", 1, 2 * MIB, (), ""))
    assert memory.total_bytes == GIB + 2 * MIB


@pytest.mark.parametrize("ids", [(0, 0), (1, 2), (0, 2)])
def test_cells_that_do_not_count_up_are_refused(ids: tuple[int, int]) -> None:
    with pytest.raises(DomainXmlInvalid):
        read_domain(domain(cells="".join(f"<cell id='{number}' memory='1024'/>" for number in ids)))


# Host nodes


def test_the_nodes_of_a_cell_win_over_those_of_the_domain() -> None:
    tune = "<memory mode='interleave' nodeset='0-3,^2'/><memnode cellid='1' mode='preferred' nodeset='2'/>"
    first, second = read_domain(domain(f"<numatune>{tune}</numatune>", cells=CELLS)).cells
    assert (first.host_nodes, first.policy) == ((0, 1, 3), "interleave")
    assert (second.host_nodes, second.policy) == ((2,), "preferred")


def test_the_mode_is_strict_where_none_is_given() -> None:
    (cell,) = read_domain(domain("<numatune><memory nodeset='1'/></numatune>")).cells
    assert (cell.host_nodes, cell.policy) == ((1,), "strict")


@pytest.mark.parametrize("nodeset", ["x", "1-", "3-1", "-1", "0-999999999", "1024", "0,^", "0;1", "^0-2"])
def test_unreadable_nodesets_are_refused(nodeset: str) -> None:
    with pytest.raises(DomainXmlInvalid):
        read_domain(domain(f"<numatune><memory nodeset='{nodeset}'/></numatune>"))


@pytest.mark.parametrize(
    ("numatune", "vcpu"),
    [
        ("<numatune><memory mode='strict' placement='auto'/></numatune>", "<vcpu>2</vcpu>"),
        ("", "<vcpu placement='auto'>2</vcpu>"),
        ("<numatune><memory mode='strict'/></numatune>", "<vcpu placement='auto'>2</vcpu>"),
    ],
)
def test_a_domain_whose_nodes_numad_would_choose_is_not_applied(numatune: str, vcpu: str) -> None:
    asks = metadata("") + APPLIED
    assert not read_domain(domain(asks + numatune, vcpu=vcpu)).applied
    assert read_domain(domain(asks)).applied


def test_nodes_that_are_named_are_taken_whatever_the_vcpus_do() -> None:
    tune = "<numatune><memory mode='strict' nodeset='0'/></numatune>"
    assert read_domain(domain(tune, vcpu="<vcpu placement='auto'>2</vcpu>")).cells[0].host_nodes == (0,)


# Identity, request, labels


def test_a_domain_without_our_metadata_is_not_managed() -> None:
    for xml in (domain(), domain("<metadata/>"), domain(f"<description>{NAMESPACE}</description>")):
        assert not is_managed(xml)
        memory = read_domain(xml)
        assert (memory.managed, memory.applied, memory.pool) == (False, False, "")


def test_a_request_below_something_else_is_none() -> None:
    assert not is_managed(domain(f"<metadata><a:b xmlns:a='http://x'>{metadata('')}</a:b></metadata>"))


def test_the_request_names_the_pool() -> None:
    memory = read_domain(domain(metadata(" pool='big'")))
    assert (memory.managed, memory.applied, memory.pool) == (True, False, "big")
    assert (memory.uuid, memory.name, memory.domain_id) == (UUID, "vm", None)


@pytest.mark.parametrize("pool", ["../../etc", ".hidden", "a/b", "a b", "-rf", "x" * 65])
def test_a_request_with_an_impossible_pool_is_refused(pool: str) -> None:
    with pytest.raises(DomainRefused, match="pool"):
        read_domain(domain(metadata(f" pool='{pool}'")))


APPLIED = "<memoryBacking><source type='file'/><access mode='shared'/><allocation mode='ondemand'/></memoryBacking>"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'file'", "'memfd'"), ("'shared'", "'private'"), ("'ondemand'", "'immediate'"),
        ("<source type='file'/>", ""), ("<access mode='shared'/>", ""), ("<allocation mode='ondemand'/>", ""),
        ("<source", "<hugepages/><source"),
    ],
)  # fmt: skip
def test_only_shared_files_without_prefaulting_count_as_applied(old: str, new: str) -> None:
    assert read_domain(domain(metadata("") + APPLIED)).applied
    assert not read_domain(domain(metadata("") + APPLIED.replace(old, new))).applied


def test_a_cell_with_private_memory_is_refused() -> None:
    for access in ("shared", "private"):
        xml = domain(metadata("") + APPLIED, cells=f"<cell id='0' memory='1' unit='GiB' memAccess='{access}'/>")
        if access == "shared":
            assert read_domain(xml).applied
        else:
            with pytest.raises(DomainRefused, match=r"Cell 0 .*private"):
                read_domain(xml)


@pytest.mark.parametrize("locked", ["", "<locked/>"])
def test_locked_memory_is_seen(locked: str) -> None:
    assert read_domain(domain(f"<memoryBacking>{locked}</memoryBacking>")).locked is bool(locked)


def test_the_labels_of_a_starting_domain_are_read() -> None:
    labels = """
      <seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-x</label>
        <imagelabel>libvirt-x</imagelabel></seclabel>
      <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+105</label>
        <imagelabel>+64055:+105</imagelabel></seclabel>
      <seclabel type='dynamic' model='selinux' relabel='yes'><label>a:b:svirt_t:s0:c1,c2</label>
        <imagelabel>a:b:svirt_image_t:s0:c1,c2</imagelabel></seclabel>"""
    memory = read_domain(domain(labels, head="type='qemu' id='3'"))
    assert (memory.dac_user, memory.dac_group) == ("+64055", "+105")
    assert memory.selinux_imagelabel == "a:b:svirt_image_t:s0:c1,c2"
    assert memory.domain_id == 3


@pytest.mark.parametrize(
    ("label", "user", "group"),
    [
        (
            "<seclabel type='static' model='dac' relabel='no'><label>libvirt-qemu:kvm</label></seclabel>",
            "libvirt-qemu",
            "kvm",
        ),
        ("<seclabel type='none' model='dac'/>", None, None),
        ("<seclabel type='static' model='dac'><label>nobody</label></seclabel>", None, None),
        ("<seclabel type='none'/>", None, None),
        ("", None, None),
    ],
)
def test_dac_labels_may_be_names_or_missing(label: str, user: str | None, group: str | None) -> None:
    memory = read_domain(domain(label))
    assert (memory.dac_user, memory.dac_group, memory.selinux_imagelabel) == (user, group, None)


def test_the_uuid_comes_in_its_canonical_form() -> None:
    assert read_domain(domain().replace(UUID.encode(), UUID.upper().replace("-", "").encode())).uuid == UUID


# Refusals


@pytest.mark.parametrize("head", ["type='lxc'", "type='test'", "type='xen'", ""])
def test_other_hypervisors_are_refused(head: str) -> None:
    with pytest.raises(DomainRefused, match="type"):
        read_domain(domain(head=head))


@pytest.mark.parametrize("kind", ["sev", "sev-snp", "tdx", "s390-pv"])
def test_protected_memory_is_refused(kind: str) -> None:
    with pytest.raises(DomainRefused, match=kind):
        read_domain(domain(f"<launchSecurity type='{kind}'/>"))


# Memory devices: what libvirt 9.0 calls them is tried by tests/libvirt/test_memory_devices.py


def device(model: str, inside: str = "", *, size: int = 128, node: int = 0, source: str = "") -> str:
    target = f"<target><size unit='MiB'>{size}</size><node>{node}</node></target>"
    return f"<memory model='{model}'>{source}{target}{inside}</memory>"


def devices(*each: str) -> tuple[Cell, ...]:
    """The backends of these devices, in a guest with two cells."""
    return read_domain(domain(f"<devices>{''.join(each)}</devices>", cells=CELLS)).cells[2:]


def test_a_dimm_is_named_by_its_slot_and_virtio_mem_in_its_order() -> None:
    slot = "<address type='dimm' slot='{}'/>"
    found = devices(
        device("virtio-mem"),
        device("dimm", slot.format(3)),
        device("virtio-mem", "<alias name='ua-elastic'/>"),
        device("nvdimm", slot.format(0)),
        device("dimm", slot.format(1)),
        device("virtio-mem", node=1),
    )
    assert [cell.alias for cell in found] == ["virtiomem0", "dimm3", "ua-elastic", "dimm1", "virtiomem1"]
    assert [cell.cell for cell in found] == [0, 0, 0, 0, 1]


def test_dimms_without_slots_get_those_that_libvirt_will_give_them() -> None:
    found = devices(
        device("nvdimm"), device("dimm"), device("dimm", "<address type='dimm' slot='2'/>"), device("dimm")
    )
    assert [cell.alias for cell in found] == ["dimm1", "dimm2", "dimm3"]


def test_a_starting_domain_says_the_aliases_itself() -> None:
    found = devices(device("dimm", "<alias name='dimm7'/>"), device("virtio-mem", "<alias name='virtiomem3'/>"))
    assert [cell.alias for cell in found] == ["dimm7", "virtiomem3"]


def test_devices_with_a_file_of_their_own_are_not_ours() -> None:
    assert devices(device("nvdimm"), device("virtio-pmem"), device("sgx-epc")) == ()


def test_a_device_is_as_large_as_libvirt_makes_it_and_virtio_mem_as_all_it_may_plug() -> None:
    mem = device("virtio-mem").replace("</target>", "<block>2048</block><requested>0</requested></target>")
    (cell,) = devices(mem)
    assert (cell.size_bytes, cell.block_bytes) == (128 * MIB, 2 * MIB)
    odd = device("dimm").replace("<size unit='MiB'>128<", "<size unit='KiB'>1025<")
    assert devices(odd)[0].size_bytes == 2 * MIB
    ppc = domain(f"<devices>{device('dimm')}</devices>", cells=CELLS, machine="arch='ppc64' machine='pseries'")
    assert read_domain(ppc).cells[2].size_bytes == 256 * MIB


def test_the_nodes_of_a_device_are_its_own_or_those_of_its_cell() -> None:
    tune = (
        "<numatune><memory mode='interleave' nodeset='0-1'/><memnode cellid='1' mode='preferred' nodeset='2'/>"
        "</numatune>"
    )
    own = device("dimm", node=1, source="<source><nodemask>3</nodemask></source>")
    inside = f"<devices>{device('dimm')}{device('dimm', node=1)}{own}</devices>"
    found = read_domain(domain(tune + inside, cells=CELLS)).cells[2:]
    expected = [((0, 1), "interleave"), ((2,), "preferred"), ((3,), "preferred")]
    assert [(cell.host_nodes, cell.policy) for cell in found] == expected
    assert devices(own)[0].policy == "strict"


@pytest.mark.parametrize("alias", ["../x", "", "a b", "a/b", "ä", "x" * 200])
def test_an_alias_that_is_no_file_name_is_refused(alias: str) -> None:
    with pytest.raises(DomainXmlInvalid, match="alias"):
        devices(device("dimm", f"<alias name='{alias}'/>"))


def test_two_devices_with_one_name_are_refused() -> None:
    with pytest.raises(DomainXmlInvalid, match="alias or slot"):
        devices(device("dimm", "<alias name='dimm1'/>"), device("dimm", "<address type='dimm' slot='1'/>"))


def test_a_device_without_a_size_is_refused() -> None:
    with pytest.raises(DomainXmlInvalid, match="no memory"):
        devices("<memory model='dimm'/>")


def test_blocks_smaller_than_a_page_are_refused() -> None:
    mem = device("virtio-mem", size=1024).replace("</target>", "<block>2048</block></target>")
    cells = read_domain(domain(f"<devices>{mem}</devices>", cells=CELLS)).cells[2:]
    require_whole_pages("vm", cells, 2 * MIB)
    with pytest.raises(DomainRefused, match=r"virtiomem0 .*blocks of 2 MiB.*1024 MiB"):
        require_whole_pages("vm", cells, GIB)


def test_numbers_and_names_are_read_around_comments() -> None:
    xml = domain(memory="<memory>10485<!-- a comment -->76</memory>").replace(b">vm<", b">v<?x?>m<")
    assert (read_domain(xml).total_bytes, read_domain(xml).name) == (GIB, "vm")


@pytest.mark.parametrize(
    "xml",
    [
        b"<domainsnapshot/>",
        b"<domstatus><domain type='kvm'/></domstatus>",
        b"<d:domain xmlns:d='http://x' type='kvm'/>",
        domain().replace(b"<name>vm</name>", b""),
        domain().replace(b"vm<", b"../vm<"),
        domain().replace(b"vm<", b"v\nm<"),
        domain().replace(UUID.encode(), b"../../x"),
        domain().replace(b"<uuid>", b"<x>").replace(b"</uuid>", b"</x>"),
        domain("<memoryBacking/><memoryBacking/>"),
        domain(metadata("") + metadata("")),
        domain(head="type='kvm' id='x'"),
        domain(machine=""),
        domain(machine="arch='x86_64'"),
        domain("<numatune><memory mode='x'/></numatune>"),
    ],
)
def test_what_libvirt_never_prints_is_refused(xml: bytes) -> None:
    with pytest.raises(DomainXmlInvalid) as caught:
        read_domain(xml)
    assert caught.value.hint


@given(xml=domains(), cut=st.integers(0, 4000), noise=st.binary(max_size=8))
def test_damaged_domains_are_read_or_refused_but_never_crash(xml: bytes, cut: int, noise: bytes) -> None:
    try:
        read_domain(xml[:cut] + noise + xml[cut + len(noise) :])
    except DomainRefused as refusal:
        assert refusal.message.endswith(".")
        assert refusal.hint


def test_golden_domains_are_read() -> None:
    for file in GOLDEN.glob("*-in.xml"):
        if b"<uuid>" in file.read_bytes():  # without, libvirt has never seen it
            boot = [cell for cell in read_domain(file.read_bytes()).cells if "ram" in cell.alias]
            assert sum(cell.size_bytes for cell in boot) == 4 * GIB
