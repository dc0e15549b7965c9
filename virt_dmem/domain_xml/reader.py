# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the memory of a domain from its XML.

Only reading, and no look at the host: the same bytes always give the same answer. ``rewrite.py`` changes XML.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from lxml import etree

from virt_dmem.domain_xml.elements import (
    NAMESPACE,
    find_request,
    is_file_backed,
    is_locked,
    is_rewritten,
    may_ask,
    parse_domain,
    refuse_unsupported,
    requested_pool,
    unknown_request,
    what_it_lacks,
)
from virt_dmem.domain_xml.fields import (
    DUMPXML,
    find_child,
    read_name,
    read_number,
    read_size,
    read_uuid_of,
    text_of,
)
from virt_dmem.domain_xml.memory_backends import Cell, machine_without_name, memory_backends
from virt_dmem.domain_xml.pinning import Obstacle, obstacles
from virt_dmem.errors import DomainRefused, DomainXmlInvalid

__all__ = ["DomainDocument", "DomainMemory", "read_domain", "is_managed", "name_of"]

T = TypeVar("T")
_MOST_OBSTACLES = 32
"""Kept of one domain: one is enough to refuse it."""


@dataclass(frozen=True)
class DomainMemory:
    """The memory of one domain at start, and whether it comes from a pool."""

    uuid: str
    """In canonical form, whatever form the XML has."""
    name: str
    pool: str
    """Empty: the default pool."""
    cells: tuple[Cell, ...]
    managed: bool
    """The domain asks for pool memory: its metadata have ``<dmem:memory>``."""
    applied: bool
    """Its XML is rewritten: its memory backends are shared files without prefaulting, and not ``<hugepages>``."""
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
    """The parts of it that cannot work on memory without struct pages."""
    lacks: str = ""
    """Why it cannot be started on pool memory though it asks for it; continues a sentence about its XML."""
    file_backed: bool = False
    """Its memory backends are shared files, whoever wrote that: it can be started on pool memory as it is."""
    rule: str = ""
    """The rule of ``[[adopt]]`` that took it, which does not ask for pool memory itself; empty: none."""
    max_bytes: int = 0
    """``<maxMemory>``: the most it may have with memory attached later; 0: none can be."""

    @property
    def total_bytes(self) -> int:
        """All memory at start, with all that virtio-mem may plug."""
        return sum(cell.size_bytes for cell in self.cells)


class DomainDocument:
    """A domain XML, as libvirt printed it (persistent, live, or on a hook's stdin), parsed at most once.

    The bytes of a domain that does not ask for pool memory are scanned, and not parsed. ``uuid`` and ``memory``
    keep their answer and free the parsed tree, which is ten times as large: a hook may take minutes after that.
    The length is that of the bytes, by which ``aio.off_loop`` parses large ones in a thread.
    """

    def __init__(self, xml: bytes) -> None:
        self.xml = xml

    def __len__(self) -> int:
        return len(self.xml)

    @cached_property
    def root(self) -> etree._Element:
        """The ``<domain>`` element, to be read only.

        :raise DomainXmlInvalid: When it is no domain XML.
        """
        return parse_domain(self.xml)

    def is_managed(self) -> bool:
        """Return whether the domain asks for pool memory; costs one scan of the bytes where it does not.

        :raise DomainXmlInvalid: When the namespace of the request occurs, and it is no domain XML.
        """
        scanned = self.xml.replace(b"\0", b"") if b"\0" in self.xml else self.xml  # UTF-16
        return NAMESPACE.encode() in scanned and find_request(self.root) is not None

    def unknown_request(self) -> DomainRefused | None:
        """Return the refusal of what only looks like a request; costs one scan of the bytes where there is nothing.

        :raise DomainXmlInvalid: When a namespace of virt-dmem's occurs, and it is no domain XML.
        """
        return unknown_request(self.root) if may_ask(self.xml) else None

    def uuid(self) -> str:
        """Return the domain's UUID, also of a domain whose memory cannot come from a pool.

        :raise DomainXmlInvalid: When it is no domain XML, or has no UUID.
        """
        return self._free_tree(self._uuid)

    @cached_property
    def _uuid(self) -> str:
        return read_uuid_of(self.root)

    def memory(self) -> DomainMemory:
        """Return the domain's memory.

        :raise DomainXmlInvalid: When it is no domain XML, or not one from libvirt.
        :raise DomainRefused: When memory of such a domain cannot come from a pool.
        """
        return self._free_tree(self._memory)

    @cached_property
    def _memory(self) -> DomainMemory:
        root = self.root
        refuse_unsupported(root)
        is_managed, cells = find_request(root) is not None, memory_backends(root)
        if not all(cell.alias for cell in cells):
            raise machine_without_name(root)
        if len({cell.alias for cell in cells}) < len(cells):
            raise DomainXmlInvalid("The domain XML gives two memory devices the same alias or slot.", hint=DUMPXML)
        dac_user, dac_group = _dac_label(root)
        return DomainMemory(
            uuid=read_uuid_of(root),
            name=read_name(root),
            pool=requested_pool(root),
            cells=cells,
            managed=is_managed,
            applied=is_managed and is_rewritten(root),
            lacks=what_it_lacks(root) if is_managed else "",
            dac_user=dac_user,
            dac_group=dac_group,
            selinux_imagelabel=_label(root, "selinux", "imagelabel"),
            domain_id=read_number(root.get("id"), "domain id") if root.get("id") else None,
            locked=is_locked(root),
            apparmor_label=_label(root, "apparmor", "label"),
            obstacles=obstacles(root)[:_MOST_OBSTACLES],
            file_backed=is_file_backed(root),
            max_bytes=_max_memory(root),
        )

    def _free_tree(self, answer: T) -> T:
        self.__dict__.pop("root", None)
        return answer


def read_domain(xml: bytes) -> DomainMemory:
    """Return the memory of the domain in ``xml``; see ``DomainDocument.memory``."""
    return DomainDocument(xml).memory()


def name_of(xml: bytes) -> str:
    """Return the name of the domain in ``xml``.

    :raise DomainXmlInvalid: When it is no domain XML, or has no valid name.
    """
    return read_name(parse_domain(xml))


def is_managed(xml: bytes) -> bool:
    """Return whether the domain in ``xml`` asks for pool memory; see ``DomainDocument.is_managed``."""
    return DomainDocument(xml).is_managed()


def _max_memory(root: etree._Element) -> int:
    maximum = find_child(root, "maxMemory")
    return 0 if maximum is None else read_size(text_of(maximum), maximum.get("unit"))


def _label(root: etree._Element, model: str, kind: str) -> str | None:
    for label in root.iterfind("seclabel"):
        if label.get("model") == model:
            return label.findtext(kind)
    return None


def _dac_label(root: etree._Element) -> tuple[str | None, str | None]:
    user, separator, group = (_label(root, "dac", "label") or "").partition(":")
    return (user, group) if separator and user and group else (None, None)
