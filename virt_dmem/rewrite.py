# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewriting a domain's persistent XML so that its memory comes from a pool, and back.

What is replaced is kept in our metadata, all in our namespace, so that libvirt carries it along::

    <dmem:memory xmlns:dmem="https://virt-dmem.dev/xmlns/domain/1.0" pool="big">
      <dmem:replaced added="memory" elements="hugepages source access allocation">
        <dmem:memoryBacking><dmem:hugepages/></dmem:memoryBacking>
        <dmem:cell id="1" memAccess="private"/>
      </dmem:replaced>
    </dmem:memory>

``added``: which of ``metadata``, ``memory`` (the request) and ``memoryBacking`` were not there before.
``elements``: the names in ``<memoryBacking>`` that were taken out of it or put into it.
``pool``: the pool of the request that was there before; absent where it named none.
``<dmem:memoryBacking>``: the whole element as it was. ``<dmem:cell>``: a cell whose memory was private.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path

from lxml import etree

from virt_dmem.domain_xml import (
    NAMESPACE,
    POOL_NAME,
    boot_cells,
    find_child,
    find_request,
    guest_cells,
    is_managed,
    is_rewritten,
    parse_domain,
    refuse_unsupported,
    require_whole_pages,
)
from virt_dmem.errors import DomainRefused, UsageError
from virt_dmem.secure_xml import print_xml
from virt_dmem.templates import memory_backing

__all__ = ["apply", "unapply", "reprint"]

_MEMORY = f"{{{NAMESPACE}}}memory"
_REPLACED = f"{{{NAMESPACE}}}replaced"
_BACKING = f"{{{NAMESPACE}}}memoryBacking"
_CELL = f"{{{NAMESPACE}}}cell"

# Where libvirt prints <metadata> and <memoryBacking>: behind the last of these. Without any, <memoryBacking> goes
# behind <vcpu>: libxml2 validates only if what the schema calls resources stands together.
_BEFORE_METADATA = ("name", "uuid", "genid", "title", "description")
_BEFORE_BACKING = ("memory", "maxMemory", "currentMemory")


def apply(xml: bytes, *, pool: str = "", page_size: int | None = None, templates_dir: Path | None = None) -> bytes:
    """Return ``xml`` rewritten so that libvirt looks for the domain's memory in files, and what was replaced.

    ``pool`` goes into the request; empty leaves the request's own, or the default pool. With ``page_size``
    (bytes) sizes that are no multiple of it are refused. ``templates_dir``: see ``templates.py``. Private
    memory (``<access>`` or a cell's ``memAccess``) becomes shared: private memory is not in the file. XML that
    is rewritten already comes back as it is, but for the name of the pool.

    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    :raise DomainRefused: When memory of such a domain cannot come from a pool.
    :raise ConfigError: When a template cannot be used.
    :raise UsageError: When ``pool`` is no possible name.
    """
    if pool and not POOL_NAME.fullmatch(pool):
        raise UsageError(f"{pool!r} is no possible name of a pool.", hint="See 'virt-dmem pool list'.")
    root = parse_domain(xml)
    refuse_unsupported(root)
    cells = boot_cells(root)
    if page_size:
        require_whole_pages(root.findtext("name") or "", cells, page_size)
    request = find_request(root)
    record = find_child(request, _REPLACED)
    if request is not None and record is not None and is_rewritten(root):
        if not pool or request.get("pool") == pool:
            return xml
        request.set("pool", pool)
        return print_xml(root.getroottree(), xml)
    if request is not None and record is not None:  # somebody changed what we had rewritten
        pool = pool or request.get("pool", "")
        _undo(root, request, record)
    _refuse_nvdimm_that_would_become_shared(root)
    _rewrite(root, pool, memory_backing(templates_dir))
    return print_xml(root.getroottree(), xml)


def unapply(xml: bytes, *, keep_request: bool = True) -> bytes:
    """Return ``xml`` as it was before ``apply``: the same document, canonically.

    What somebody else changed since, libvirt's own formatting too, stays. Without ``keep_request`` a request
    for pool memory that was there before ``apply`` goes as well. XML that was not rewritten comes back as it is.

    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    """
    if not is_managed(xml):
        return xml
    root = parse_domain(xml)
    request = find_request(root)
    assert request is not None  # noqa: S101  is_managed() said so
    record = find_child(request, _REPLACED)
    if record is None and keep_request:
        return xml
    if record is not None:
        _undo(root, request, record)
    request = find_request(root)
    if request is not None and not keep_request:
        _remove(request)
    return print_xml(root.getroottree(), xml)


