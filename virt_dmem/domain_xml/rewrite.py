# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewrite a domain's persistent XML so that its memory comes from a pool, and restore it.

Replaced elements are kept in the domain's metadata, all in the namespace of virt-dmem, so that libvirt keeps
them::

    <dmem:memory xmlns:dmem="https://virt-dmem.dev/xmlns/domain/1.0" pool="big">
      <dmem:replaced added="memory" elements="hugepages source access allocation">
        <dmem:memoryBacking><dmem:hugepages/></dmem:memoryBacking>
        <dmem:vcpu placement="auto" cpuset="0-3"/>
        <dmem:numatune><dmem:memory mode="strict" placement="auto"/></dmem:numatune>
        <dmem:device model="dimm" size="536870912" node="1" index="0" access="private">
          <dmem:source><dmem:pagesize unit="KiB">2048</dmem:pagesize></dmem:source>
        </dmem:device>
        <dmem:device model="nvdimm" size="536870912" node="0" index="0" access=""/>
      </dmem:replaced>
    </dmem:memory>

``added``: which of ``metadata``, ``memory`` (the request), ``memoryBacking`` and ``commandline`` were missing
before. ``monitor``: whether QEMU got a second one, or must not get one. ``hotplug`` and the rest of ``added``: see
``hotplug.py``.
``elements``: the names in ``<memoryBacking>`` that were removed or inserted.
``pool``: the pool of an earlier request; absent where it named none.
``<dmem:memoryBacking>``, ``<dmem:numatune>``: the whole element as it was. ``<dmem:vcpu>``: its attributes.
``<dmem:device>``: one of the memory devices of that model, size (bytes) and guest node, counted from 0; its
``access`` (empty: it had none) and its whole ``<source>``, where they were changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

from lxml import etree

from virt_dmem.domain_xml import hotplug
from virt_dmem.domain_xml.edit import insert, last_of, lay_out, remove, swap
from virt_dmem.domain_xml.elements import (
    BEFORE_METADATA,
    NAMESPACE,
    ensure_request,
    find_request,
    follows_numad,
    is_locked,
    is_rewritten,
    parse_domain,
    refuse_unsupported,
)
from virt_dmem.domain_xml.fields import find_child, read_size, text_of
from virt_dmem.domain_xml.memory_backends import PLACED_MODELS, memory_backends
from virt_dmem.domain_xml.monitor import add_monitor, remove_monitor
from virt_dmem.domain_xml.parse import MAX_XML_BYTES, print_xml
from virt_dmem.domain_xml.pinning import cannot_pin, obstacles
from virt_dmem.domain_xml.requirements import memory_not_lockable, require_whole_pages
from virt_dmem.domain_xml.templates import memory_backing
from virt_dmem.errors import DomainXmlInvalid, UsageError
from virt_dmem.pool_name import POOL_NAME

__all__ = ["apply", "unapply", "reprint", "doubtful", "request_of"]

_REPLACED = f"{{{NAMESPACE}}}replaced"
_DEVICE = f"{{{NAMESPACE}}}device"
_IDENTITY = ("model", "size", "node", "index")

# Where libvirt prints <memoryBacking> and <numatune>: behind the last of these that are there. Beside
# any other of _RESOURCES will do too, but not apart from all of them: libxml2 then fails to validate.
_BEFORE_BACKING = ("memory", "maxMemory", "currentMemory")
_RESOURCES = (
    *_BEFORE_BACKING, "memoryBacking", "vcpu", "vcpus", "iothreads", "iothreadids", "defaultiothread", "blkiotune",
    "memtune", "cputune", "numatune", "resource",
)  # fmt: skip


