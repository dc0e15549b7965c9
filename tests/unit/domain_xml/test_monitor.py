# SPDX-License-Identifier: GPL-2.0-or-later
"""The second QMP monitor of rewritten domains."""

from __future__ import annotations

import re

from tests.rig.golden import GOLDEN, canonical
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.rewrite import apply, unapply
from virt_dmem.units import parse_size

MAX = parse_size("64G")


def golden(case: str) -> bytes:
    return (GOLDEN / f"{case}-in.xml").read_bytes()


def with_acpi(xml: bytes) -> bytes:
    if b"<features>" in xml:
        return xml
    return re.sub(rb"</os>", b"</os><features><acpi/></features>", xml, count=1)


PLAIN = with_acpi(golden("plain"))


def test_a_copy_of_a_domain_is_given_a_monitor_of_its_own() -> None:
    rewritten = apply(PLAIN, monitor=True)
    uuid = read_domain(rewritten).uuid.encode()
    other = b"00000000-1111-2222-3333-444444444444"
    copy = rewritten.replace(b"<uuid>" + uuid, b"<uuid>" + other)
    assert not read_domain(copy).applied
    again = apply(copy)
    assert read_domain(again).applied
    assert uuid not in again
    assert again == rewritten.replace(uuid, other)


def test_that_no_monitor_is_wanted_is_remembered_until_unapply() -> None:
    without = apply(PLAIN, monitor=False)
    assert apply(without, monitor=True) == without
    assert b"commandline" not in apply(without, monitor=True, hotplug_max=MAX)
    assert canonical(unapply(without)) == canonical(PLAIN)
    assert b"commandline" not in apply(apply(PLAIN, monitor=True), monitor=False)


def test_a_domain_without_a_uuid_is_applied_without_a_monitor() -> None:
    nameless = re.sub(rb"\s*<uuid>.*</uuid>", b"", PLAIN)
    assert apply(nameless, monitor=True) == apply(nameless)


def test_a_rewritten_template_without_its_uuid_is_rewritten_anew_without_a_monitor() -> None:
    template = re.sub(rb"\s*<uuid>.*</uuid>", b"", apply(PLAIN, monitor=True))
    assert b"commandline" not in apply(template, monitor=True)