def reprint(xml: bytes) -> bytes:
    """Return ``xml`` unchanged in meaning but printed as ``apply`` prints: what its result is to be compared with.

    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    """
    return print_xml(parse_domain(xml).getroottree(), xml)


def _refuse_nvdimm_that_would_become_shared(root: etree._Element) -> None:
    """Refuse an nvdimm without ``access``: it follows <memoryBacking>, and its file would be written to."""
    access = find_child(root, "memoryBacking", "access")
    shared = access is not None and access.get("mode") == "shared"
    private_cell = any(cell.get("memAccess") == "private" for cell in guest_cells(root).values())
    for device in root.iterfind("devices/memory"):
        if device.get("model") == "nvdimm" and device.get("access") is None and (private_cell or not shared):
            raise DomainRefused(
                "The domain has an nvdimm without an access mode, which would become shared with the memory.",
                hint="Say access='private' (as it is now) or access='shared' in its <memory model='nvdimm'>.",
            )


def _rewrite(root: etree._Element, pool: str, ours: Sequence[etree._Element]) -> None:
    added: list[str] = []
    request = _ensure_request(root, added)
    record = etree.Element(_REPLACED)
    _insert(request, record, request[-1] if len(request) else None)
    if "memory" not in added and (pool_before := request.get("pool")) is not None:
        record.set("pool", pool_before)
    if pool:
        request.set("pool", pool)
    replaced = ["hugepages", *(str(element.tag) for element in ours)]
    record.set("elements", " ".join(replaced))
    _replace_backing(root, record, ours, replaced, added)
    for number, cell in guest_cells(root).items():
        if cell.get("memAccess") == "private":
            etree.SubElement(record, _CELL, id=str(number), memAccess="private")
            del cell.attrib["memAccess"]
    if added:
        record.set("added", " ".join(added))
    if "memory" in added:
        _lay_out(request)
    _lay_out(record)


def _ensure_request(root: etree._Element, added: list[str]) -> etree._Element:
    metadata = find_child(root, "metadata")
    if metadata is None:
        metadata = etree.Element("metadata")
        _insert(root, metadata, _last_of(root, _BEFORE_METADATA))
        added.append("metadata")
    request = find_child(metadata, _MEMORY)
    if request is None:
        request = etree.Element(_MEMORY, nsmap={"dmem": NAMESPACE})
        _insert(metadata, request, metadata[-1] if len(metadata) else None)
        added.append("memory")
    if "metadata" in added:
        _lay_out(metadata)
    return request


def _replace_backing(
    root: etree._Element,
    record: etree._Element,
    ours: Iterable[etree._Element],
    replaced: list[str],
    added: list[str],
) -> None:
    old = find_child(root, "memoryBacking")
    new = etree.Element("memoryBacking")
    if old is None:
        added.append("memoryBacking")
        _insert(root, new, _last_of(root, _BEFORE_BACKING, ("vcpu",), _BEFORE_METADATA))
    else:
        new.attrib.update(old.attrib)
        new.extend(deepcopy(child) for child in old if child.tag not in replaced)
        _swap(old, new)
        record.append(old)
        for element in old.iter("{}*"):
            element.tag = f"{{{NAMESPACE}}}{etree.QName(element).localname}"
    new.extend(deepcopy(element) for element in ours)
    _lay_out(new)


def _undo(root: etree._Element, request: etree._Element, record: etree._Element) -> None:
    """Take back what ``_rewrite`` did, in the opposite order; white space comes out right only in that order."""
    added = (record.get("added") or "").split()
    _restore_backing(root, record, added)
    for number, cell in guest_cells(root).items():
        if cell.get("memAccess") is None and record.find(f"{_CELL}[@id='{number}']") is not None:
            cell.set("memAccess", "private")
    _remove(record)
    if "memory" in added:
        _remove(request)
    elif (pool := record.get("pool")) is not None:
        request.set("pool", pool)
    else:
        request.attrib.pop("pool", None)
    metadata = find_child(root, "metadata")
    if "metadata" in added and metadata is not None and not len(metadata):
        _remove(metadata)