def apply(
    xml: bytes,
    *,
    pool: str = "",
    pool_name: str = "",
    page_size: int | None = None,
    may_lock: bool = True,
    may_pin: bool = True,
    hotplug_max: int | None = None,
    monitor: bool | None = None,
    templates_dir: Path | None = None,
) -> bytes:
    """Return ``xml`` rewritten so that libvirt backs the domain's memory by files; keep all that is replaced.

    All memory becomes shared files without prefaulting: private memory is not in the file. Memory devices with a
    page size of their own are included; an nvdimm, which has a file of its own, keeps its access. Host nodes that
    numad would choose, after the memory is prepared, are left to the plan. XML that is rewritten already is
    returned unchanged, but for the name of the pool.

    ``pool`` goes into the request; empty leaves the request's own, or the default pool. ``pool_name``: the name
    of that pool, for refusals. With ``page_size`` (bytes) sizes that are not a multiple of it are refused, without
    ``may_lock`` locked memory, and without ``may_pin`` (the pool has no struct pages) devices that need them.
    Without ``page_size`` no size and no machine type has to be known. ``hotplug_max``: bytes of memory that the
    domain may have in all, with memory attached later; ``monitor``: whether QEMU is to have a second one, where
    False is remembered until ``unapply``. ``None`` leaves both as they are. ``templates_dir``: see
    ``templates.py``.

    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    :raise DomainRefused: When memory of such a domain cannot come from a pool.
    :raise ConfigError: When a template cannot be used.
    :raise UsageError: When ``pool`` cannot be the name of a pool.
    """
    if pool and not POOL_NAME.fullmatch(pool):
        raise UsageError(f"{pool!r} is not a valid name of a pool.", hint="See 'virt-dmem pool list'.")
    root = parse_domain(xml)
    refuse_unsupported(root)
    name, ours = text_of(find_child(root, "name")), memory_backing(templates_dir)
    if page_size:
        require_whole_pages(name, memory_backends(root), page_size)
    if not may_lock and (is_locked(root) or any(element.tag == "locked" for element in ours)):
        raise memory_not_lockable(name, pool_name or pool, swapped=may_pin)
    if not may_pin and (found := obstacles(root)):
        raise cannot_pin(name, pool_name or pool, found)
    request = find_request(root)
    record = find_child(request, _REPLACED)
    if request is not None and record is not None:
        pool = pool or request.get("pool", "")
        before = hotplug.prepared(record), _monitor(record)
        hotplug_max = before[0] if hotplug_max is None else hotplug_max
        monitor = before[1] if monitor is None or before[1] is False else monitor
        if is_rewritten(root) and (hotplug_max, monitor) == before:
            if request.get("pool", "") == pool:
                return xml
            request.set("pool", pool)
            return _printed(root, xml)
        _undo(root, request, record)  # somebody changed the rewritten XML, or requests more
    _rewrite(root, pool, ours, hotplug_max, monitor)
    return _printed(root, xml)


def unapply(xml: bytes, *, keep_request: bool = True, running: bool = False) -> bytes:
    """Return ``xml`` restored to its state before ``apply``: the same document, canonically.

    Later changes by others, libvirt's own formatting too, stay. Without ``keep_request`` a request for pool memory
    from before ``apply`` is removed as well. XML that was not rewritten is returned unchanged.

    ``running``: for a guest that is migrated or restored. The rewritten parts that its guest has now stay, and so
    does the kind of its memory: libvirt compares ``<source>`` (``qemuDomainABIStabilityCheck`` in its
    qemu_domain.c), and backs it by its own memory_backing_dir.

    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    """
    root = parse_domain(xml)
    request = find_request(root)
    record = find_child(request, _REPLACED)
    if request is None or (record is None and keep_request):
        return xml
    added = [] if record is None else (record.get("added") or "").split()
    if record is not None:
        _undo(root, request, record, running=running)
        request = find_request(root)
    if request is not None and not keep_request:
        remove(request)
        _remove_metadata(root, added)
    return _printed(root, xml)


def reprint(xml: bytes) -> bytes:
    """Return ``xml`` with the same content, printed as ``apply`` prints, to compare its result with.

    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    """
    return _printed(parse_domain(xml), xml)


def request_of(xml: bytes) -> str:
    """Return the pool that a domain XML requests, empty for none.

    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    """
    request = find_request(parse_domain(xml))
    return "" if request is None else request.get("pool", "")


def doubtful(xml: bytes) -> str:
    """Describe the needs of a domain that some pools cannot fulfil; empty without any.

    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    """
    root = parse_domain(xml)
    return "; ".join(
        (["its memory is locked"] if is_locked(root) else []) + [item.what for item in obstacles(root)]
    )


def _printed(root: etree._Element, like: bytes) -> bytes:
    printed = print_xml(root.getroottree(), like)
    if len(printed) > MAX_XML_BYTES:
        raise DomainXmlInvalid(
            f"Rewritten, the domain XML would have {len(printed)} bytes, and libvirt accepts {MAX_XML_BYTES}.",
            hint="Make the domain's metadata smaller.",
        )
    return printed


# Apply


