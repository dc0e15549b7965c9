# SPDX-License-Identifier: GPL-2.0-or-later
"""The elements of a domain XML that decide whether, and from which pool, its memory comes from a pool."""

from __future__ import annotations

import re

from lxml import etree

from virt_dmem.domain_xml.edit import insert, last_of, lay_out
from virt_dmem.domain_xml.fields import DUMPXML, find_child
from virt_dmem.domain_xml.memory_backends import PLACED_MODELS, default_ram_id, refuse_too_many
from virt_dmem.domain_xml.monitor import another_domains
from virt_dmem.domain_xml.parse import XmlRefused, parse_xml
from virt_dmem.domain_xml.qemu.guest_ram import brought_along
from virt_dmem.errors import DomainRefused, DomainXmlInvalid
from virt_dmem.pool_name import POOL_NAME
from virt_dmem.text import clipped

__all__ = [
    "BEFORE_METADATA",
    "MEMORY",
    "NAMESPACE",
    "NOT_REWRITTEN",
    "parse_domain",
    "find_request",
    "may_ask",
    "unknown_request",
    "ensure_request",
    "is_backed_by_files",
    "requested_pool",
    "is_rewritten",
    "what_it_lacks",
    "is_file_backed",
    "is_locked",
    "follows_numad",
    "refuse_unsupported",
]

NAMESPACE = "https://virt-dmem.dev/xmlns/domain/1.0"
MEMORY = f"{{{NAMESPACE}}}memory"
"""The name of a request."""
_RECORD = f"{{{NAMESPACE}}}replaced"
"""In a request of a rewritten domain: what was replaced."""
_ALIKE = re.compile(r"virt.?dmem|\bdmem\b", re.ASCII | re.IGNORECASE)
"""In every namespace that somebody may have taken for that of requests."""
NOT_REWRITTEN = "is not rewritten"
"""Of XML that says nothing of its memory's kind: other reasons are another tool's, or a copy's."""
BEFORE_METADATA = ("name", "uuid", "genid", "title", "description")
"""The elements behind the last of which libvirt prints ``<metadata>``."""


def parse_domain(xml: bytes) -> etree._Element:
    """Return the ``<domain>`` element.

    :raise DomainXmlInvalid: When ``xml`` is not safely readable XML, or its root is another element.
    """
    try:
        root = parse_xml(xml).getroot()
    except XmlRefused as refusal:
        raise DomainXmlInvalid(f"The domain XML cannot be read: {refusal}.", hint=DUMPXML) from refusal
    if root.tag != "domain":
        raise DomainXmlInvalid(f"The root element of the XML is {str(root.tag)!r}, not 'domain'.", hint=DUMPXML)
    return root


def find_request(root: etree._Element) -> etree._Element | None:
    """Return ``<dmem:memory>`` of the domain's metadata, the request for memory from a pool."""
    return find_child(root, "metadata", MEMORY)


def may_ask(xml: bytes) -> bool:
    """Return whether a domain XML may have something of virt-dmem's in its metadata; a scan of the bytes."""
    return b"dmem" in xml.lower()


def unknown_request(root: etree._Element) -> DomainRefused | None:
    """Return the refusal of what only looks like a request: another element, or another namespace."""
    metadata = find_child(root, "metadata")
    if metadata is None or find_request(root) is not None:
        return None
    for child in metadata.iterchildren("{*}*"):
        name = etree.QName(child)
        if name.namespace == NAMESPACE:
            what, instead = (
                f"<{clipped(name.localname, 80)}> of virt-dmem",
                "Write <memory> for it, in the same namespace",
            )
        elif _ALIKE.search(str(name.namespace)):
            what = f"<{clipped(name.localname, 80)}> of the namespace {clipped(str(name.namespace), 80)!r}"
            instead = f"Its namespace is '{NAMESPACE}': write that"
        else:
            continue
        return DomainRefused(
            f"The metadata of the domain have {what}, which is no request for pool memory: it gets ordinary"
            " memory.",
            hint=f"{instead}, or remove it.",
        )
    return None


def _require_understood(request: etree._Element) -> None:
    """Reject a request with something that may be a wish, and is none that virt-dmem knows: a misspelt pool.

    Attributes and elements of others' namespaces are theirs.
    """
    if text := "".join(request.xpath("text()")).strip():
        raise DomainRefused(
            f"The domain's request for pool memory has the text '{clipped(text, 80)}', which has no meaning there.",
            hint="Name the pool in the attribute: pool='NAME'.",
        )
    for name in map(etree.QName, request.attrib):
        if name.text != "pool" and name.namespace in (None, NAMESPACE):
            what = f"the attribute '{clipped(name.localname, 80)}'"
            what += "" if name.namespace is None else " in virt-dmem's namespace"
            break
    else:
        unknown = (
            name
            for name in map(etree.QName, request.iterchildren("*"))
            if name.text != _RECORD and name.namespace in (None, NAMESPACE)
        )
        if (element := next(unknown, None)) is None:
            return
        what = f"the element <{clipped(element.localname, 80)}>"
    raise DomainRefused(
        f"The domain's request for pool memory has {what}, which virt-dmem does not know.",
        hint="A request has one attribute, pool='NAME', without a prefix, and no elements but those that"
        " 'virt-dmem apply' writes.",
    )


