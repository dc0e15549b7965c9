# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the parts of a domain that need memory with struct pages: they pin it, or pass single pages on. Pure.

Memory without them (dmemfs) is mapped as raw page frames, and ``pin_user_pages()`` of such a mapping fails. Parts
that copy work: buffered disks, vhost-net and other vhost-user peers, migration, dumps. VFIO's type 1 driver follows
raw page frames and takes no reference to them (``follow_fault_pfn`` in drivers/vfio/vfio_iommu_type1.c): its
devices go on writing where another domain's memory may be by then, so they are refused too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lxml import etree

from virt_dmem.domain_xml.fields import find_child
from virt_dmem.domain_xml.qemu.arguments import arguments_of
from virt_dmem.errors import DomainRefused

__all__ = ["Obstacle", "cannot_pin", "may_run_guests", "obstacles"]

_COPYING_HOSTDEVS = ("usb", "scsi")
"""For these QEMU or the kernel copies (libusb, SG_IO); scsi_host is vhost-scsi, all others are VFIO."""
_VFIO_ARGUMENT = re.compile(
    r"""^(?:vfio-|iommufd\b)|\b(?:driver|qom-type)["']?\s*[=:]\s*["']?(?:vfio-|iommufd\b)|\bnvme://"""
    r"""|^(?=.*\bdevice["']?\s*[=:]).*\bdriver["']?\s*[=:]\s*["']?nvme\b"""
)
"""Of ``-device``, ``-object``, ``-drive`` and ``-blockdev``; a controller that QEMU emulates is also named nvme."""
_VDPA_ARGUMENT = re.compile(r"\bvhost-vdpa")


@dataclass(frozen=True)
class Obstacle:
    """A part of a domain that cannot work, and how to change it."""

    what: str
    fix: str


def obstacles(root: etree._Element) -> tuple[Obstacle, ...]:
    """Return the obstacles in a ``<domain>``, in the order of its XML."""
    found: list[Obstacle] = []
    for disk in root.iterfind("devices/disk"):
        name = f"disk {_attribute(disk, 'target', 'dev') or '?'}"
        cache, io = _attribute(disk, "driver", "cache"), _attribute(disk, "driver", "io")
        if passed := _of_images(disk, name):
            found.append(passed)
        elif cache in ("none", "directsync"):
            fix = f"set cache='{'writeback' if cache == 'none' else 'writethrough'}' on {name}"
            found.append(
                Obstacle(
                    f"{name} has cache='{cache}', and direct I/O pins guest memory",
                    fix + (" and remove io='native'" if io == "native" else ""),
                )
            )
        elif io == "native":
            found.append(Obstacle(f"{name} has io='native', which is direct I/O", f"set io='threads' on {name}"))
    iommufd = find_child(root, "iommufd")
    if iommufd is not None and iommufd.get("enabled") != "no":
        found.append(Obstacle("<iommufd> is enabled, which pins all guest memory", "remove <iommufd>"))
    found.extend(_of_interfaces(root))
    found.extend(_of_host_devices(root))
    found.extend(_of_arguments(root))
    for memory in root.iterfind("devices/memory"):
        if memory.get("model") == "virtio-mem":
            found.append(
                Obstacle(
                    "a memory device is virtio-mem, which discards its memory page by page", "make it a 'dimm'"
                )
            )
    return tuple(found)


def may_run_guests(root: etree._Element) -> bool:
    """Return whether the XML may give the guest the processor's virtualization: VMX or SVM.

    Models of libvirt's ``host-*`` modes have it where the host offers it, named models have it by a feature.
    """
    cpu = find_child(root, "cpu")
    if cpu is None:
        return False
    policies = {
        feature.get("name", ""): feature.get("policy", "require")
        for feature in cpu.iterfind("feature")
        if feature.get("name") in ("vmx", "svm")
    }
    if policies:
        return any(policy in ("require", "force", "optional") for policy in policies.values())
    return cpu.get("mode") in ("host-passthrough", "host-model", "maximum")


def _of_images(disk: etree._Element, name: str) -> Obstacle | None:
    """Inspect all images of a disk: its own source, those below and beside it."""
    for element in disk.iter("disk", "backingStore", "mirror", "dataStore"):
        if element.get("type") == "vhostvdpa":
            return Obstacle(f"{name} is vDPA, which pins all guest memory", f"give {name} another type")
        if element.get("type") == "nvme":
            return _vfio(f"{name} is an NVMe device that QEMU drives", f"give {name} another type")
    return None


def _of_interfaces(root: etree._Element) -> Iterator[Obstacle]:
    for interface in root.iterfind("devices/interface"):
        # the device that a network assigned is only in the XML of a starting or running domain
        kinds = [interface.get("type"), _attribute(interface, "actual", "type")]
        name = _named("interface", interface, _attribute(interface, "mac", "address"))
        if "vdpa" in kinds:
            yield Obstacle(f"{name} is vDPA, which pins all guest memory", f"give {name} another type")
        elif "hostdev" in kinds:
            yield _vfio(f"{name} is a host device", f"give {name} another type")


def _of_host_devices(root: etree._Element) -> Iterator[Obstacle]:
    for device in root.iterfind("devices/hostdev"):
        kind, source = device.get("type", "").strip(), find_child(device, "source", "address")
        parts = [] if source is None else [source.get(part, "") for part in ("domain", "bus", "slot", "function")]
        where = "" if source is None else source.get("uuid", "")
        if all(parts) and parts:
            where = "{}:{}:{}.{}".format(*(part.removeprefix("0x") for part in parts))
        name = _named("host device", device, where)
        if kind == "scsi_host":
            yield Obstacle(f"{name} is vhost-scsi, which pins guest memory", "use a <disk> of type 'block'")
        elif kind not in _COPYING_HOSTDEVS:
            yield _vfio(f"{name} is passed through", f"remove {name}")


def _of_arguments(root: etree._Element) -> Iterator[Obstacle]:
    for value in arguments_of(root):
        if _VFIO_ARGUMENT.search(value):
            yield _vfio("<qemu:commandline> has a device of VFIO", "remove it from <qemu:commandline>")
        elif _VDPA_ARGUMENT.search(value):
            yield Obstacle(
                "<qemu:commandline> has vDPA, which pins all guest memory", "remove it from <qemu:commandline>"
            )


def _named(what: str, device: etree._Element, where: str) -> str:
    name = _attribute(device, "alias", "name") or where
    return f"{what} {name}" if name else f"a {what}" if what[0] not in "aeiou" else f"an {what}"


def _vfio(what: str, fix: str) -> Obstacle:
    return Obstacle(f"{what} by VFIO, which takes no reference to the memory that a device writes to", fix)


def _attribute(element: etree._Element, child: str, name: str) -> str:
    found = find_child(element, child)
    return "" if found is None else found.get(name, "").strip()


def cannot_pin(name: str, pool: str, found: tuple[Obstacle, ...]) -> DomainRefused:
    """Return the refusal of the domain ``name`` on a ``pool`` without struct pages."""
    return DomainRefused(
        f"Domain {name!r} cannot work on pool {pool or 'default'!r}, whose memory has no struct pages:"
        f" {'; '.join(item.what for item in found)}.",
        hint=f"{_sentence('; '.join(item.fix for item in found))}; or use a pool of huge pages.",
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
