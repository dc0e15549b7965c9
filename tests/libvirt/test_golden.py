# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare a real libvirt's XML of golden domains; VIRT_DMEM_REGENERATE=1 records it for the unit tests."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rig.golden import GOLDEN, as_libvirt_reads_it
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.rewrite import apply, unapply

if TYPE_CHECKING:
    from tests.rig.private_libvirt import PrivateLibvirt

RECORDED = GOLDEN / "libvirt"
# Those that this QEMU runs, and in UTF-8: libvirt reads UTF-8 whatever is declared.
CASES = sorted(
    file.name.removesuffix("-in.xml")
    for file in GOLDEN.glob("*-in.xml")
    if b"x86_64" in file.read_bytes() and b"ISO-8859" not in file.read_bytes()
)


def printed_by(libvirtd: PrivateLibvirt, xml: bytes, scratch: Path) -> bytes:
    """Return libvirt's XML of a domain, without what depends on the machine's CPU."""
    emulated = re.sub(rb"<cpu mode=[^>]*>", b"<cpu>", re.sub(rb"type=(.)kvm.", rb"type=\1qemu\1", xml, count=1))
    libvirtd.remove()
    file = scratch / "domain.xml"
    file.write_bytes(emulated)
    libvirtd.virsh("define", file)
    (uuid,) = libvirtd.virsh("list", "--all", "--uuid").split()
    return libvirtd.virsh("dumpxml", "--inactive", "--security-info", uuid).encode() + b"\n"


@pytest.mark.parametrize("case", CASES)
def test_what_libvirt_makes_of_our_output_is_applied_to_nothing_changed(
    libvirtd: PrivateLibvirt, case: str, tmp_path: Path
) -> None:
    source = (GOLDEN / f"{case}-in.xml").read_bytes()
    before = printed_by(libvirtd, source, tmp_path)
    for xml in (source, before):
        applied = printed_by(libvirtd, apply(xml), tmp_path)
        assert read_domain(applied).applied
        assert apply(applied) == applied
        undone = printed_by(libvirtd, unapply(applied), tmp_path)
        assert as_libvirt_reads_it(undone) == as_libvirt_reads_it(before)
        if os.environ.get("VIRT_DMEM_REGENERATE") and xml is source and case != "numad-vcpu":  # gains <numatune>
            (RECORDED / f"{case}-before.xml").write_bytes(before)
            (RECORDED / f"{case}-applied.xml").write_bytes(applied)
