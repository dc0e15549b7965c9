# SPDX-License-Identifier: GPL-2.0-or-later
"""Find and compare the domain XML in ``tests/unit/golden``.

``VIRT_DMEM_REGENERATE=1 pytest tests/unit/domain_xml/test_rewrite.py`` writes ``golden/*-out.xml`` anew from
what the code does now; look at the difference before you keep it.

``golden/libvirt`` is recorded: what libvirt 9.0 printed (``dumpxml --inactive --security-info``) after it had
defined the golden input (``NAME-before.xml``) and output (``NAME-applied.xml``), with type qemu and libvirt's own
CPU model. ``VIRT_DMEM_REGENERATE=1 pytest tests/libvirt/test_golden.py`` records anew.
"""

from __future__ import annotations

from lxml import etree

from tests.rig.repository import REPOSITORY

__all__ = ["GOLDEN", "as_libvirt_reads_it", "canonical", "without_blanks"]

GOLDEN = REPOSITORY / "tests/unit/golden"


def canonical(xml: bytes) -> bytes:
    """Return the document in canonical form, which has to be the same after apply and unapply."""
    return etree.tostring(etree.fromstring(xml).getroottree(), method="c14n", with_comments=True)


def without_blanks(xml: bytes) -> bytes:
    """Return the document without text that consists of blanks only."""
    root = etree.fromstring(xml)
    for element in root.iter():
        element.text = element.text if (element.text or "").strip() else None
        element.tail = element.tail if (element.tail or "").strip() else None
    return etree.tostring(root, method="c14n")


def as_libvirt_reads_it(xml: bytes) -> bytes:
    """Return the document without what libvirt ignores: blanks, comments, order in <memoryBacking> and <source>."""
    root = etree.fromstring(without_blanks(xml), etree.XMLParser(remove_comments=True))
    for parent in (*root.iterfind("memoryBacking"), *root.iterfind("devices/memory/source")):
        parent[:] = sorted(parent, key=lambda element: element.tag)
    return etree.tostring(root, method="c14n")