def _rewrite(
    root: etree._Element,
    pool: str,
    ours: Sequence[etree._Element],
    hotplug_max: int | None,
    monitor: bool | None,
) -> None:
    added: list[str] = []
    request = ensure_request(root, added)
    record = etree.Element(_REPLACED)
    insert(request, record, request[-1] if len(request) else None)
    if "memory" not in added and (pool_before := request.get("pool")) is not None:
        record.set("pool", pool_before)
    if pool:
        request.set("pool", pool)
    _rewrite_devices(root, record)
    _rewrite_placement(root, record)
    replaced = ["hugepages", *(str(element.tag) for element in ours)]
    record.set("elements", " ".join(replaced))
    backing = find_child(root, "memoryBacking")
    if backing is None:
        backing = etree.Element("memoryBacking")
        _insert_resource(root, backing, *_BEFORE_BACKING)
        added.append("memoryBacking")
    else:
        backing = _replace(backing, record, replaced)
    backing.extend(deepcopy(element) for element in ours)
    lay_out(backing)
    if hotplug_max is not None:
        hotplug.prepare(root, record, added, hotplug_max, _insert_resource)
    if monitor is False or (monitor and add_monitor(root, added)):
        record.set("monitor", "yes" if monitor else "no")
    if added:
        record.set("added", " ".join(added))
    if "memory" in added:
        lay_out(request)
    lay_out(record)


def _insert_resource(root: etree._Element, element: etree._Element, *behind: str) -> None:
    after = (last_of(root, *names) for names in (behind, _RESOURCES, BEFORE_METADATA))
    insert(root, element, next((found for found in after if found is not None), None))


def _replace(old: etree._Element, keeper: etree._Element, replaced: Sequence[str]) -> etree._Element:
    """Move ``old`` into ``keeper``, and leave a copy without the children named in ``replaced`` in its place."""
    new = etree.Element(old.tag)
    new.attrib.update(old.attrib)
    new.extend(deepcopy(child) for child in old if child.tag not in replaced)
    swap(old, new)
    lay_out(new)
    keeper.append(old)
    for element in old.iter("{}*"):
        element.tag = f"{{{NAMESPACE}}}{etree.QName(element).localname}"
    return new


def _rewrite_placement(root: etree._Element, record: etree._Element) -> None:
    """Remove the choice of host nodes by numad, which decides only after the memory has been prepared."""
    if not follows_numad(root):
        return
    vcpu = find_child(root, "vcpu")
    if vcpu is not None and vcpu.get("placement") == "auto":
        etree.SubElement(record, f"{{{NAMESPACE}}}vcpu", dict(vcpu.attrib))
        vcpu.set("placement", "static")
        vcpu.attrib.pop("cpuset", None)  # libvirt ignores it beside 'auto', and no more without
    if find_child(root, "numatune", "memory") is not None:
        numatune = find_child(root, "numatune")
        assert numatune is not None  # noqa: S101  it has a child
        _replace(numatune, record, ["memory"])


def _rewrite_devices(root: etree._Element, record: etree._Element) -> None:
    for identity, device in _devices(root).items():
        access = (device.get("access") or "").strip()
        kept = etree.Element(_DEVICE, dict(zip(_IDENTITY, identity, strict=True)))
        if device.get("model") in PLACED_MODELS:
            if access == "private":
                kept.set("access", access)
                device.set("access", "shared")
            source = find_child(device, "source")
            if source is not None and source.find("pagesize") is not None:
                _replace(source, kept, ["pagesize"])
        elif device.get("model") == "nvdimm" and not access and not _is_shared(root, device):
            kept.set("access", "")
            device.set("access", "private")
        if len(kept) or "access" in kept.attrib:
            record.append(kept)


def _devices(root: etree._Element) -> dict[tuple[str, ...], etree._Element]:
    """Return the memory devices by identities that stay the same when others are added and removed."""
    found: dict[tuple[str, ...], etree._Element] = {}
    count: Counter[tuple[str, ...]] = Counter()
    for device in root.iterfind("devices/memory"):
        size = find_child(device, "target", "size")
        try:
            size_bytes = 0 if size is None else read_size(text_of(size), size.get("unit"))
        except DomainXmlInvalid:  # left for libvirt to reject
            size_bytes = 0
        alike = (device.get("model", ""), str(size_bytes), text_of(find_child(device, "target", "node")).strip())
        found[*alike, str(count[alike])] = device
        count[alike] += 1
    return found


def _is_shared(root: etree._Element, device: etree._Element) -> bool:
    """Return whether a device without ``access`` is shared: as its cell is, else as the domain's memory is."""
    node = text_of(find_child(device, "target", "node")).strip()
    cells = {cell.get("id", str(index)): cell for index, cell in enumerate(root.iterfind("cpu/numa/cell"))}
    if node in cells and cells[node].get("memAccess"):
        return cells[node].get("memAccess") == "shared"
    access = find_child(root, "memoryBacking", "access")
    return access is not None and access.get("mode") == "shared"


def _monitor(record: etree._Element) -> bool | None:
    return {"yes": True, "no": False}.get(record.get("monitor", ""))


# Unapply


