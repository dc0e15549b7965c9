# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a domain works only on memory with struct pages: what pins it, or hands single pages of it around. Pure.

Memory without them (dmemfs) is mapped as raw page frames, and ``pin_user_pages()`` of such a mapping fails. What
copies works: buffered disks, vhost-net and other vhost-user peers, migration, dumps. So does VFIO by the type 1
driver, which knows raw page frames (``follow_fault_pfn`` in drivers/vfio/vfio_iommu_type1.c).
"""

from __future__ import annotations

from dataclasses import dataclass

from lxml import etree

from virt_dmem.errors import DomainRefused
from virt_dmem.xml_fields import find_child

__all__ = ["Obstacle", "cannot_pin", "obstacles"]


@dataclass(frozen=True)
class Obstacle:
    """One thing that cannot work, and what would have to change."""

    what: str
    mend: str


def obstacles(root: etree._Element) -> tuple[Obstacle, ...]:
    """Return what stands in the way in a ``<domain>``, in the order of its XML."""
    found: list[Obstacle] = []
    for disk in root.iterfind("devices/disk"):
        name = f"disk {_attribute(disk, 'target', 'dev') or '?'}"
        cache, io = _attribute(disk, "driver", "cache"), _attribute(disk, "driver", "io")
        if disk.get("type") == "vhostvdpa":
            found.append(Obstacle(f"{name} is vDPA, which pins all guest memory", f"give {name} another type"))
        elif cache in ("none", "directsync"):
            mend = f"set cache='{'writeback' if cache == 'none' else 'writethrough'}' on {name}"
            found.append(
                Obstacle(
                    f"{name} has cache='{cache}', and direct I/O pins guest memory",
                    mend + (" and remove io='native'" if io == "native" else ""),
                )
            )
        elif io == "native":
            found.append(Obstacle(f"{name} has io='native', which is direct I/O", f"set io='threads' on {name}"))
    for interface in root.iterfind("devices/interface"):
        if interface.get("type") == "vdpa":
            found.append(Obstacle("an interface is vDPA, which pins all guest memory", "give it another type"))
    for device in root.iterfind("devices/hostdev"):
        if _uses_iommufd(device):
            found.append(
                Obstacle("a host device uses iommufd, which pins all guest memory", "remove iommufd='yes' from it")
            )
        if device.get("type") == "scsi_host":
            found.append(
                Obstacle("a host device is vhost-scsi, which pins guest memory", "use a <disk> of type 'block'")
            )
    for memory in root.iterfind("devices/memory"):
        if memory.get("model") == "virtio-mem":
            found.append(
                Obstacle("a memory device is virtio-mem, whose parts come and go page by page", "make it a 'dimm'")
            )
    return tuple(found)


def _uses_iommufd(device: etree._Element) -> bool:
    elements = [device, find_child(device, "driver"), find_child(device, "source")]
    return any(element is not None and element.get("iommufd") in ("yes", "on") for element in elements)


def _attribute(element: etree._Element, child: str, name: str) -> str:
    found = find_child(element, child)
    return "" if found is None else found.get(name, "").strip()


def cannot_pin(name: str, pool: str, found: tuple[Obstacle, ...]) -> DomainRefused:
    """Return the refusal of the domain ``name`` on a ``pool`` without struct pages."""
    return DomainRefused(
        f"Domain {name!r} cannot work on pool {pool or 'default'!r}, whose memory has no struct pages:"
        f" {'; '.join(item.what for item in found)}.",
        hint=f"{_sentence('; '.join(item.mend for item in found))}; or use a pool of huge pages.",
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