def _restore_backing(root: etree._Element, record: etree._Element, added: list[str]) -> None:
    replaced = (record.get("elements") or "hugepages source access allocation").split()
    old = find_child(record, _BACKING)
    if old is not None:
        for element in old.iter(f"{{{NAMESPACE}}}*"):
            element.tag = etree.QName(element).localname
        record.remove(old)
    now = find_child(root, "memoryBacking")
    if now is None:  # somebody took it out; what we had replaced in it comes back all the same
        if old is not None:
            _insert(root, old, _last_of(root, _BEFORE_BACKING, ("vcpu",), _BEFORE_METADATA))
        return
    # Hugepages that are there now came after us: a newer wish than the one we kept.
    ours = [name for name in replaced if name != "hugepages"]
    if old is not None and _kept(now, ours) == _kept(old, replaced):
        _swap(now, old)
        return
    for child in [child for child in now if child.tag in ours]:
        now.remove(child)
    present = {child.tag for child in now}
    back = [] if old is None else [e for e in old if e.tag in replaced and e.tag not in present]
    now.extend(back)
    if "memoryBacking" in added and not len(now):
        _remove(now)
    else:
        _lay_out(now)


def _kept(backing: etree._Element, replaced: Sequence[str]) -> list[bytes]:
    """Return what is in ``backing`` beside ``replaced``, so that neither order nor white space counts."""
    elements = (child for child in backing if isinstance(child.tag, str) and child.tag not in replaced)
    return sorted(etree.tostring(element, method="c14n", exclusive=True) for element in elements)


# White space. Each insertion gives the new element the text that followed its place, and puts an indentation
# before it; so removing it restores the text exactly, whatever it was.


def _insert(parent: etree._Element, element: etree._Element, after: etree._Element | None) -> None:
    indentation = _indentation_in(parent)
    if after is None:
        element.tail, parent.text = parent.text, indentation
        parent.insert(0, element)
    else:
        element.tail, after.tail = after.tail, indentation
        parent.insert(parent.index(after) + 1, element)


def _remove(element: etree._Element) -> None:
    """Undo ``_insert``."""
    parent, before = element.getparent(), element.getprevious()
    assert parent is not None  # noqa: S101  only ever called below the root
    if before is None:
        parent.text = _joined(parent.text, element.tail)
    else:
        before.tail = _joined(before.tail, element.tail)
    parent.remove(element)


def _joined(before: str | None, after: str | None) -> str | None:
    return before + (after or "") if before and before.strip() else after


def _swap(old: etree._Element, new: etree._Element) -> None:
    """Put ``new`` where ``old`` stands."""
    parent = old.getparent()
    assert parent is not None  # noqa: S101  only ever called below the root
    new.tail, old.tail = old.tail, None
    parent.replace(old, new)


def _last_of(root: etree._Element, *choices: Sequence[str]) -> etree._Element | None:
    """Return the last child named in the first of ``choices`` that has one."""
    for names in choices:
        if found := [child for child in root if child.tag in names]:
            return found[-1]
    return None


def _indentation(element: etree._Element) -> str:
    """Return the line break and blanks before ``element``; empty where it does not begin a line."""
    before, parent = element.getprevious(), element.getparent()
    if parent is None:
        return "\n"
    text = (parent.text if before is None else before.tail) or ""
    return "\n" + text.rpartition("\n")[2] if "\n" in text and not text.strip() else ""


def _indentation_in(parent: etree._Element) -> str:
    """Return the same for a new child of ``parent``."""
    if len(parent):
        return _indentation(parent[0])
    return f"{outside}  " if (outside := _indentation(parent)) else ""


def _lay_out(parent: etree._Element) -> None:
    """Give each child of ``parent`` a line, if ``parent`` has one; not for elements whose text must stay."""
    outside = _indentation(parent)
    inside = f"{outside}  " if outside else ""
    if len(parent):
        parent.text = inside
        for child in parent:
            child.tail = inside
        parent[-1].tail = outside
