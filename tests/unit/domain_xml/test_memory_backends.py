# SPDX-License-Identifier: GPL-2.0-or-later
"""Names, sizes and host nodes of a domain's memory backends.

What libvirt 9.0 calls memory devices is tried by tests/libvirt/test_memory_devices.py.
"""

from __future__ import annotations

import pytest

from tests.rig.domain_documents import CELLS, device, domain
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.errors import DomainRefused, DomainXmlInvalid
from virt_dmem.units import GIB, MIB


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
