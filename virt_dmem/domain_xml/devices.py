# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices of a running domain: room for another one, the XML for libvirt, the devices that it has."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass, replace

from lxml import etree

from virt_dmem.domain_xml.elements import parse_domain
from virt_dmem.domain_xml.fields import find_child, read_nodeset, read_number, read_size, read_uuid_of, text_of
from virt_dmem.domain_xml.memory_backends import all_memory, guest_cells, memory_backends
from virt_dmem.domain_xml.pinning import obstacles
from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.errors import DomainRefused
from virt_dmem.units import KIB, format_size

__all__ = [
    "Device",
    "device_xml",
    "find_device",
    "find_devices",
    "free_alias",
    "is_boot_backend",
    "memory_of",
    "require_room",
    "resized_xml",
]


@dataclass(frozen=True)
class Device:
    """A memory device, attached or to be attached; sizes in bytes."""

    alias: str
    model: str
    """``dimm`` or ``virtio-mem``."""
    size_bytes: int
    cell: int
    node: int | None = None
    """The host node that its memory is to come from; None: as the domain's XML says of its cell."""
    block_bytes: int = 0
    requested_bytes: int = 0
    """Of virtio-mem: the part that its guest is to plug."""
    current_bytes: int = 0
    """Of virtio-mem: the part that its guest has plugged."""


def device_xml(device: Device) -> str:
    """Return the ``<memory>`` element for libvirt to attach."""
    memory = etree.Element("memory", model=device.model)
    if device.node is not None:
        source = etree.SubElement(memory, "source")
        etree.SubElement(source, "nodemask").text = str(device.node)
    target = etree.SubElement(memory, "target")
    etree.SubElement(target, "size", unit="KiB").text = str(device.size_bytes // KIB)
    etree.SubElement(target, "node").text = str(device.cell)
    if device.model == "virtio-mem":
        etree.SubElement(target, "block", unit="KiB").text = str(device.block_bytes // KIB)
        etree.SubElement(target, "requested", unit="KiB").text = str(device.requested_bytes // KIB)
    etree.SubElement(memory, "alias", name=device.alias)
    return etree.tostring(memory, encoding="unicode")


def require_room(live: DomainDocument, model: str, size_bytes: int, cell: int) -> None:
    """Refuse a memory device that the running domain cannot take.

    :raise DomainRefused: When it lacks a maximum, slots, a free slot, or that cell; names which.
    """
    root = live.root
    name, maximum = text_of(find_child(root, "name")), find_child(root, "maxMemory")
    cells = guest_cells(root)
    if maximum is None or not cells:
        lacks = "no <maxMemory> with slots" if maximum is None else "no guest NUMA cell"
        raise DomainRefused(
            f"Memory cannot be attached to the running domain {name!r}: it has {lacks}.",
            hint=f"Shut it down, run 'virt-dmem apply {read_uuid_of(root)} --hotplug-max SIZE', and start it; a"
            " transient domain is created from XML that was piped through 'virt-dmem rewrite --hotplug-max SIZE'.",
        )
    if cell not in cells:
        raise DomainRefused(
            f"Domain {name!r} has no guest NUMA cell {cell}.", hint=f"It has {', '.join(map(str, cells))}."
        )
    has_bytes, max_bytes = all_memory(root), read_size(text_of(maximum), maximum.get("unit"))
    if has_bytes + size_bytes > max_bytes:
        raise DomainRefused(
            f"Domain {name!r} has {format_size(has_bytes)} and may have {format_size(max_bytes)} at most, so"
            f" {format_size(size_bytes)} more are too much.",
            hint=f"Attach {format_size(max_bytes - has_bytes)} at most, or shut it down and raise --hotplug-max.",
        )
    taken = sum(device.get("model") in ("dimm", "nvdimm") for device in root.iterfind("devices/memory"))
    slots = read_number(maximum.get("slots", "0"), "slots")
    if model == "dimm" and taken >= slots:
        raise DomainRefused(
            f"All {slots} memory slots of domain {name!r} are in use.",
            hint="Detach a device, or attach virtio-mem, which needs none.",
        )


def free_alias(*documents: bytes) -> str:
    """Return the first alias ``ua-dmemN`` that is in none of a domain's XMLs; libvirt requires ``ua-``."""
    found = {alias for xml in documents for alias in re.findall(rb"(ua-dmem[0-9]{1,9})'", xml)}
    return next(alias for number in itertools.count() if (alias := f"ua-dmem{number}").encode() not in found)


def find_device(xml: bytes, alias: str) -> Device | None:
    """Return the memory device with that alias in a live XML, as libvirt printed it."""
    return find_devices(xml, {alias}).get(alias)


def find_devices(xml: bytes, aliases: Collection[str]) -> dict[str, Device]:
    """Return the memory devices with these aliases in a live XML, as libvirt printed it."""
    devices = {}
    for device in parse_domain(xml).iterfind("devices/memory"):
        name, target = find_child(device, "alias"), find_child(device, "target")
        alias = "" if name is None else name.get("name", "")
        if target is None or alias not in aliases:
            continue
        nodes = read_nodeset(text_of(find_child(device, "source", "nodemask")))

        def size(element: str, target: etree._Element = target) -> int:
            found = find_child(target, element)
            return 0 if found is None else read_size(text_of(found), found.get("unit"))

        devices[alias] = Device(
            alias=alias,
            model=device.get("model", ""),
            size_bytes=size("size"),
            cell=read_number(text_of(find_child(target, "node")) or "0", "node of a memory device"),
            node=nodes[0] if len(nodes) == 1 else None,
            block_bytes=size("block"),
            requested_bytes=size("requested"),
            current_bytes=size("current"),
        )
    return devices


def resized_xml(xml: bytes, alias: str, requested_bytes: int) -> str:
    """Return the ``<memory>`` element of a virtio-mem device in a live XML, with another requested size.

    All else stays, its address included: libvirt compares all of it to find the device
    (``virDomainMemoryFindByDeviceInfo`` in its domain_conf.c).
    """
    for device in parse_domain(xml).iterfind("devices/memory"):
        name, requested = find_child(device, "alias"), find_child(device, "target", "requested")
        if name is not None and name.get("name") == alias and requested is not None:
            requested.set("unit", "KiB")
            requested.text = str(requested_bytes // KIB)
            return etree.tostring(device, encoding="unicode", with_tail=False)
    raise DomainRefused(f"There is no virtio-mem device {alias!r} any more.", hint="See 'virt-dmem show'.")


def memory_of(live: DomainDocument, device: Device) -> DomainMemory:
    """Return the memory that a running domain asks of a pool for a device to be attached: that device alone."""
    root = deepcopy(live.root)
    devices = find_child(root, "devices")
    if devices is None:
        devices = etree.SubElement(root, "devices")
    devices.append(etree.fromstring(device_xml(device)))
    (backend,) = (cell for cell in memory_backends(root) if cell.alias == device.alias)
    return replace(live.memory(), cells=(backend,), obstacles=obstacles(root))


def is_boot_backend(alias: str) -> bool:
    """Return whether a memory backend is a cell's or the whole boot memory, which stays as long as QEMU runs."""
    return alias.endswith(".ram") or re.fullmatch(r"ram-node\d+", alias) is not None
