# SPDX-License-Identifier: GPL-2.0-or-later
"""XML in and out: untrusted bytes to a tree without side effects, and the tree back to bytes."""

from __future__ import annotations

import re

from lxml import etree

__all__ = ["parse_xml", "print_xml", "XmlRefused", "MAX_XML_BYTES"]

MAX_XML_BYTES = 4 * 1024 * 1024
"""More than this libvirt itself does not take (its RPC limit for one string)."""

# Atomic groups: a hostile prolog must not make the match slow.
_DOCTYPE = re.compile(rb"(?:\s++|(?><\?.*?\?>)|(?><!--.*?-->))*+<!DOCTYPE", re.DOTALL)
_MOST_ATTRIBUTES = 256
_CROWDED = re.compile(
    rb"<[^\s<>/!?][^\s<>/]*+(?:\s++[^\s<>=]++\s*+=\s*+(?:\"[^\"<]*+\"|'[^'<]*+')){%d}" % (_MOST_ATTRIBUTES + 1)
)
"""libxml2 before 2.12 compares each attribute with all others of its element: 40 000 of them take it 30 s."""
_FEW_BYTES = 16 * 1024
"""What is shorter has not enough attributes to matter."""
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


class XmlRefused(ValueError):
    """The bytes are no XML, or XML that is not read for safety; says why in a few words."""


def _plain(xml: bytes) -> bytes:
    """Return ``xml`` such that ASCII can be looked for in it, in UTF-16 and UTF-32 too."""
    for mark in _BYTE_ORDER_MARKS:
        xml = xml.removeprefix(mark)
    return xml.replace(b"\0", b"")


def parse_xml(xml: bytes) -> etree._ElementTree:
    """Parse ``xml`` without entities, DTD, network or unlimited growth; comments and white space are kept.

    :raise XmlRefused: When it is not well-formed, has a DOCTYPE, is larger than ``MAX_XML_BYTES``, or crowded.
    """
    if len(xml) > MAX_XML_BYTES:
        raise XmlRefused(f"it has {len(xml)} bytes, more than the {MAX_XML_BYTES} that libvirt takes")
    plain = _plain(xml)
    if _DOCTYPE.match(plain):
        raise XmlRefused("it has a DOCTYPE")
    if len(plain) > _FEW_BYTES and _CROWDED.search(plain):
        raise XmlRefused(f"it has an element with more than {_MOST_ATTRIBUTES} attributes")
    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False, strip_cdata=False
    )
    try:
        root = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        raise XmlRefused(" ".join((error.msg or "it is empty").split())) from error
    tree = root.getroottree()
    # The scan above knows the encodings that a Linux host meets; this holds for all.
    if tree.docinfo.doctype:
        raise XmlRefused("it has a DOCTYPE")
    return tree


def print_xml(tree: etree._ElementTree, like: bytes) -> bytes:
    """Return ``tree`` as UTF-8, with an XML declaration and a last newline if ``like`` has them."""
    plain = _plain(like)
    declared = re.match(rb"<\?xml\s", plain) is not None
    # lxml says False where the declaration does not say; 'no' means the same as nothing.
    standalone = True if declared and tree.docinfo.standalone else None
    printed = etree.tostring(tree, encoding="UTF-8", xml_declaration=declared, standalone=standalone)
    return printed.rstrip(b"\n") + (b"\n" if plain.endswith(b"\n") else b"")
