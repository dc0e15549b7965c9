# SPDX-License-Identifier: GPL-2.0-or-later
"""What a domain XML says about the memory of its domain.

Only reading, and no look at the host: the same bytes always give the same answer. ``rewrite.py`` changes XML.
"""

from __future__ import annotations

from dataclasses import dataclass

from lxml import etree

from virt_dmem.domain_xml.fields import DUMPXML, find_child, read_name, read_number, read_uuid_of
from virt_dmem.domain_xml.memory_backends import (
    PLACED_MODELS,
    Cell,
    machine_without_name,
    memory_backends,
    refuse_too_many,
)
from virt_dmem.domain_xml.monitor import is_another_domains
from virt_dmem.domain_xml.parse import XmlRefused, parse_xml
from virt_dmem.domain_xml.pinning import Obstacle, cannot_pin, obstacles
from virt_dmem.errors import DomainRefused, DomainXmlInvalid
from virt_dmem.pool_name import POOL_NAME
from virt_dmem.text import clipped
from virt_dmem.units import KIB, MIB, round_up

__all__ = [
    "NAMESPACE",
    "Cell",
    "DomainMemory",
    "read_domain",
    "read_uuid",
    "is_managed",
    "require_whole_pages",
    "require_possible",
    "memory_not_lockable",
    "parse_domain",
    "refuse_unsupported",
    "find_child",
    "find_request",
    "is_rewritten",
    "is_locked",
    "follows_numad",
]

NAMESPACE = "https://virt-dmem.dev/xmlns/domain/1.0"

_MOST_TOLD = 32
"""So many obstacles at most are kept of a domain: one is enough to refuse it."""


@dataclass(frozen=True)
class DomainMemory:
    """The memory of one domain at start, and how far it is ours."""

    uuid: str
    """In canonical form, whatever form the XML has."""
    name: str
    pool: str
    """Empty: the default pool."""
    cells: tuple[Cell, ...]
    managed: bool
    """The domain asks for pool memory: our ``<dmem:memory>`` is in its metadata."""
    applied: bool
    """Its memory backends are shared files without prefaulting, and not ``<hugepages>``."""
    dac_user: str | None
    """Of the dac label as libvirt wrote it: ``+64055`` is a number, anything else may be a name."""
    dac_group: str | None
    selinux_imagelabel: str | None
    domain_id: int | None
    """Only in the XML of a running or starting domain."""
    locked: bool = False
    """``<locked/>``: QEMU is to lock its memory, so that the host never swaps it."""
    apparmor_label: str | None = None
    """The profile that QEMU is to run under; only in the XML of a running or starting domain."""
    obstacles: tuple[Obstacle, ...] = ()
    """What of it cannot work on memory without struct pages."""

    @property
    def total_bytes(self) -> int:
        """All memory at start, with all that virtio-mem may plug."""
        return sum(cell.size_bytes for cell in self.cells)


def read_domain(xml: bytes) -> DomainMemory:
    """Return what ``xml``, as libvirt printed it (persistent, live, or on a hook's stdin), says.

    :raise DomainXmlInvalid: When it is no domain XML, or none that came from libvirt.
    :raise DomainRefused: When memory of such a domain cannot come from a pool.
    """
    root = parse_domain(xml)
    refuse_unsupported(root)
    request, cells = find_request(root), memory_backends(root)
    if not all(cell.alias for cell in cells):
        raise machine_without_name(root)
    if len({cell.alias for cell in cells}) < len(cells):
        raise DomainXmlInvalid("The domain XML gives two memory devices the same alias or slot.", hint=DUMPXML)
    dac_user, dac_group = _dac_label(root)
    return DomainMemory(
        uuid=read_uuid_of(root),
        name=read_name(root),
        pool=_pool(request),
        cells=cells,
        managed=request is not None,
        applied=is_rewritten(root) and request is not None,
        dac_user=dac_user,
        dac_group=dac_group,
        selinux_imagelabel=_label(root, "selinux", "imagelabel"),
        domain_id=read_number(root.get("id"), "domain id") if root.get("id") else None,
        locked=is_locked(root),
        apparmor_label=_label(root, "apparmor", "label"),
        obstacles=obstacles(root)[:_MOST_TOLD],
    )


def is_managed(xml: bytes) -> bool:
    """Whether the domain asks for pool memory; costs one scan of the bytes where it does not.

    :raise DomainXmlInvalid: When our namespace occurs in something that is no domain XML.
    """
    scanned = xml.replace(b"\0", b"") if b"\0" in xml else xml  # UTF-16
    return NAMESPACE.encode() in scanned and find_request(parse_domain(xml)) is not None


def read_uuid(xml: bytes) -> str:
    """Return whose domain XML it is, also of a domain that ``read_domain`` would refuse.

    :raise DomainXmlInvalid: When it is no domain XML, or has no UUID.
    """
    return read_uuid_of(parse_domain(xml))


def require_whole_pages(name: str, cells: tuple[Cell, ...], page_size: int) -> None:
    """Refuse the domain ``name`` unless each of its memory backends is a multiple of ``page_size`` bytes.

    A virtio-mem device must not be plugged by less than a page either: QEMU refuses that.

    :raise DomainRefused: Names the first that is not, and the nearest sizes that would do.
    """
    for cell in cells:
        below, above = cell.size_bytes // page_size * page_size, round_up(cell.size_bytes, page_size)
        if below != above:
            nearest = f"{_exact(below)} or {_exact(above)}" if below else _exact(above)
            raise DomainRefused(
                f"{cell.alias or 'The memory'} of domain {name!r} has {_exact(cell.size_bytes)}, which is no "
                f"multiple of the page size {_exact(page_size)}.",
                hint=f"Give it {nearest}, or use a pool with smaller pages.",
            )
        if 0 < cell.block_bytes < page_size:
            raise DomainRefused(
                f"{cell.alias or 'The memory'} of domain {name!r} has blocks of {_exact(cell.block_bytes)}, less "
                f"than the page size {_exact(page_size)}.",
                hint=f"Give it blocks of {_exact(page_size)}, or use a pool with smaller pages.",
            )


