# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile numbers and sizes: refused in a sentence, and at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.cpu_time import seconds
from tests.rig.numbers import DIGITS, NUMBERS
from virt_dmem.allocation.plan import ExtentPlan, Plan
from virt_dmem.daemon.wiring import Components
from virt_dmem.domain_xml.fields import read_number, read_size
from virt_dmem.domain_xml.live import read_guest
from virt_dmem.domain_xml.parse import XmlRefused, parse_xml
from virt_dmem.domain_xml.reader import DomainMemory, is_managed, read_domain
from virt_dmem.domain_xml.rewrite import apply, unapply
from virt_dmem.errors import DmemError, DomainRefused, UsageError
from virt_dmem.runtime.aio import off_loop
from virt_dmem.units import parse_duration, parse_number, parse_size

NS = "https://virt-dmem.dev/xmlns/domain/1.0"
UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


def domain(body: str = "", *, memory: str = "1048576", name: str = "a", attributes: str = "") -> bytes:
    return (
        f"<domain type='kvm' id='1'{attributes}><name>{name}</name><uuid>{UUID}</uuid>"
        f"<metadata><dmem:memory xmlns:dmem='{NS}'/></metadata><memory>{memory}</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>{body}</domain>"
    ).encode()


def cells(count: int) -> str:
    inside = "".join(f"<cell id='{n}' memory='2048'/>" for n in range(count))
    return f"<cpu><numa>{inside}</numa></cpu>"


def devices(count: int, model: str = "dimm") -> str:
    one = f"<memory model='{model}'><target><size>2048</size><node>0</node></target></memory>"
    return f"<devices>{one * count}</devices>"


# One number


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "place",
    [
        "<memory>{}</memory>",
        "<cpu><numa><cell id='{}' memory='2048'/></numa></cpu>",
        "<cpu><numa><cell id='0' memory='{}'/></numa></cpu>",
        "<numatune><memory mode='strict' nodeset='{}'/></numatune>",
        "<numatune><memnode cellid='{}' mode='strict' nodeset='0'/></numatune>",
        "<devices><memory model='dimm'><target><size>{}</size><node>0</node></target></memory></devices>",
        "<devices><memory model='dimm'><target><size>1</size><node>{}</node></target></memory></devices>",
        "<devices><memory model='dimm'><target><size>1</size><node>0</node></target>"
        "<address type='dimm' slot='{}'/></memory></devices>",
        "<devices><memory model='virtio-mem'><target><size>1</size><block>{}</block></target></memory></devices>",
    ],
)
def test_a_number_in_a_domain_is_read_or_refused_in_a_sentence(place: str, number: str) -> None:
    body = place.format(number)
    xml = domain(body) if not body.startswith("<memory>") else domain(memory=number)
    for read in (read_domain, apply, lambda xml: apply(xml, page_size=4096), unapply, read_guest, is_managed):
        try:
            found = read(xml)
        except DmemError as error:
            assert len(str(error)) < 500
        else:
            if isinstance(found, DomainMemory):
                assert all(0 < cell.size_bytes < 2**63 for cell in found.cells)


def test_zeros_in_front_are_no_digits() -> None:
    zeros = "0" * 5000
    assert read_number(f"{zeros}7", "x") == 7
    assert read_size(f"{zeros}7", "KiB") == 7168
    assert parse_size(f"{zeros}7K") == parse_number(f"{zeros}7K") == parse_number(f"0x{zeros}7k") == 7168


@pytest.mark.parametrize("parse", [parse_size, parse_number, parse_duration])
@pytest.mark.parametrize(
    "text", [DIGITS, f"-{DIGITS}", f"0x{DIGITS}", f"{DIGITS}T", "9" * 19 + "T", "1" * 10_000_000]
)
def test_a_number_that_a_person_types_is_bounded(parse: Callable[[str], int], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert len(str(caught.value)) < 500


@given(st.text(alphabet="0123456789xKMGTiB -+٣", max_size=30))
def test_what_is_typed_is_a_number_of_64_bits_or_refused(text: str) -> None:
    for parse in (parse_size, parse_number, parse_duration):
        try:
            assert 0 <= parse(text) < 2**64
        except UsageError:
            continue


# Many


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (cells(1500), "1500 guest NUMA cells, and QEMU supports 128"),
        (cells(1) + devices(10_000), "10000 memory devices, and QEMU supports 256"),
        (cells(1) + devices(10_000, "virtio-mem"), "10000 memory devices"),
        (cells(1) + devices(10_000, "nvdimm"), "10000 memory devices"),
        (
            cells(2) + "<numatune>" + "<memnode cellid='0' mode='strict' nodeset='0'/>" * 60_000 + "</numatune>",
            "60000 <memnode>",
        ),
    ],
)
def test_more_than_qemu_knows_is_refused_at_once(body: str, said: str) -> None:
    xml = domain(body)

    def refused() -> None:
        for read in (read_domain, apply):
            with pytest.raises(DomainRefused, match=said):
                read(xml)

    assert seconds(refused) < 5


def test_as_many_as_qemu_knows_are_read_at_once() -> None:
    xml = domain(
        cells(128) + devices(128).replace("</devices>", devices(128, "virtio-mem").removeprefix("<devices>"))
    )
    assert seconds(lambda: read_domain(xml)) < 5
    assert len(read_domain(xml).cells) == 128 + 256
    rewritten = apply(xml, page_size=4096)
    assert read_domain(rewritten).applied


