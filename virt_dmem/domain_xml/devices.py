# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices of a domain that runs: is there room for one more, what libvirt is to be told, what is there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from lxml import etree

from virt_dmem.domain_xml.fields import find_child, read_nodeset, read_number, read_size, read_uuid_of, text_of
from virt_dmem.domain_xml.memory_backends import all_memory, guest_cells, memory_backends
from virt_dmem.domain_xml.pinning import obstacles
from virt_dmem.domain_xml.reader import DomainMemory, parse_domain, read_domain
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
    """A memory device to be attached, or that is there; sizes in bytes."""

    alias: str
    model: str
    """``dimm`` or ``virtio-mem``."""
    size_bytes: int
    cell: int
    node: int | None = None
    """The host node that its memory is to come from; None: what the domain's XML says of its cell."""
    block_bytes: int = 0
    requested_bytes: int = 0
    """Of virtio-mem: what its guest is to plug of it."""
    current_bytes: int = 0
    """Of virtio-mem: what its guest has plugged."""


def device_xml(device: Device) -> str:
    """Return the ``<memory>`` element that libvirt is to attach, or to change a device to."""
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


def require_room(xml: bytes, model: str, size_bytes: int, cell: int) -> None:
    """Refuse memory of that size that the running domain cannot take; says what is missing.

    :raise DomainRefused: When it lacks maximum, slots, a free one of them, or that cell.
    """
    root = parse_domain(xml)
    name, maximum = text_of(find_child(root, "name")), find_child(root, "maxMemory")
    cells = guest_cells(root)
    if maximum is None or not cells:
        lacks = "no <maxMemory> with slots" if maximum is None else "no guest NUMA cell"
        raise DomainRefused(
            f"Domain {name!r} cannot be given memory while it runs: it has {lacks}.",
            hint=f"Shut it down, run 'virt-dmem apply {read_uuid_of(root)} --hotplug-max SIZE', and start it.",
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
            f"All {slots} memory slots of domain {name!r} are taken.",
            hint="Detach a device, or attach virtio-mem, which needs none.",
        )


def free_alias(*documents: bytes) -> str:
    """Return the first alias ``ua-dmemN`` that none of these XMLs of a domain has; libvirt wants ``ua-``."""
    found = {alias for xml in documents for alias in re.findall(rb"(ua-dmem[0-9]{1,9})'", xml)}
    return next(alias for number in itertools.count() if (alias := f"ua-dmem{number}").encode() not in found)


def find_device(xml: bytes, alias: str) -> Device | None:
    """Return the memory device with that alias of a live XML, as libvirt printed it."""
    return find_devices(xml, {alias}).get(alias)


def find_devices(xml: bytes, aliases: Collection[str]) -> dict[str, Device]:
    """Return those of the memory devices with these aliases that a live XML has, as libvirt printed it."""
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
    """Return the virtio-mem device of a live XML as it is, address and all, but for what its guest is to plug.

    libvirt finds it by all that tells it apart (``virDomainMemoryFindByDeviceInfo`` in its domain_conf.c).
    """
    for device in parse_domain(xml).iterfind("devices/memory"):
        name, requested = find_child(device, "alias"), find_child(device, "target", "requested")
        if name is not None and name.get("name") == alias and requested is not None:
            requested.set("unit", "KiB")
            requested.text = str(requested_bytes // KIB)
            return etree.tostring(device, encoding="unicode", with_tail=False)
    raise DomainRefused(f"There is no virtio-mem {alias!r} any more.", hint="Look with 'virt-dmem show'.")


def memory_of(xml: bytes, device: Device) -> DomainMemory:
    """Return what the domain of a live XML asks of a pool if the device is to be attached: that alone."""
    root = parse_domain(xml)
    devices = find_child(root, "devices")
    if devices is None:
        devices = etree.SubElement(root, "devices")
    devices.append(etree.fromstring(device_xml(device)))
    (backend,) = (cell for cell in memory_backends(root) if cell.alias == device.alias)
    return replace(read_domain(xml), cells=(backend,), obstacles=obstacles(root))


def is_boot_backend(alias: str) -> bool:
    """Whether a memory backend is a cell's or the whole boot memory: it is there as long as QEMU is."""
    return alias.endswith(".ram") or re.fullmatch(r"ram-node\d+", alias) is not None
