# SPDX-License-Identifier: GPL-2.0-or-later
"""Recognize a rewritten domain whose request for pool memory was removed, and put back what was lost.

Another tool that redefines a domain may leave out metadata that it does not know, or somebody removes them with
``virsh metadata --remove``. The domain then has the memory backing that ``apply`` wrote, and does not ask for pool
memory: it would be a file on a disk. What shows that it was rewritten:

* the second monitor: nobody else writes these arguments;
* ``<memoryBacking>`` as ``apply`` writes it, of a domain that is remembered: others write the same.

A request may also be there without what it replaced: ``virsh metadata --set``, with another pool, puts a new one in
the place of ours. Such a domain starts, on that pool, and only undoing it needs what is remembered.

``request_in`` returns what is to be remembered of a rewritten domain: the request with all that it replaced.
"""

from __future__ import annotations

import enum

from lxml import etree

from virt_dmem.domain_xml.edit import insert, lay_out, remove
from virt_dmem.domain_xml.elements import (
    MEMORY,
    NAMESPACE,
    ensure_request,
    find_request,
    is_backed_by_files,
    parse_domain,
)
from virt_dmem.domain_xml.fields import find_child
from virt_dmem.domain_xml.monitor import has_monitor, is_monitored, remove_monitor
from virt_dmem.domain_xml.parse import XmlRefused, parse_xml, print_xml

__all__ = ["Trace", "find_trace", "has_record", "put_back", "remove_traces", "request_in"]

_WRITTEN = {"source": {"type": "file"}, "access": {"mode": "shared"}, "allocation": {"mode": "ondemand"}}


class Trace(enum.Enum):
    """Say what is left of a rewrite in a domain without its request."""

    NONE = ""
    BACKING = "memory backing"
    """A trace only if the domain is remembered."""
    MONITOR = "monitor"
    """The monitor, and the memory backing."""
    MONITOR_ALONE = "monitor alone"
    """Somebody gave the domain another memory backing since: it starts, and not on a file."""
    NEW_REQUEST = "new request"
    """Not of a domain without a request: somebody put another one in the place of that of the rewrite."""


def find_trace(xml: bytes) -> Trace:
    """Return what a domain XML has of a rewrite whose request is gone; a scan of the bytes where it has nothing.

    :raise DomainXmlInvalid: When it may have some, and is no domain XML.
    """
    monitored = has_monitor(xml)
    if not monitored and b"ondemand" not in xml:
        return Trace.NONE
    root = parse_domain(xml)
    request, backed = find_request(root), is_backed_by_files(root)
    monitored = monitored and is_monitored(root)
    if request is not None:
        return Trace.NEW_REQUEST if (backed or monitored) and _record(request) is None else Trace.NONE
    if monitored:
        return Trace.MONITOR if backed else Trace.MONITOR_ALONE
    return Trace.BACKING if backed else Trace.NONE


def request_in(root: etree._Element) -> bytes:
    """Return the request in a ``<domain>`` with all that it keeps; empty without one."""
    request = find_request(root)
    return b"" if request is None else etree.tostring(request, with_tail=False)


def has_record(request: bytes) -> bool:
    """Return whether a request says what it replaced, as one of a rewritten domain does."""
    remembered = _parsed(request)
    return remembered is not None and _record(remembered) is not None


def put_back(xml: bytes, request: bytes) -> bytes:
    """Return a domain XML with a remembered request put back where it was removed; else as it is.

    A new request stays, and only gets what the remembered one replaced.

    :raise DomainXmlInvalid: When it is no domain XML.
    """
    root, remembered = parse_domain(xml), _parsed(request)
    if remembered is None:
        return xml
    if (there := find_request(root)) is not None:
        record = _record(remembered)
        if record is None or _record(there) is not None:
            return xml
        insert(there, record, there[-1] if len(there) else None)
        lay_out(there)
        return print_xml(root.getroottree(), xml)
    added: list[str] = []
    place = ensure_request(root, added)
    parent = place.getparent()
    record = _record(remembered)
    if parent is not None:
        remembered.tail = place.tail
        parent.replace(place, remembered)
    if record is not None and "metadata" in added and "metadata" not in (record.get("added") or "").split():
        record.set("added", f"metadata {record.get('added', '')}".strip())
    return print_xml(root.getroottree(), xml)


def _parsed(request: bytes) -> etree._Element | None:
    try:
        found = parse_xml(request).getroot()
    except XmlRefused:
        return None
    return found if found.tag == MEMORY else None


def _record(request: etree._Element) -> etree._Element | None:
    return find_child(request, f"{{{NAMESPACE}}}replaced")


def remove_traces(xml: bytes) -> bytes:
    """Return the XML of a domain that is not remembered without the monitor, and without the memory backing.

    What was there before is not known: without ``<memoryBacking>`` it gets ordinary memory.

    :raise DomainXmlInvalid: When it is no domain XML.
    """
    root = parse_domain(xml)
    remove_monitor(root, ["commandline"])
    backing = find_child(root, "memoryBacking")
    if backing is not None and is_backed_by_files(root):
        for child in [child for child in backing if _WRITTEN.get(str(child.tag)) == dict(child.attrib)]:
            backing.remove(child)
        if len(backing):
            lay_out(backing)
        else:
            remove(backing)
    metadata = find_child(root, "metadata")
    if metadata is not None and not len(metadata):  # 'virsh metadata --remove' leaves it
        remove(metadata)
    return print_xml(root.getroottree(), xml)