def test_undoing_takes_as_long_as_there_is_to_undo() -> None:
    """The author of the record chose its size, and XML that virt-dmem wrote is never refused."""
    kept = "".join(
        f"<dmem:device model='dimm' size='2097152' node='0' index='{n}' access='private'/>" for n in range(10_000)
    )
    record = f"<dmem:replaced elements='hugepages'>{kept}</dmem:replaced>"
    xml = domain(cells(1) + devices(10_000).replace("'dimm'", "'dimm' access='shared'"))
    request = f"<dmem:memory xmlns:dmem='{NS}'"
    xml = xml.replace(f"{request}/>".encode(), f"{request}>{record}</dmem:memory>".encode())
    assert seconds(lambda: unapply(xml)) < 10
    assert unapply(xml).count(b'access="private"') == 10_000


@pytest.mark.parametrize(
    "body",
    [
        "<devices>" + "<disk type='file'><driver cache='none' io='native'/></disk>" * 50_000 + "</devices>",
        "<seclabel model='dac'><label>+0:+0</label></seclabel>" * 50_000,
        "<metadata2>" + "<x>" * 200 + "</x>" * 200 + "</metadata2>",
        "<memoryBacking>" + "<x>" * 240 + "</x>" * 240 + "</memoryBacking>",
        "<x " + " ".join(f"a{n}=''" for n in range(100_000)) + "/>",
        "".join(f"<n{n}:x xmlns:n{n}='urn:{n}'/>" for n in range(50_000)),
        "<x " + " ".join(f"xmlns:n{n}='urn:{n}'" for n in range(5000)) + ">" + "<y/>" * 5000 + "</x>",
        f"<description>{'x' * 4_000_000}</description>",
        f"<x a='{'x' * 4_000_000}'/>",
        "<iothreads/>" + "<!---->" * 400_000,
    ],
    ids=[
        "disks",
        "labels",
        "deep",
        "deep backing",
        "attributes",
        "namespaces",
        "inherited",
        "text",
        "value",
        "comments",
    ],
)
def test_a_document_that_libvirt_would_take_is_read_in_the_time_that_its_size_takes(body: str) -> None:
    xml = domain(body)

    def all_of_it() -> None:
        try:
            read_domain(xml)
            unapply(apply(xml))
        except DmemError as error:
            assert len(str(error)) < 10_000

    assert seconds(all_of_it) < 15


def test_what_is_kept_of_a_domain_has_an_end() -> None:
    disks = "<disk type='file'><driver cache='none'/></disk>" * 50_000
    assert len(read_domain(domain(f"<devices>{disks}</devices>")).obstacles) < 100


# Names, and what libvirt prints of a domain that runs


@pytest.mark.parametrize("name", ["n" * 252, "é" * 126, "n" * 1_000_000, "a/b", "a\nb", " "])
def test_a_name_that_libvirt_could_make_no_file_of_is_refused(name: str) -> None:
    with pytest.raises(DomainRefused, match="invalid name") as caught:
        read_domain(domain(name=name))
    assert len(str(caught.value)) < 500
    read_domain(domain(name="é" * 125))


# In the daemon


def test_a_large_document_is_read_beside_the_event_loop_and_a_small_one_at_once() -> None:
    async def story() -> None:
        assert await off_loop(lambda _: threading.current_thread(), b"small") is threading.current_thread()
        assert (
            await off_loop(lambda _: threading.current_thread(), bytes(1 << 20)) is not threading.current_thread()
        )

    asyncio.run(story())


def test_an_element_of_very_many_attributes_is_not_even_parsed() -> None:
    """libxml2 of Debian 12 takes 30 s for 40 000 of them."""
    few, many = (" ".join(f"a{n}='&lt;>'" for n in range(count)) for count in (256, 257))
    padding = "<!--" + "x" * 20_000 + "-->"
    others = "<y a='1'/>" * 5000
    parse_xml(f"<d>{padding}<x {few}/>{others}</d>".encode())
    for crowded in (f"<x {many}/>", f"<x {many}>", f"<x\n{many.replace(chr(39), chr(34))} />"):
        with pytest.raises(XmlRefused, match="more than 256 attributes"):
            parse_xml(f"<d>{padding}{crowded}</d>".encode())
    text = " ".join(f"a{n}='1'" for n in range(5000))
    parse_xml(f"<d>{padding}{text}<!-- {text} --></d>".encode())


def test_the_command_line_of_a_qemu_is_kept_only_as_far_as_it_can_be_true_and_shown(parts: Components) -> None:
    extent = ExtentPlan("dimm0", "p", 4096, 4096, "none", ((-1, 4096),))
    parts.ledger.reserve(Plan(UUID, "a", (extent,)), {"dimm0": Path("/nowhere")}, {("p", -1): 1 << 30})

    async def story() -> None:
        for number in range(1000):
            await parts.guest_events.qemu_event(UUID, "MEM_UNPLUG_ERROR", {"device": f"dimm{number}" + "x" * 1000})
        await parts.guest_events.qemu_event(UUID, "MEM_UNPLUG_ERROR", {"device": "dimm0"})
        await parts.guest_events.qemu_event(
            UUID, "MEMORY_FAILURE", {"recipient": "\ud800\x9b" + "x" * 1_000_000, "action": {}}
        )

    asyncio.run(story())
    assert parts.device_operations._refused == {(UUID, "dimm0")}
    (failure,) = parts.ledger.failures()
    assert len(failure.what) < 300
    assert failure.what.isprintable()
