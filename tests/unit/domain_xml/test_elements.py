# SPDX-License-Identifier: GPL-2.0-or-later
"""Which domains ask for pool memory, have it, or cannot have it."""

from __future__ import annotations

import pytest

from tests.rig.domain_documents import APPLIED, UUID, domain, metadata
from virt_dmem.domain_xml.elements import NAMESPACE
from virt_dmem.domain_xml.monitor import socket_of
from virt_dmem.domain_xml.reader import DomainDocument, is_managed, read_domain
from virt_dmem.errors import DomainRefused


def test_an_element_that_is_no_request_is_known_as_a_mistake() -> None:
    misspelt = domain(metadata().replace("memory", "memroy"))
    refusal = DomainDocument(misspelt).unknown_request()
    assert refusal is not None
    assert "have <memroy> of virt-dmem" in refusal.message
    assert not is_managed(misspelt)
    for right in (domain(), domain(metadata()), domain(f"<description>{NAMESPACE}</description>")):
        assert DomainDocument(right).unknown_request() is None


def test_a_request_in_a_wrong_namespace_is_known_as_a_mistake() -> None:
    for wrong in (
        NAMESPACE.replace("1.0", "1"), NAMESPACE.replace("https", "http"), NAMESPACE + "/", NAMESPACE.upper(),
        "https://virt-dmem.dev", NAMESPACE.replace(".dev", ".org"), "urn:virt-dmem", "urn:virt_dmem", "urn:dmem",
    ):  # fmt: skip
        refusal = DomainDocument(domain(metadata().replace(NAMESPACE, wrong))).unknown_request()
        assert refusal is not None
        assert f"<memory> of the namespace {wrong!r}" in refusal.message
        assert f"'{NAMESPACE}'" in refusal.hint


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        (" pol='big'", "the attribute 'pol'"),
        (" pool='big' size='1G'", "the attribute 'size'"),
        (" Pool='big'", "the attribute 'Pool'"),
        (f" xmlns:q='{NAMESPACE}' q:pool='big'", "the attribute 'pool' in virt-dmem's namespace"),
    ],
)
def test_a_request_with_an_unknown_attribute_is_refused_and_not_served_from_the_default_pool(
    wish: str, named: str
) -> None:
    with pytest.raises(DomainRefused, match=f"has {named}, which"):
        read_domain(domain(metadata(wish)))


@pytest.mark.parametrize("content", ["big", " <!-- x -->\n big ", "<dmem:replaced/>big"])
def test_a_request_with_text_is_refused_and_not_served_from_the_default_pool(content: str) -> None:
    asks = metadata().replace("/>", f">{content}</dmem:memory>", 1)
    with pytest.raises(DomainRefused, match="has the text 'big', which"):
        read_domain(domain(asks))


def test_metadata_of_others_are_not_taken_for_a_request() -> None:
    for others in ("urn:dmemory", "urn:admem", "http://example.com/dmemfs"):
        assert DomainDocument(domain(metadata().replace(NAMESPACE, others))).unknown_request() is None


def test_a_request_with_an_unknown_element_is_refused_and_others_attributes_are_theirs() -> None:
    empty = metadata()
    filled = empty.replace("/>", "><{0}>big</{0}></dmem:memory>", 1)
    for name in ("dmem:pool", "pool"):
        with pytest.raises(DomainRefused, match="has the element <pool>, which"):
            read_domain(domain(filled.format(name)))
    assert read_domain(domain(metadata(" xmlns:o='urn:other' o:note='x' pool='big'"))).pool == "big"


@pytest.mark.parametrize(
    ("numatune", "vcpu"),
    [
        ("<numatune><memory mode='strict' placement='auto'/></numatune>", "<vcpu>2</vcpu>"),
        ("", "<vcpu placement='auto'>2</vcpu>"),
        ("<numatune><memory mode='strict'/></numatune>", "<vcpu placement='auto'>2</vcpu>"),
    ],
)
def test_a_domain_whose_nodes_numad_would_choose_is_not_applied(numatune: str, vcpu: str) -> None:
    asks = metadata() + APPLIED
    assert not read_domain(domain(asks + numatune, vcpu=vcpu)).applied
    assert read_domain(domain(asks)).applied


