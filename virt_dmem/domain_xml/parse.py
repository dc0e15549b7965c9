# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse untrusted XML without side effects, and print it again."""

from __future__ import annotations

import re

from lxml import etree

__all__ = ["parse_xml", "print_xml", "XmlRefused", "MAX_XML_BYTES"]

MAX_XML_BYTES = 4 * 1024 * 1024
"""The most that libvirt itself accepts (its RPC limit for one string)."""

# Atomic groups: a hostile prolog must not make the match slow.
_DOCTYPE = re.compile(rb"(?:\s++|(?><\?.*?\?>)|(?><!--.*?-->))*+<!DOCTYPE", re.DOTALL)
_MOST_ATTRIBUTES = 256
_CROWDED = re.compile(
    rb"<[^\s<>/!?][^\s<>/]*+(?:\s++[^\s<>=]++\s*+=\s*+(?:\"[^\"<]*+\"|'[^'<]*+')){%d}" % (_MOST_ATTRIBUTES + 1)
)
"""libxml2 before 2.12 compares each attribute with all others of its element: for 40 000 that takes 30 s."""
_FEW_BYTES = 16 * 1024
"""A shorter document cannot have enough attributes to matter."""
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


class XmlRefused(ValueError):
    """The bytes are not XML, or XML that is rejected for safety; gives the reason in a few words."""


def _plain(xml: bytes) -> bytes:
    """Return ``xml`` in a form that can be searched for ASCII, also of UTF-16 and UTF-32."""
    for mark in _BYTE_ORDER_MARKS:
        xml = xml.removeprefix(mark)
    return xml.replace(b"\0", b"")


def parse_xml(xml: bytes) -> etree._ElementTree:
    """Parse ``xml`` without entities, DTD, network or unlimited growth; comments and white space are kept.

    :raise XmlRefused: When it is not well-formed, has a DOCTYPE, is larger than ``MAX_XML_BYTES``, or crowded.
    """
    if len(xml) > MAX_XML_BYTES:
        raise XmlRefused(f"it has {len(xml)} bytes, more than the {MAX_XML_BYTES} that libvirt accepts")
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
    # The scan above covers the encodings in use on Linux hosts; this one covers all.
    if tree.docinfo.doctype:
        raise XmlRefused("it has a DOCTYPE")
    return tree


def print_xml(tree: etree._ElementTree, like: bytes) -> bytes:
    """Return ``tree`` as UTF-8, with an XML declaration and a last newline if ``like`` has them."""
    plain = _plain(like)
    declared = re.match(rb"<\?xml\s", plain) is not None
    # lxml reports False where the declaration has none; 'no' means the same as none.
    standalone = True if declared and tree.docinfo.standalone else None
    printed = etree.tostring(tree, encoding="UTF-8", xml_declaration=declared, standalone=standalone)
    return printed.rstrip(b"\n") + (b"\n" if plain.endswith(b"\n") else b"")
