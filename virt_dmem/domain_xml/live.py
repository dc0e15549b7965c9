# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the memory devices and obstacles of a running domain from its live XML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virt_dmem.config.schema import AdoptRule
from virt_dmem.domain_xml.adoption.adopt import rule_of
from virt_dmem.domain_xml.elements import find_request, parse_domain
from virt_dmem.domain_xml.fields import find_child, read_size, read_uuid_of, text_of
from virt_dmem.domain_xml.pinning import Obstacle, obstacles

__all__ = ["Guest", "MemoryDevice", "read_guest"]


@dataclass(frozen=True)
class MemoryDevice:
    """A memory device that is guest RAM; ``alias`` is also the name of the file that libvirt would back it with."""

    alias: str
    model: str
    size_bytes: int


@dataclass(frozen=True)
class Guest:
    """A running domain."""

    uuid: str
    name: str
    managed: bool
    """It was started with the request for pool memory in its metadata."""
    devices: tuple[MemoryDevice, ...]
    obstacles: tuple[Obstacle, ...] = ()
    """The parts that cannot work on memory without struct pages: attached while it runs, or by a network."""
    rule: str = ""
    """The rule that adopts it, as its XML is; it does not ask for pool memory itself."""


def read_guest(xml: bytes, rules: Sequence[AdoptRule] = ()) -> Guest:
    """Return the running domain in a live XML, as libvirt printed it (each memory device with alias, and in KiB).

    :param rules: Those by which domains are adopted.
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
        uuid=read_uuid_of(root),
        name=root.findtext("name") or "",
        managed=find_request(root) is not None,
        devices=tuple(devices),
        obstacles=obstacles(root),
        rule=rule_of(rules, root),
    )
