# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the values in libvirt's XML as libvirt does: sizes with units, node sets, elements that occur once."""

from __future__ import annotations

import re
import uuid

from lxml import etree

from virt_dmem.errors import DomainXmlInvalid
from virt_dmem.text import clipped
from virt_dmem.units import KIB, round_up

__all__ = [
    "find_child",
    "text_of",
    "read_number",
    "read_size",
    "read_nodeset",
    "read_name",
    "read_uuid_of",
    "DUMPXML",
    "LONGEST_NAME",
    "MAX_BYTES",
]

DUMPXML = "Give what 'virsh dumpxml --inactive --security-info DOMAIN' prints."
"""The hint for XML that libvirt would never have printed."""

MAX_BYTES = 2**63 - 1
"""The most memory that libvirt accepts (``virMemoryMaxValue`` in its virutil.c: off_t)."""
_MAX_NUMBER = 2**64 - 1
"""The largest number that libvirt reads (``virStrToLong_ull``)."""
LONGEST_NAME = 251
"""In bytes: libvirt has a file ``NAME.xml`` of each domain, and file names end at 255 bytes."""
_LONGEST_NODESET = 8192
"""libvirt prints any set of 1024 nodes in fewer characters."""
_MAX_NODE = 1023  # the kernel's largest CONFIG_NODES_SHIFT is 10


def find_child(parent: etree._Element | None, *path: str) -> etree._Element | None:
    """Return the element at ``path`` below ``parent``, None where there is none.

    :raise DomainXmlInvalid: When one of the steps occurs twice: libvirt would reject that as well.
    """
    for step in path:
        found = [] if parent is None else parent.findall(step)
        if len(found) > 1:
            raise DomainXmlInvalid(
                f"The domain XML has {len(found)} elements '{etree.QName(step).localname}', and may have one.",
                hint=DUMPXML,
            )
        parent = found[0] if found else None
    return parent


def text_of(element: etree._Element | None) -> str:
    """Return the text in ``element``, also around comments; empty where there is no such element."""
    return "" if element is None else str(element.xpath("string()"))


def read_number(text: str | None, what: str) -> int:
    """Return ``text`` as an unsigned number of 64 bits; ``what`` names it in the error.

    :raise DomainXmlInvalid: When it is not such a number.
    """
    match = None if text is None else re.fullmatch(r"0*(\d{1,20})", text.strip(), re.ASCII)
    # without leading zeros: Python refuses to read more than 4300 digits
    if match is None or int(match[1]) > _MAX_NUMBER:
        raise DomainXmlInvalid(f"The domain XML has {_shown(text)} as {what}.", hint=DUMPXML)
    return int(match[1])


def read_size(text: str | None, unit: str | None) -> int:
    """Return bytes, in whole KiB rounded up; units as virScaleInteger() reads them, KiB where none is given.

    :raise DomainXmlInvalid: When the number or the unit is invalid.
    """
    value, suffix = read_number(text, "memory size"), (unit or "KiB").lower()
    if suffix in ("b", "byte", "bytes"):
        factor = 1
    elif match := re.fullmatch(r"([kmgtpe])(|b|ib)", suffix):
        factor = (1000 if match[2] == "b" else 1024) ** ("kmgtpe".index(match[1]) + 1)
    else:
        raise DomainXmlInvalid(f"The domain XML has an unknown unit {_shown(unit)}.", hint=DUMPXML)
    if value * factor >= MAX_BYTES:
        raise DomainXmlInvalid(
            f"The domain XML has a memory size of {value} {unit or 'KiB'}, more than libvirt's {MAX_BYTES} bytes.",
            hint=DUMPXML,
        )
    return round_up(value * factor, KIB)


def read_nodeset(text: str) -> tuple[int, ...]:
    """Return the nodes of a set such as ``0-3,^2,7``, ascending: later parts win, as in virBitmapParse().

    :raise DomainXmlInvalid: When it is invalid, or names a node that no kernel can have.
    """
    if len(text) > _LONGEST_NODESET:
        raise DomainXmlInvalid(f"The domain XML has a nodeset of {len(text)} characters.", hint=DUMPXML)
    nodes = 0  # a bit for each: there may be many parts, and all may be large
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\^?)\s*(\d{1,5})(?:\s*-\s*(\d{1,5}))?", part, re.ASCII)
        first, last = (int(match[2]), int(match[3] or match[2])) if match else (1, 0)
        if match is None or not first <= last <= _MAX_NODE or (match[1] and match[3]):
            raise DomainXmlInvalid(f"The domain XML has an unreadable nodeset {_shown(text)}.", hint=DUMPXML)
        named = ((1 << (last - first + 1)) - 1) << first
        nodes = nodes & ~named if match[1] else nodes | named
    return tuple(node for node in range(nodes.bit_length()) if nodes >> node & 1)


def read_name(root: etree._Element) -> str:
    """Return the domain's name.

    :raise DomainXmlInvalid: When there is none, or one that libvirt would reject.
    """
    name = text_of(find_child(root, "name"))
    if not name.strip() or "/" in name or "\n" in name or len(name.encode()) > LONGEST_NAME:
        raise DomainXmlInvalid(f"The domain XML has the invalid name {_shown(name)}.", hint=DUMPXML)
    return name


def read_uuid_of(root: etree._Element) -> str:
    """Return the domain's UUID in canonical form.

    :raise DomainXmlInvalid: When there is none.
    """
    text = text_of(find_child(root, "uuid"))
    try:
        return str(uuid.UUID(text.strip()))
    except ValueError:
        raise DomainXmlInvalid(f"The domain XML has the UUID {_shown(text)}.", hint=DUMPXML) from None


def _shown(text: str | None) -> str:
    """Return a text, which may be as long as the document, clipped for an error message."""
    return "nothing" if text is None else repr(clipped(text, 80))
