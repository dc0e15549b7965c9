# SPDX-License-Identifier: GPL-2.0-or-later
"""A rewritten domain whose request was removed is recognized, and restored exactly if it is remembered."""

from __future__ import annotations

import pytest
from lxml import etree

from tests.rig.golden import GOLDEN, as_libvirt_reads_it
from virt_dmem.domain_xml.elements import NAMESPACE, is_rewritten, requested_pool
from virt_dmem.domain_xml.reader import is_managed
from virt_dmem.domain_xml.rewrite import apply, unapply
from virt_dmem.domain_xml.traces import Trace, find_trace, has_record, put_back, remove_traces, request_in

NAMELESS = ("latin-1", "hand-written-s390x")
"""They have no UUID, and so get no monitor."""
CASES = sorted({file.name.removesuffix("-in.xml") for file in GOLDEN.glob("*-in.xml")} - {*NAMELESS})
BACKING = (
    "<memoryBacking>{}<source type='file'/><access mode='shared'/><allocation mode='ondemand'/></memoryBacking>"
)


def golden(case: str) -> bytes:
    return (GOLDEN / f"{case}-in.xml").read_bytes()


def without_request(xml: bytes, *, metadata: bool = False) -> bytes:
    """Return a domain as another tool writes it that does not know our metadata, or any."""
    root = etree.fromstring(xml)
    for element in root.iterfind("metadata" if metadata else f"metadata/{{{NAMESPACE}}}memory"):
        parent = element.getparent()
        assert parent is not None
        parent.remove(element)
    return etree.tostring(root)


def domain(more: str = "") -> bytes:
    return (
        "<domain type='kvm'><name>g</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid><memory>65536</memory>"
        f"{more}<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os></domain>"
    ).encode()


@pytest.mark.parametrize("monitor", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_remembered_request_is_put_back_and_undone_as_ever(case: str, monitor: bool) -> None:
    before = golden(case)
    applied = apply(before, monitor=monitor)
    assert find_trace(applied) is Trace.NONE, "it asks for it"
    lost = without_request(applied)
    assert find_trace(lost) is (Trace.MONITOR if monitor else Trace.BACKING)
    again = put_back(lost, request_in(etree.fromstring(applied)))
    assert apply(again) == again, "nothing is missing"
    expected = without_request(before) if is_managed(before) else before
    assert as_libvirt_reads_it(unapply(again, keep_request=False)) == as_libvirt_reads_it(expected)


@pytest.mark.parametrize("case", CASES)
def test_metadata_that_are_gone_altogether_leave_nothing_when_undone(case: str) -> None:
    applied = apply(golden(case), monitor=True)
    again = put_back(without_request(applied, metadata=True), request_in(etree.fromstring(applied)))
    assert is_rewritten(etree.fromstring(again))
    expected = as_libvirt_reads_it(without_request(golden(case), metadata=True))
    assert as_libvirt_reads_it(unapply(again, keep_request=False)) == expected


@pytest.mark.parametrize("before", [domain(), domain("<memoryBacking><nosharepages/></memoryBacking>")])
def test_without_a_memory_of_it_what_we_write_goes_and_the_rest_stays(before: bytes) -> None:
    lost = without_request(apply(before, monitor=True), metadata=True)
    assert as_libvirt_reads_it(remove_traces(lost)) == as_libvirt_reads_it(before)
    assert find_trace(remove_traces(lost)) is Trace.NONE


@pytest.mark.parametrize(
    ("xml", "trace"),
    [
        (domain(), Trace.NONE),
        (domain(BACKING.format("")), Trace.BACKING),
        (domain(BACKING.format("<hugepages/>")), Trace.NONE),
        (domain(BACKING.format("").replace("ondemand", "immediate")), Trace.NONE),
        (domain("<description>socket,id=virt-dmem,path= ondemand</description>"), Trace.NONE),
        (domain("<metadata><x:memory xmlns:x='urn:ondemand'/></metadata>"), Trace.NONE),
    ],
)
def test_what_others_write_is_no_trace_unless_it_is_remembered(xml: bytes, trace: Trace) -> None:
    assert find_trace(xml) is trace
    if trace is Trace.NONE:
        assert as_libvirt_reads_it(remove_traces(xml)) == as_libvirt_reads_it(xml) or BACKING[:15].encode() in xml


@pytest.mark.parametrize("request_", [b"", b"noise", b"<memory/>", b"<!DOCTYPE x><x/>"])
def test_a_memory_that_is_garbled_changes_nothing(request_: bytes) -> None:
    lost = without_request(apply(domain(), monitor=True))
    assert put_back(lost, request_) == lost
    assert put_back(apply(domain()), request_in(etree.fromstring(apply(domain(), pool="x")))) == apply(domain())


def test_a_monitor_beside_another_memory_backing_is_a_trace_of_its_own() -> None:
    lost = without_request(apply(domain(), monitor=True))
    root = etree.fromstring(lost)
    backing = root.find("memoryBacking")
    assert backing is not None
    root.remove(backing)
    assert find_trace(etree.tostring(root)) is Trace.MONITOR_ALONE
    assert b"commandline" not in remove_traces(etree.tostring(root))


def with_new_request(xml: bytes, attributes: str = " pool='other'") -> bytes:
    """Return a domain as ``virsh metadata --set`` leaves it: with a request in the place of ours."""
    root = etree.fromstring(xml)
    request = root.find(f"metadata/{{{NAMESPACE}}}memory")
    assert request is not None
    request.getparent().replace(  # type: ignore[union-attr]
        request, etree.fromstring(f"<dmem:memory xmlns:dmem='{NAMESPACE}'{attributes}/>")
    )
    return etree.tostring(root)


@pytest.mark.parametrize("monitor", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_request_that_replaced_ours_stays_and_gets_what_ours_kept(case: str, monitor: bool) -> None:
    before = golden(case)
    applied = apply(before, monitor=monitor)
    lost = with_new_request(applied)
    assert find_trace(lost) is Trace.NEW_REQUEST
    again = put_back(lost, request_in(etree.fromstring(applied)))
    assert find_trace(again) is Trace.NONE
    assert apply(again) == again, "nothing is missing"
    assert requested_pool(etree.fromstring(again)) == "other"
    expected = without_request(before) if is_managed(before) else before
    assert as_libvirt_reads_it(unapply(again, keep_request=False)) == as_libvirt_reads_it(expected)


@pytest.mark.parametrize("request_", ["", " pool='replaced'"])
def test_a_request_without_a_record_has_none_to_put_back(request_: str) -> None:
    lost = with_new_request(apply(domain(), monitor=True), request_)
    bare = request_in(etree.fromstring(lost))
    assert not has_record(bare)
    assert put_back(lost, bare) == lost


def test_a_request_of_ones_own_beside_shared_files_has_no_trace_but_might_be_one() -> None:
    request = f"<metadata><dmem:memory xmlns:dmem='{NAMESPACE}'/></metadata>"
    assert find_trace(domain(request)) is Trace.NONE
    assert find_trace(domain(request + BACKING.format("").replace("ondemand", "immediate"))) is Trace.NONE
    assert find_trace(domain(request + BACKING.format(""))) is Trace.NEW_REQUEST


def test_a_monitor_that_is_there_is_not_added_again() -> None:
    lost = with_new_request(apply(domain(), monitor=True))
    again = apply(lost, monitor=True)
    assert again.count(b"id=virt-dmem") == 1
    assert b"commandline" not in unapply(again, keep_request=False)