def ensure_request(root: etree._Element, added: list[str]) -> etree._Element:
    """Return the request, inserted where there is none; what of it was missing is noted in ``added``."""
    metadata = find_child(root, "metadata")
    if metadata is None:
        metadata = etree.Element("metadata")
        insert(root, metadata, last_of(root, *BEFORE_METADATA))
        added.append("metadata")
    request = find_child(metadata, MEMORY)
    if request is None:
        request = etree.Element(MEMORY, nsmap={"dmem": NAMESPACE})
        insert(metadata, request, metadata[-1] if len(metadata) else None)
        added.append("memory")
    if "metadata" in added:
        lay_out(metadata)
    return request


def requested_pool(root: etree._Element) -> str:
    """Return the name of the requested pool; empty: the default pool, or no request.

    :raise DomainRefused: When no pool can have that name, or the request has anything that is not known.
    """
    request = find_request(root)
    if request is None:
        return ""
    _require_understood(request)
    pool = request.get("pool", "")
    if pool and not POOL_NAME.fullmatch(pool):
        raise DomainRefused(
            f"The domain asks for memory of pool {clipped(pool, 80)!r}, which is not a valid name of a pool.",
            hint="Name one that 'virt-dmem pool list' shows, or none for the default pool.",
        )
    return pool


def is_backed_by_files(root: etree._Element) -> bool:
    """Return whether ``<memoryBacking>`` is as ``apply`` writes it: shared files, without prefaulting."""
    return _is_of_shared_files(root) and _backing_value(root, "allocation", "mode") == "ondemand"


def is_rewritten(root: etree._Element) -> bool:
    """Return whether libvirt would back all memory by shared files, without prefaulting, on named host nodes."""
    return is_file_backed(root) and is_backed_by_files(root)


def is_file_backed(root: etree._Element) -> bool:
    """Return whether libvirt would back all memory by shared files on named host nodes.

    QEMU can be started so, whoever wrote it: with ``immediate`` allocation it finds nothing to populate.
    """
    return not what_it_lacks(root)


def what_it_lacks(root: etree._Element) -> str:
    """Return why a domain cannot start on shared files, to continue a sentence about its XML; empty: it can."""
    if (other := another_domains(root)) is not None:
        return f"was rewritten for another domain ({other}), from which it was copied"
    if not _is_of_shared_files(root):
        if find_child(find_request(root), _RECORD) is None:
            return NOT_REWRITTEN
        return "has another <memoryBacking> now than it was rewritten with"
    if any(_is_private(cell, "memAccess") for cell in root.iterfind("cpu/numa/cell")):
        return "has a guest NUMA cell with private memory"
    if any(
        _is_private(device, "access") or device.find("source/pagesize") is not None
        for device in root.iterfind("devices/memory")
        if device.get("model") in PLACED_MODELS
    ):
        return "has a memory device with private memory, or with a page size of its own"
    return "leaves the choice of host nodes to numad" if follows_numad(root) else ""


def _is_of_shared_files(root: etree._Element) -> bool:
    return (
        find_child(root, "memoryBacking", "hugepages") is None
        and _backing_value(root, "source", "type") == "file"
        and _backing_value(root, "access", "mode") == "shared"
    )


def _backing_value(root: etree._Element, element: str, attribute: str) -> str | None:
    found = find_child(root, "memoryBacking", element)
    return None if found is None else found.get(attribute)


def is_locked(root: etree._Element) -> bool:
    """Return whether QEMU is to lock all its memory."""
    return find_child(root, "memoryBacking", "locked") is not None


def follows_numad(root: etree._Element) -> bool:
    """Return whether numad chooses the host nodes (virDomainNumatuneParseXML() and virDomainNumatuneSet())."""
    memory = find_child(root, "numatune", "memory")
    vcpu = find_child(root, "vcpu")
    vcpu_is_auto = vcpu is not None and vcpu.get("placement") == "auto"
    if memory is None:
        return vcpu_is_auto
    if memory.get("placement") is None:
        return vcpu_is_auto and memory.get("nodeset") is None
    return memory.get("placement") == "auto"


def refuse_unsupported(root: etree._Element) -> None:
    """Refuse domains whose memory cannot come from any pool.

    :raise DomainRefused: Names the obstacle and what to change.
    """
    if root.get("type") not in ("kvm", "qemu"):
        raise DomainRefused(
            f"The domain is of type {root.get('type')!r}, not 'kvm' or 'qemu'.",
            hint="Only QEMU guests can have memory from a pool; leave this domain as it is.",
        )
    refuse_too_many(root)
    security = find_child(root, "launchSecurity")
    if security is not None:
        raise DomainRefused(
            f"The domain has encrypted or protected memory (launchSecurity {security.get('type', '')!r}).",
            hint="Memory that the host may not share cannot come from a pool; leave this domain as it is.",
        )
    for index, cell in enumerate(root.iterfind("cpu/numa/cell")):
        if _is_private(cell, "memAccess"):
            raise DomainRefused(
                f"Cell {cell.get('id', str(index))} of the domain has private memory (memAccess='private'), and "
                "the memory of a pool is a shared file.",
                hint="Remove memAccess='private' from that cell, or leave this domain as it is.",
            )
    if brought := brought_along(root, default_ram_id(root)):
        raise DomainRefused(
            f"The guest's memory would not be that of a pool, but its own: {'; '.join(brought)}.",
            hint="Remove that from <qemu:commandline> and <qemu:override>, and describe memory by libvirt's own"
            " elements; or leave this domain as it is.",
        )
    requested_pool(root)


def _is_private(element: etree._Element, attribute: str) -> bool:
    return element.get(attribute, "").strip() == "private"
