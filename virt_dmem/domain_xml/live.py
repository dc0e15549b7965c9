# SPDX-License-Identifier: GPL-2.0-or-later
"""What the live XML of a domain that runs says about the memory it has now. Pure reading."""

from __future__ import annotations

from dataclasses import dataclass

from virt_dmem.domain_xml.fields import read_size, text_of
from virt_dmem.domain_xml.pinning import Obstacle, obstacles
from virt_dmem.domain_xml.reader import find_child, find_request, parse_domain, read_uuid

__all__ = ["Guest", "MemoryDevice", "read_guest"]


@dataclass(frozen=True)
class MemoryDevice:
    """A memory device that is guest RAM; ``alias`` is also the name of the file libvirt would back it with."""

    alias: str
    model: str
    size_bytes: int


@dataclass(frozen=True)
class Guest:
    """A domain that runs."""

    uuid: str
    name: str
    managed: bool
    """It was started with our metadata."""
    devices: tuple[MemoryDevice, ...]
    obstacles: tuple[Obstacle, ...] = ()
    """What of it cannot work on memory without struct pages: attached while it runs, or by a network."""


def read_guest(xml: bytes) -> Guest:
    """Return what a live XML says, as libvirt printed it (there each memory device has its alias, and KiB).

    :raise DomainXmlInvalid: When it is no domain XML.
    """
    root = parse_domain(xml)
    devices = []
    for device in root.iterfind("devices/memory"):
        size, alias = find_child(device, "target", "size"), find_child(device, "alias")
        # an nvdimm or virtio-pmem brings its own file, and no RAM
        if device.get("model") in ("dimm", "virtio-mem") and size is not None and alias is not None:
            devices.append(
                MemoryDevice(
                    alias.get("name", ""), device.get("model", ""), read_size(text_of(size), size.get("unit"))
                )
            )
    return Guest(
        uuid=read_uuid(xml),
        name=root.findtext("name") or "",
        managed=find_request(root) is not None,
        devices=tuple(devices),
        obstacles=obstacles(root),
    )
