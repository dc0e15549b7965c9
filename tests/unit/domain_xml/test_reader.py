# SPDX-License-Identifier: GPL-2.0-or-later
"""What read_domain takes from a domain XML, and what it refuses."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from tests.rig.domain_documents import CELLS, UUID, domain, metadata
from tests.rig.domain_strategy import domains
from tests.rig.golden import GOLDEN
from tests.rig.qemu_ram_ids import ARCHES
from virt_dmem.domain_xml import reader
from virt_dmem.domain_xml.elements import NAMESPACE, parse_domain
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainDocument, is_managed, read_domain
from virt_dmem.errors import DomainRefused, DomainXmlInvalid
from virt_dmem.units import GIB

QEMUS = [name for name in sorted(ARCHES) if shutil.which(f"qemu-system-{name}")]


def test_a_domain_without_our_metadata_is_not_managed() -> None:
    for xml in (domain(), domain("<metadata/>"), domain(f"<description>{NAMESPACE}</description>")):
        assert not is_managed(xml)
        memory = read_domain(xml)
        assert (memory.managed, memory.applied, memory.pool) == (False, False, "")


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


def devices(*each: str) -> tuple[Cell, ...]:
    """The backends of these devices, in a guest with two cells."""
    return read_domain(domain(f"<devices>{''.join(each)}</devices>", cells=CELLS)).cells[2:]


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
        domain(metadata() + metadata()),
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
            larger = {"hand-written-aarch64-uefi-in.xml": 8, "hand-written-aarch64-numa-in.xml": 16}
            assert sum(cell.size_bytes for cell in boot) == larger.get(file.name, 4) * GIB


def test_a_document_is_parsed_once_for_all_that_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def parse(xml: bytes) -> etree._Element:
        parsed.append(xml)
        return parse_domain(xml)

    monkeypatch.setattr(reader, "parse_domain", parse)
    document = DomainDocument(domain(metadata(" pool='p'")))
    assert document.is_managed()
    assert (document.memory().pool, document.memory().uuid, document.memory().name) == ("p", UUID, "vm")
    assert len(parsed) == 1
    assert "root" not in vars(document), "the tree is freed once the memory is known"


def test_a_domain_that_asks_for_nothing_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(reader, "parse_domain")
    assert not DomainDocument(domain()).is_managed()


def test_the_uuid_is_read_of_a_domain_whose_memory_cannot_come_from_a_pool() -> None:
    assert DomainDocument(domain(metadata(), head="type='xen'")).uuid() == UUID
