# SPDX-License-Identifier: GPL-2.0-or-later
"""apply prepares a domain for memory hotplug, and adds the second monitor; unapply undoes both."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from tests.rig.domain_strategy import domains
from tests.rig.golden import GOLDEN, canonical
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.rewrite import apply, reprint, unapply
from virt_dmem.errors import DomainRefused
from virt_dmem.units import parse_size

Check = Callable[[bytes], None]
CASES = sorted(file.name.removesuffix("-in.xml") for file in GOLDEN.glob("*-in.xml"))
MAX = parse_size("64G")
many = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def golden(case: str) -> bytes:
    return (GOLDEN / f"{case}-in.xml").read_bytes()


def with_acpi(xml: bytes) -> bytes:
    if b"<features>" in xml:
        return xml
    return re.sub(rb"</os>", b"</os><features><acpi/></features>", xml, count=1)


PLAIN = with_acpi(golden("plain"))


def test_a_plain_domain_gets_slots_a_maximum_and_a_cell_with_all_its_memory(require_valid: Check) -> None:
    rewritten = apply(PLAIN, hotplug_max=MAX)
    require_valid(rewritten)
    root = etree.fromstring(rewritten)
    assert (root.findtext("maxMemory"), root.find("maxMemory").get("slots")) == (str(MAX // 1024), "16")
    (cell,) = root.iterfind("cpu/numa/cell")
    assert dict(cell.attrib) == {"id": "0", "cpus": "0-3", "memory": "4194304", "unit": "KiB"}
    assert [cell.alias for cell in read_domain(rewritten).cells] == ["ram-node0"]


@pytest.mark.parametrize("monitor", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_apply_prepared_is_undone_to_the_same_document(case: str, monitor: bool, require_valid: Check) -> None:
    before = with_acpi(golden(case))
    try:
        rewritten = apply(before, hotplug_max=MAX, monitor=monitor)
    except DomainRefused:
        assert case == "hand-written-s390x"
        return
    require_valid(rewritten)
    assert apply(rewritten) == rewritten
    assert apply(rewritten, hotplug_max=MAX, monitor=monitor) == rewritten
    assert canonical(unapply(rewritten)) == canonical(before)
    assert unapply(rewritten) == reprint(before)


@many
@given(xml=domains(), monitor=st.booleans())
def test_any_domain_comes_back_from_both(xml: bytes, monitor: bool, require_valid: Check) -> None:
    before = with_acpi(xml)
    try:
        rewritten = apply(before, hotplug_max=MAX, monitor=monitor)
    except DomainRefused:
        return
    require_valid(rewritten)
    assert apply(rewritten) == rewritten
    assert unapply(rewritten) == reprint(before)


def test_another_maximum_is_taken_and_undone_like_the_first() -> None:
    rewritten = apply(apply(PLAIN, hotplug_max=MAX), hotplug_max=2 * MAX, monitor=True)
    assert etree.fromstring(rewritten).findtext("maxMemory") == str(2 * MAX // 1024)
    assert canonical(unapply(rewritten)) == canonical(PLAIN)


def test_a_maximum_that_was_there_is_raised_and_comes_back() -> None:
    before = PLAIN.replace(b"<memory ", b"<maxMemory slots='32' unit='GiB'>8</maxMemory>\n  <memory ", 1)
    before = before.replace(
        b"</features>", b"</features><cpu><numa><cell id='0' cpus='0-3' memory='4194304'/></numa></cpu>"
    )
    rewritten = apply(before, hotplug_max=MAX)
    assert etree.fromstring(rewritten).find("maxMemory").get("slots") == "32"
    assert canonical(unapply(rewritten)) == canonical(before)


def test_what_a_device_attached_later_needs_stays_at_unapply() -> None:
    device = b"<devices><memory model='dimm'><target><size unit='MiB'>512</size><node>0</node></target></memory>"
    rewritten = apply(PLAIN, hotplug_max=MAX).replace(b"<devices>", device)
    root = etree.fromstring(unapply(rewritten))
    assert root.find("maxMemory") is not None
    assert root.find("cpu/numa/cell") is not None
    assert root.find("memoryBacking") is None


def test_for_a_host_without_us_what_the_guest_sees_stays_and_all_of_ours_goes() -> None:
    clean = unapply(apply(PLAIN, hotplug_max=MAX, monitor=True), keep_request=False, running=True)
    root = etree.fromstring(clean)
    assert root.find("maxMemory") is not None
    assert root.find("cpu/numa/cell") is not None
    assert b"virt-dmem" not in clean
    assert root.find("memoryBacking/source").get("type") == "file", "libvirt would refuse another"


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ((b"<features><acpi/></features>", b""), "no ACPI"),
        ((b"pc-q35-7.2", b"microvm"), "does not support memory hotplug.* Use a machine type that does: pc or q35"),
        ((b'x86_64" machine="pc-q35-7.2"', b'armv7l" machine="virt"'), "No machine of armv7l does"),
        ((b'"KiB">4194304</memory>', b'"GiB">64</memory>'), "has 64 GiB already"),
    ],
)
def test_a_domain_that_cannot_be_prepared_is_refused_with_what_is_missing(
    change: tuple[bytes, bytes], missing: str
) -> None:
    before = reprint(PLAIN)
    assert change[0] in before
    with pytest.raises(DomainRefused, match=missing):
        apply(before.replace(*change), hotplug_max=MAX)