def require_possible(memory: DomainMemory, pool: str, *, may_lock: bool, may_pin: bool) -> None:
    """Refuse a domain that wants of its memory what the memory of ``pool`` cannot.

    ``may_lock``: it is never swapped, and can be locked. ``may_pin``: it has struct pages.

    :raise DomainRefused: Says what it wants, and what would have to change.
    """
    if memory.locked and not may_lock:
        raise memory_not_lockable(memory.name, pool, swapped=may_pin)
    if memory.obstacles and not may_pin:
        raise cannot_pin(memory.name, pool, memory.obstacles)


def memory_not_lockable(name: str, pool: str, *, swapped: bool = True) -> DomainRefused:
    """Return the refusal of the domain ``name`` with locked memory in a ``pool``.

    ``swapped``: the host may swap what is in it; else there is nothing to lock, as it has no struct pages.
    """
    if not swapped:
        return DomainRefused(
            f"Domain {name!r} has locked memory, and what is in pool {pool or 'default'!r} cannot be locked: it has"
            " no struct pages, and the host never swaps it anyway.",
            hint="Remove <locked/> from its <memoryBacking>.",
        )
    return DomainRefused(
        f"Domain {name!r} has locked memory, and the host may swap what is in pool {pool or 'default'!r}.",
        hint="Use a pool of huge pages, or remove <locked/> from its <memoryBacking>.",
    )


# Below: the pieces, also for rewrite.py.


def parse_domain(xml: bytes) -> etree._Element:
    """Return the ``<domain>`` element.

    :raise DomainXmlInvalid: When ``xml`` is not safely readable XML, or its root is another element.
    """
    try:
        root = parse_xml(xml).getroot()
    except XmlRefused as refusal:
        raise DomainXmlInvalid(f"The domain XML cannot be read: {refusal}.", hint=DUMPXML) from refusal
    if root.tag != "domain":
        raise DomainXmlInvalid(f"The XML is about {str(root.tag)!r}, not 'domain'.", hint=DUMPXML)
    return root


def find_request(root: etree._Element) -> etree._Element | None:
    """Return our ``<dmem:memory>`` in the domain's metadata, by which it asks for pool memory."""
    return find_child(root, "metadata", f"{{{NAMESPACE}}}memory")


def is_rewritten(root: etree._Element) -> bool:
    """Whether libvirt would make all memory shared files that it does not prefault, on nodes that are named."""
    backing = find_child(root, "memoryBacking")

    def value(element: str, attribute: str) -> str | None:
        found = find_child(backing, element)
        return None if found is None else found.get(attribute)

    return (
        find_child(backing, "hugepages") is None
        and value("source", "type") == "file"
        and value("access", "mode") == "shared"
        and value("allocation", "mode") == "ondemand"
        and not any(_is_private(cell, "memAccess") for cell in root.iterfind("cpu/numa/cell"))
        and not any(
            _is_private(device, "access") or device.find("source/pagesize") is not None
            for device in root.iterfind("devices/memory")
            if device.get("model") in PLACED_MODELS
        )
        and not follows_numad(root)
        and not is_another_domains(root)
    )


def is_locked(root: etree._Element) -> bool:
    """Whether QEMU is to lock all its memory."""
    return find_child(root, "memoryBacking", "locked") is not None


def follows_numad(root: etree._Element) -> bool:
    """Whether numad names the memory's host nodes: virDomainNumatuneParseXML() and virDomainNumatuneSet()."""
    memory = find_child(root, "numatune", "memory")
    vcpu = find_child(root, "vcpu")
    vcpu_is_auto = vcpu is not None and vcpu.get("placement") == "auto"
    if memory is None:
        return vcpu_is_auto
    if memory.get("placement") is None:
        return vcpu_is_auto and memory.get("nodeset") is None
    return memory.get("placement") == "auto"


def refuse_unsupported(root: etree._Element) -> None:
    """Refuse what cannot have memory from a pool.

    :raise DomainRefused: With what stands against it and what would have to change.
    """
    if root.get("type") not in ("kvm", "qemu"):
        raise DomainRefused(
            f"The domain is of type {root.get('type')!r}, not 'kvm' or 'qemu'.",
            hint="Only QEMU can have its memory from a pool; leave this domain as it is.",
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
    _pool(find_request(root))


def _is_private(element: etree._Element, attribute: str) -> bool:
    return element.get(attribute, "").strip() == "private"


def _pool(request: etree._Element | None) -> str:
    pool = "" if request is None else request.get("pool", "")
    if pool and not POOL_NAME.fullmatch(pool):
        raise DomainRefused(
            f"The domain asks for memory of a pool {clipped(pool, 80)!r}, which is no possible name.",
            hint="Name one that 'virt-dmem pool list' shows, or none for the default pool.",
        )
    return pool


def _label(root: etree._Element, model: str, kind: str) -> str | None:
    for label in root.iterfind("seclabel"):
        if label.get("model") == model:
            return label.findtext(kind)
    return None


def _dac_label(root: etree._Element) -> tuple[str | None, str | None]:
    user, separator, group = (_label(root, "dac", "label") or "").partition(":")
    return (user, group) if separator and user and group else (None, None)


def _exact(size_bytes: int) -> str:
    for factor, unit in ((MIB, "MiB"), (KIB, "KiB")):
        if size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return f"{size_bytes} B"
