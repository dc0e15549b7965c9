# SPDX-License-Identifier: GPL-2.0-or-later
"""What read_domain takes from a domain XML, and what it refuses."""

from __future__ import annotations

import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.conftest import GOLDEN
from tests.unit.domain_strategy import domains
from virt_dmem.domain_xml import NAMESPACE, Cell, is_managed, read_domain
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
    ],
)
def test_boot_memory_is_named_after_the_machine(machine: str, alias: str) -> None:
    (cell,) = read_domain(domain(machine=machine)).cells
    assert (cell.alias, cell.cell) == (alias, None)


def test_qemu_names_the_boot_memory_of_x86_machines_as_we_do() -> None:
    commands = "".join(json.dumps({"execute": name}) for name in ("qmp_capabilities", "query-machines", "quit"))
    qemu = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    done = subprocess.run(qemu, input=commands, capture_output=True, text=True, timeout=60, check=True)
    answers = [json.loads(line).get("return") for line in done.stdout.splitlines()]
    machines = next(answer for answer in answers if isinstance(answer, list))
    checked = 0
    for machine in machines:
        if machine["name"].startswith(("pc", "isapc", "microvm")):
            read = read_domain(domain(machine=f"arch='x86_64' machine='{machine['name']}'"))
            assert read.cells[0].alias == machine["default-ram-id"]
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(
    "machine", ["arch='sparc' machine='SS-5'", "arch='x86_64' machine='x-remote'", "arch='arm64' machine='pc'"]
)
def test_an_unknown_machine_is_refused_unless_it_has_cells(machine: str) -> None:
    with pytest.raises(DomainRefused, match="not known"):
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
def test_nodes_that_numad_chooses_are_refused(numatune: str, vcpu: str) -> None:
    with pytest.raises(DomainRefused, match="numad"):
        read_domain(domain(numatune, vcpu=vcpu))


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


def test_a_cell_with_private_memory_is_not_applied() -> None:
    for access, applied in (("shared", True), ("private", False)):
        cells = f"<cell id='0' memory='1' unit='GiB' memAccess='{access}'/>"
        assert read_domain(domain(metadata("") + APPLIED, cells=cells)).applied is applied


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


@pytest.mark.parametrize("model", ["dimm", "virtio-mem"])
def test_memory_devices_that_would_need_a_pool_are_refused_for_now(model: str) -> None:
    with pytest.raises(DomainRefused, match=model):
        read_domain(domain(f"<devices><memory model='{model}'/></devices>"))


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
        assert read_domain(file.read_bytes()).total_bytes == 4 * GIB
