# SPDX-License-Identifier: GPL-2.0-or-later
"""apply rewrites what it has to and nothing else; unapply restores the original."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lxml import etree

from tests.rig.domain_strategy import domains
from tests.rig.golden import GOLDEN, as_libvirt_reads_it, canonical, without_blanks
from virt_dmem.domain_xml.reader import is_managed, read_domain
from virt_dmem.domain_xml.rewrite import apply, reprint, unapply
from virt_dmem.errors import DomainRefused, DomainXmlInvalid, UsageError

Check = Callable[[bytes], None]
CASES = sorted(file.name.removesuffix("-in.xml") for file in GOLDEN.glob("*-in.xml"))
FROM_LIBVIRT = sorted(file.name.removesuffix("-applied.xml") for file in (GOLDEN / "libvirt").glob("*-applied.xml"))

# require_valid holds one compiled schema, the same for every example.
many = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def edited(xml: bytes, pattern: str, replacement: str) -> bytes:
    """Return the document as a user would edit it; the pattern has to be there once."""
    text, count = re.subn(pattern, replacement, xml.decode())
    assert count == 1
    return text.encode()


# Golden files


@pytest.mark.parametrize("case", CASES)
def test_apply_gives_the_golden_file(case: str, require_golden: Callable[[bytes, str], None]) -> None:
    require_golden(apply(golden(f"{case}-in.xml")), f"{case}-out.xml")


@pytest.mark.parametrize("case", CASES)
def test_golden_files_are_valid_for_libvirt(case: str, require_valid: Check) -> None:
    require_valid(golden(f"{case}-in.xml"))
    require_valid(golden(f"{case}-out.xml"))


@pytest.mark.parametrize("case", CASES)
def test_unapply_gives_the_golden_input(case: str) -> None:
    before = golden(f"{case}-in.xml")
    after = unapply(golden(f"{case}-out.xml"))
    assert canonical(after) == canonical(before)
    assert after == reprint(before)


@pytest.mark.parametrize("case", CASES)
def test_a_golden_output_is_applied_and_so_left_as_it_is(case: str) -> None:
    rewritten = golden(f"{case}-out.xml")
    assert is_managed(rewritten)
    assert apply(rewritten) == rewritten
    if b"<uuid>" in rewritten:  # without, libvirt has never seen it
        memory = read_domain(rewritten)
        assert memory.managed
        assert memory.applied


# What libvirt 9.0 printed after 'virsh define' of the golden input (NAME-before.xml) and output (NAME-applied.xml)


@pytest.mark.parametrize("case", FROM_LIBVIRT)
def test_unapply_gives_back_the_meaning_after_libvirt_printed_it_anew(case: str) -> None:
    before, applied = golden(f"libvirt/{case}-before.xml"), golden(f"libvirt/{case}-applied.xml")
    assert as_libvirt_reads_it(unapply(applied)) == as_libvirt_reads_it(before)


@pytest.mark.parametrize("case", FROM_LIBVIRT)
def test_what_libvirt_printed_needs_no_second_rewrite(case: str) -> None:
    applied = golden(f"libvirt/{case}-applied.xml")
    assert read_domain(applied).applied
    assert apply(applied) == applied


def test_there_are_files_from_libvirt() -> None:
    assert len(FROM_LIBVIRT) >= 14


# Random domains


@many
@given(xml=domains(), pool=st.sampled_from(["", "big"]))
def test_unapply_undoes_apply(xml: bytes, pool: str, require_valid: Check) -> None:
    require_valid(xml)
    rewritten = apply(xml, pool=pool)
    require_valid(rewritten)
    assert canonical(unapply(rewritten)) == canonical(xml)
    assert unapply(rewritten) == reprint(xml)


@many
@given(xml=domains())
def test_applying_twice_is_applying_once(xml: bytes) -> None:
    once = apply(xml, pool="big")
    assert apply(once) == once
    assert apply(once, pool="big") == once
    other = apply(once, pool="other")
    assert other.replace(b'pool="other"', b"", 1) == once.replace(b'pool="big"', b"", 1)
    assert canonical(unapply(other)) == canonical(xml)


@many
@given(xml=domains())
def test_the_result_is_shared_file_memory_whatever_was_there(xml: bytes) -> None:
    root = etree.fromstring(apply(xml))
    assert not root.xpath("memoryBacking/hugepages")
    assert root.xpath("memoryBacking/source/@type") == ["file"]
    assert root.xpath("memoryBacking/access/@mode") == ["shared"]
    assert root.xpath("memoryBacking/allocation/@mode") == ["ondemand"]
    assert not root.xpath("cpu/numa/cell[@memAccess='private']")
    before = etree.fromstring(xml)
    for kept in ("nosharepages", "locked", "discard"):
        assert len(root.xpath(f"memoryBacking/{kept}")) == len(before.xpath(f"memoryBacking/{kept}"))


@many
@given(xml=domains())
def test_unapply_without_the_request_leaves_nothing_of_ours(xml: bytes) -> None:
    assert not is_managed(unapply(apply(xml), keep_request=False))


@many
@given(xml=domains())
def test_blanks_that_others_change_do_not_matter(xml: bytes) -> None:
    squeezed = etree.fromstring(apply(xml), etree.XMLParser(remove_blank_text=True))
    etree.indent(squeezed, space="   ")
    assert without_blanks(unapply(etree.tostring(squeezed))) == without_blanks(xml)


@given(noise=st.binary(max_size=200))
def test_noise_is_refused_with_a_sentence(noise: bytes) -> None:
    assume(b"<domain" not in noise)  # hypothesis finds that word in our source, and then it is no noise
    for function in (apply, read_domain, reprint, unapply):
        with pytest.raises(DomainXmlInvalid) as caught:
            function(noise)
        assert "\n" not in caught.value.message
        assert caught.value.hint


# What was there and what came later


def test_what_is_not_applied_comes_back_from_unapply_as_it_is() -> None:
    for case in CASES:
        assert unapply(golden(f"{case}-in.xml")) == golden(f"{case}-in.xml")


def test_the_request_of_the_administrator_survives_only_if_asked() -> None:
    rewritten = apply(golden("opt-in-in.xml"), pool="other")
    assert b'pool="other"' in rewritten
    assert read_domain(unapply(rewritten)).pool == "big"
    assert not read_domain(unapply(rewritten, keep_request=False)).managed


def test_an_element_added_to_memory_backing_after_apply_stays_at_unapply() -> None:
    rewritten = edited(apply(golden("hugepages-in.xml")), "<source", "<locked/><source")
    root = etree.fromstring(unapply(rewritten))
    assert {child.tag for child in root.find("memoryBacking")} == {"hugepages", "locked"}


def test_an_element_removed_from_memory_backing_after_apply_stays_away_at_unapply() -> None:
    rewritten = edited(apply(golden("memfd-shared-in.xml")), "\n    <nosharepages/>", "")
    root = etree.fromstring(unapply(rewritten))
    assert {child.tag for child in root.iterfind("memoryBacking/*")} == {"source", "access"}
    assert root.find("memoryBacking/source").get("type") == "memfd"


def test_memory_backing_removed_after_apply_comes_back_as_it_was_before() -> None:
    rewritten = edited(apply(golden("hugepages-in.xml")), r"(?s)  <memoryBacking>.*</memoryBacking>\n", "")
    assert without_blanks(unapply(rewritten)) == without_blanks(golden("hugepages-in.xml"))


def test_hugepages_added_after_apply_are_rewritten_again_and_come_back() -> None:
    drifted = edited(apply(golden("plain-in.xml"), pool="big"), "<source", "<hugepages/><source")
    assert not read_domain(drifted).applied
    again = apply(drifted)
    assert read_domain(again).applied
    assert read_domain(again).pool == "big"
    assert apply(again) == again
    assert etree.fromstring(unapply(again)).find("memoryBacking/hugepages") is not None


def test_metadata_added_after_apply_stays_at_unapply() -> None:
    other = "<x:y xmlns:x='http://example.com/x'/>"
    rewritten = edited(apply(golden("plain-in.xml")), "</metadata>", f"{other}</metadata>")
    root = etree.fromstring(unapply(rewritten))
    assert [child.tag for child in root.find("metadata")] == ["{http://example.com/x}y"]


def test_a_garbled_record_does_no_harm() -> None:
    rewritten = edited(apply(golden("numa-in.xml")), "<dmem:replaced(.*)/>", r"<dmem:replaced\1></dmem:replaced>")
    garbled = edited(rewritten, r' elements="[^"]*"', ' elements="devices"')
    garbled = edited(garbled, "</dmem:replaced>", '<dmem:device index="one"/><dmem:device/></dmem:replaced>')
    after = etree.fromstring(unapply(garbled))
    assert after.find("devices/emulator") is not None
    assert after.find("name").text == "numa"


def test_the_declaration_and_the_last_newline_stay_as_they_were() -> None:
    xml = golden("plain-in.xml")
    assert apply(xml).startswith(b"<domain")
    assert apply(xml).endswith(b"</domain>\n")
    assert apply(xml.rstrip()).endswith(b"</domain>")
    declared = b"<?xml version='1.0' encoding='ISO-8859-1'?>" + xml.replace(b"plain", b"gr\xfcn")
    assert apply(declared).startswith(b"<?xml version='1.0' encoding='UTF-8'?>")
    assert read_domain(apply(declared)).name == "grün"


# Refusals


def test_sizes_that_are_no_whole_pages_are_refused_with_the_nearest() -> None:
    xml = edited(golden("plain-in.xml"), "<memory unit='KiB'>4194304", "<memory unit='KiB'>4195328")
    with pytest.raises(DomainRefused, match=r"4097 MiB.*2 MiB.*4096 MiB or 4098 MiB"):
        apply(xml, page_size=2 << 20)
    assert apply(xml, page_size=1 << 20)
    small = edited(golden("numa-in.xml"), "cpus='2-3' memory='2097152'", "cpus='2-3' memory='1024'")
    with pytest.raises(DomainRefused, match=r"ram-node1.*1 MiB.*Give it 1024 MiB,"):
        apply(small, page_size=1 << 30)


def test_an_applied_domain_is_checked_for_whole_pages_too() -> None:
    with pytest.raises(DomainRefused, match="not a multiple"):
        apply(apply(golden("plain-in.xml")), page_size=3 << 30)


def test_a_pool_name_that_cannot_be_is_refused() -> None:
    for pool in ("../x", "a b", "-x", "x" * 65, "a/b", "x\n"):
        with pytest.raises(UsageError):
            apply(golden("plain-in.xml"), pool=pool)


def test_a_private_cell_is_refused_by_its_number(require_valid: Check) -> None:
    xml = edited(golden("numa-in.xml"), "memAccess='shared'", "memAccess='private'")
    require_valid(xml)
    with pytest.raises(DomainRefused, match=r"Cell 1 .*private") as caught:
        apply(xml)
    assert "memAccess" in caught.value.hint


def test_locked_memory_is_refused_where_the_pool_cannot_hold_it(tmp_path: Path) -> None:
    locked = edited(golden("hugepages-in.xml"), "<hugepages", "<locked/><hugepages")
    assert read_domain(apply(locked)).locked
    for xml in (locked, apply(locked)):
        with pytest.raises(DomainRefused, match=r"locked memory.*'small'"):
            apply(xml, pool="small", may_lock=False)
    assert apply(golden("hugepages-in.xml"), may_lock=False) == golden("hugepages-out.xml")
    elements = "<source type='file'/><access mode='shared'/><allocation mode='ondemand'/>"
    locking = template(tmp_path, f"<memoryBacking>{elements}<locked/></memoryBacking>")
    with pytest.raises(DomainRefused, match="locked"):
        apply(golden("plain-in.xml"), may_lock=False, templates_dir=locking)


def test_what_no_filter_has_to_know_is_not_asked() -> None:
    for xml in (
        "<domain type='kvm'><name>x</name></domain>",
        "<domain type='qemu'><os><type arch='sparc' machine='SS-5'>hvm</type></os></domain>",
        "<domain type='kvm'><cpu><numa><cell id='7' memory='x'/></numa></cpu><numatune><memory nodeset='z'/>"
        "</numatune></domain>",
    ):
        assert canonical(unapply(apply(xml.encode()))) == canonical(xml.encode())


def test_xml_too_large_for_libvirt_is_refused_with_the_numbers() -> None:
    xml = edited(golden("plain-in.xml"), "</domain>\n", f"<!--{'x' * (4 * 1024 * 1024 - 700)}--></domain>")
    with pytest.raises(DomainXmlInvalid, match=r"4194\d\d\d bytes"):
        apply(xml)


# Whose element is it?

OTHERS = [
    "<a:memory xmlns:a='https://virt-dmem.dev/xmlns/domain/1.0' pool='big'/>",  # ours
    "<memory xmlns='https://virt-dmem.dev/xmlns/domain/1.0' pool='big'/>",  # ours
    "<dmem:memory xmlns:dmem='http://example.com' pool='no'/>",
    "<memory pool='no'/>",
    "<x:y xmlns:x='urn:x'><dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='no'/></x:y>",
]


@pytest.mark.parametrize("index", range(len(OTHERS)))
def test_only_our_element_in_metadata_is_a_request_whatever_its_prefix(index: int, require_valid: Check) -> None:
    xml = edited(golden("plain-in.xml"), "  <memory", f"  <metadata>{OTHERS[index]}</metadata>\n  <memory")
    require_valid(xml)
    assert is_managed(xml) is (index < 2)
    assert read_domain(xml).pool == ("big" if index < 2 else "")
    rewritten = apply(xml)
    require_valid(rewritten)
    assert read_domain(rewritten).applied
    assert apply(rewritten) == rewritten
    assert unapply(rewritten) == reprint(xml)


def test_two_requests_are_refused() -> None:
    xml = edited(golden("plain-in.xml"), "  <memory", f"  <metadata>{OTHERS[0]}{OTHERS[1]}</metadata>\n  <memory")
    for function in (apply, unapply, read_domain):
        with pytest.raises(DomainXmlInvalid, match="2 elements 'memory'"):
            function(xml)


def test_a_request_is_seen_in_utf_16_too() -> None:
    xml = golden("opt-in-in.xml").decode().encode("utf-16")
    assert is_managed(xml)
    assert read_domain(apply(xml)).pool == "big"
    assert canonical(unapply(apply(xml))) == canonical(xml)


# Memory devices


def test_an_nvdimm_stays_as_private_as_it_was(require_valid: Check) -> None:
    nvdimm = """<memory model='nvdimm'{}><source><path>/nv</path></source>
    <target><size unit='MiB'>128</size><node>{}</node></target></memory></devices>"""

    def access(xml: bytes) -> str | None:
        return etree.fromstring(xml).find("devices/memory").get("access")

    for said, node, backing, after in (
        ("", 0, "", "private"),
        ("", 0, "<access mode='private'/>", "private"),
        ("", 0, "<access mode='shared'/>", None),
        ("", 1, "", None),  # as its cell
        (" access='shared'", 0, "", "shared"),
        (" access='private'", 1, "", "private"),
    ):
        xml = edited(golden("numa-in.xml"), "</devices>", nvdimm.format(said, node))
        xml = edited(xml, "  <vcpu", f"  <memoryBacking>{backing}</memoryBacking>\n  <vcpu")
        require_valid(xml)
        rewritten = apply(xml)
        assert access(rewritten) == after
        assert apply(rewritten) == rewritten
        assert canonical(unapply(rewritten)) == canonical(xml)


def test_a_device_that_went_or_came_since_does_not_get_what_another_had() -> None:
    rewritten = golden("memory-devices-out.xml")
    root = etree.fromstring(rewritten)
    devices = root.find("devices")
    devices.remove(devices.find("memory"))
    after = etree.fromstring(unapply(etree.tostring(root)))
    before = etree.fromstring(golden("memory-devices-in.xml"))
    assert [etree.tostring(device, method="c14n") for device in after.iterfind("devices/memory")] == [
        etree.tostring(device, method="c14n") for device in before.findall("devices/memory")[1:]
    ]


def test_a_dimm_that_was_given_pages_of_its_own_since_is_rewritten_again() -> None:
    rewritten = golden("memory-devices-out.xml")
    drifted = edited(rewritten, r"(?s)<source/>(.*<alias)", r"<source><pagesize>4</pagesize></source>\1")
    assert not read_domain(drifted).applied
    again = apply(drifted)
    assert read_domain(again).applied
    assert etree.fromstring(unapply(again)).find("devices/memory[2]/source/pagesize").text == "4"


# numad


def test_nodes_that_were_named_since_are_kept_at_unapply() -> None:
    named = edited(
        golden("numad-out.xml"), "<!-- where it fits -->\n  </numatune", "<memory nodeset='1'/></numatune"
    )
    assert read_domain(named).applied
    after = etree.fromstring(unapply(named))
    assert dict(after.find("numatune/memory").attrib) == {"nodeset": "1"}


def test_a_cpuset_that_libvirt_ignores_beside_auto_does_not_take_effect(require_valid: Check) -> None:
    xml = edited(golden("numad-vcpu-in.xml"), "<vcpu", "<vcpu cpuset='0-1'")
    rewritten = apply(xml)
    require_valid(rewritten)
    assert dict(etree.fromstring(rewritten).find("vcpu").attrib) == {"placement": "static", "current": "2"}
    assert unapply(rewritten) == reprint(xml)


def test_vcpus_that_were_pinned_since_stay_pinned_at_unapply() -> None:
    pinned = edited(golden("numad-vcpu-out.xml"), 'placement="static"', 'placement="static" cpuset="7"')
    vcpu = etree.fromstring(unapply(pinned)).find("vcpu")
    assert dict(vcpu.attrib) == {"placement": "static", "cpuset": "7", "current": "2"}


def template(directory: Path, text: str) -> Path:
    (directory / "memory-backing.xml").write_text(text)
    return directory