def _undo(root: etree._Element, request: etree._Element, record: etree._Element, *, running: bool = False) -> None:
    """Undo ``_rewrite`` in the opposite order: only then white space comes out right."""
    added = (record.get("added") or "").split()
    if _monitor(record):
        remove_monitor(root, added)
    if running:
        _undo_request(root, request, record, added)
        return
    hotplug.undo(root, record, added)
    replaced = (record.get("elements") or "hugepages source access allocation").split()
    # Hugepages that are there now were added after apply: a newer choice than the kept one.
    put_in = [name for name in replaced if name != "hugepages"]
    _restore(
        root,
        "memoryBacking",
        record,
        replaced,
        put_in,
        insert_again=lambda old: _insert_resource(root, old, *_BEFORE_BACKING),
    )
    backing = find_child(root, "memoryBacking")
    if "memoryBacking" in added and backing is not None and not len(backing):
        remove(backing)
    _undo_placement(root, record)
    _undo_devices(root, record)
    _undo_request(root, request, record, added)


def _undo_request(
    root: etree._Element, request: etree._Element, record: etree._Element, added: Sequence[str]
) -> None:
    remove(record)
    if "memory" in added:
        remove(request)
    elif (pool := record.get("pool")) is not None:
        request.set("pool", pool)
    else:
        request.attrib.pop("pool", None)
    _remove_metadata(root, added)


def _remove_metadata(root: etree._Element, added: Sequence[str]) -> None:
    metadata = find_child(root, "metadata")
    if "metadata" in added and metadata is not None and not len(metadata):
        remove(metadata)


def _undo_placement(root: etree._Element, record: etree._Element) -> None:
    vcpu, before = find_child(root, "vcpu"), find_child(record, f"{{{NAMESPACE}}}vcpu")
    if vcpu is not None and before is not None and vcpu.get("placement", "static") == "static":
        now = {name: value for name, value in vcpu.attrib.items() if name != "placement"}
        if "cpuset" not in now:  # else somebody has pinned it since
            kept = {k: v for k, v in before.attrib.items() if k in ("placement", "cpuset") or k in now}
            vcpu.attrib.clear()
            vcpu.attrib.update({**kept, **now})
    _restore(
        root, "numatune", record, ["memory"], [],
        insert_again=lambda old: _insert_resource(root, old, *_RESOURCES[: _RESOURCES.index("numatune")]),
    )  # fmt: skip


def _undo_devices(root: etree._Element, record: etree._Element) -> None:
    devices = _devices(root)
    for kept in record.findall(_DEVICE):
        device = devices.get(tuple(kept.get(name, "") for name in _IDENTITY))
        if device is None:  # somebody has unplugged it since
            continue
        if (access := kept.get("access")) and device.get("access") == "shared":
            device.set("access", access)
        elif access == "" and device.get("access") == "private":
            del device.attrib["access"]
        _restore(device, "source", kept, ["pagesize"], [], insert_again=partial(insert, device, after=None))


def _restore(
    parent: etree._Element,
    name: str,
    keeper: etree._Element,
    replaced: Sequence[str],
    put_in: Sequence[str],
    *,
    insert_again: Callable[[etree._Element], None],
) -> None:
    """Undo ``_replace``: restore the element in ``keeper``, or only its missing children if others changed since.

    ``put_in``: the children that apply inserted. Where the element was removed since, ``insert_again`` inserts it.
    """
    old, now = find_child(keeper, f"{{{NAMESPACE}}}{name}"), find_child(parent, name)
    if old is not None:
        for element in old.iter(f"{{{NAMESPACE}}}*"):
            element.tag = etree.QName(element).localname
        keeper.remove(old)
    if now is None:
        if old is not None:
            insert_again(old)
        return
    if old is not None and _others(now, put_in) == _others(old, replaced):
        swap(now, old)
        return
    removed = [child for child in now if child.tag in put_in]
    for child in removed:
        now.remove(child)
    present = {child.tag for child in now}
    back = [] if old is None else [e for e in old if e.tag in replaced and e.tag not in present]
    now.extend(back)
    if removed or back:
        lay_out(now)


_Seen = tuple[str, tuple[tuple[str, str], ...], str, tuple["_Seen", ...]]


def _others(element: etree._Element, names: Sequence[str]) -> list[_Seen]:
    """Return the children of ``element`` but for ``names``, without regard to order, white space and comments."""
    return sorted(_seen(child) for child in _elements(element) if child.tag not in names)


def _seen(element: etree._Element) -> _Seen:
    attributes = tuple(sorted((str(name), str(value)) for name, value in element.attrib.items()))
    return str(element.tag), attributes, text_of(element).strip(), tuple(map(_seen, _elements(element)))


def _elements(parent: etree._Element) -> Iterator[etree._Element]:
    return (child for child in parent if isinstance(child.tag, str))