def test_nodes_that_are_named_are_taken_whatever_the_vcpus_do() -> None:
    tune = "<numatune><memory mode='strict' nodeset='0'/></numatune>"
    assert read_domain(domain(tune, vcpu="<vcpu placement='auto'>2</vcpu>")).cells[0].host_nodes == (0,)


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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'file'", "'memfd'"), ("'shared'", "'private'"), ("'ondemand'", "'immediate'"),
        ("<source type='file'/>", ""), ("<access mode='shared'/>", ""), ("<allocation mode='ondemand'/>", ""),
        ("<source", "<hugepages/><source"),
    ],
)  # fmt: skip
def test_only_shared_files_without_prefaulting_count_as_applied(old: str, new: str) -> None:
    assert read_domain(domain(metadata() + APPLIED)).applied
    assert not read_domain(domain(metadata() + APPLIED.replace(old, new))).applied


@pytest.mark.parametrize(
    ("old", "new", "lacks"),
    [
        ("", "", ""),
        (APPLIED, "", "is not rewritten"),
        ("'shared'", "'private'", "has another <memoryBacking> now than it was rewritten with"),
        (f"libvirt-{UUID}", "libvirt-00000000-1111-2222-3333-444444444444",
         "was rewritten for another domain (00000000-1111-2222-3333-444444444444), from which it was copied"),
        ("<vcpu>2</vcpu>", "<vcpu placement='auto'>2</vcpu>", "leaves the choice of host nodes to numad"),
    ],
)  # fmt: skip
def test_what_a_domain_lacks_is_said(old: str, new: str, lacks: str) -> None:
    record = "" if old == APPLIED else "<d:replaced/>"
    asks = f"<metadata><d:memory xmlns:d='{NAMESPACE}'>{record}</d:memory></metadata>"
    xml = domain(asks + APPLIED, vcpu="<vcpu>2</vcpu>").decode()
    arguments = "".join(
        f"<q:arg value='{value}'/>"
        for value in ("-chardev", f"socket,id=virt-dmem,path={socket_of(UUID)},server=on,wait=off", "-mon",
                      "chardev=virt-dmem,mode=control")
    )  # fmt: skip
    arguments = f"<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>{arguments}</q:commandline>"
    memory = read_domain(xml.replace("</domain>", f"{arguments}</domain>").replace(old, new).encode())
    assert (memory.lacks, memory.applied) == (lacks, not lacks)


def test_a_cell_with_private_memory_is_refused() -> None:
    for access in ("shared", "private"):
        xml = domain(metadata() + APPLIED, cells=f"<cell id='0' memory='1' unit='GiB' memAccess='{access}'/>")
        if access == "shared":
            assert read_domain(xml).applied
        else:
            with pytest.raises(DomainRefused, match=r"Cell 0 .*private"):
                read_domain(xml)


@pytest.mark.parametrize("locked", ["", "<locked/>"])
def test_locked_memory_is_seen(locked: str) -> None:
    assert read_domain(domain(f"<memoryBacking>{locked}</memoryBacking>")).locked is bool(locked)


@pytest.mark.parametrize("head", ["type='lxc'", "type='test'", "type='xen'", ""])
def test_other_hypervisors_are_refused(head: str) -> None:
    with pytest.raises(DomainRefused, match="type"):
        read_domain(domain(head=head))


@pytest.mark.parametrize("kind", ["sev", "sev-snp", "tdx", "s390-pv"])
def test_protected_memory_is_refused(kind: str) -> None:
    with pytest.raises(DomainRefused, match=kind):
        read_domain(domain(f"<launchSecurity type='{kind}'/>"))
