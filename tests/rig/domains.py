# SPDX-License-Identifier: GPL-2.0-or-later
"""Write domain XML of small guests for tests."""

from __future__ import annotations

import uuid as uuids
from typing import TYPE_CHECKING

from lxml import etree
from lxml.builder import E

from tests.rig.namespace import KVM
from tests.rig.private_libvirt import CONSOLES
from virt_dmem.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.rig.guest import GuestImage

__all__ = ["domain_xml"]

_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


def _kib(size: str) -> str:
    return str(parse_size(size) // 1024)


def _boot(arch: str, machine: str, image: GuestImage | None, cmdline: str) -> etree._Element:
    os = E.os(E.type("hvm", arch=arch, machine=machine))
    if image is not None:
        os.append(E.kernel(str(image.kernel)))
        os.append(E.initrd(str(image.initrd)))
        console = "ttyAMA0 quiet" if arch == "aarch64" else "ttyS0 quiet panic=-1 no_timer_check"
        os.append(E.cmdline(f"console={console} {cmdline}".strip()))
    return os


def domain_xml(
    name: str,
    *,
    memory: str = "64MiB",
    current_memory: str = "",
    cells: Sequence[str] = (),
    vcpus: int = 1,
    arch: str = "x86_64",
    machine: str = "pc",
    image: GuestImage | None = None,
    cmdline: str = "",
    metadata: str = "",
    memory_backing: str = "",
    numatune: str = "",
    max_memory: str = "",
    slots: int = 4,
    devices: str = "",
    qemu_args: Sequence[str] = (),
    uuid: str = "",
    kind: str = "kvm" if KVM else "qemu",
) -> str:
    """Return the XML of a guest with no disk, network, USB or graphics; under TCG if ``kind`` is "qemu".

    Sizes are strings as users write them ("64MiB"). ``cells``: one size for each guest NUMA cell, their sum
    replaces ``memory``; ``vcpus`` is then at least their number. ``max_memory`` with ``slots`` enables memory
    hotplug (give ``cells`` too). ``arch``: "x86_64", or "aarch64" under KVM with machine "virt". ``image``: what to
    boot; without it the firmware finds nothing. The others are XML that is inserted unchanged: ``metadata`` inside
    <metadata>, ``memory_backing`` inside <memoryBacking>, ``numatune`` inside <numatune>, ``devices`` inside
    <devices>. The serial console goes to a file, see ``PrivateLibvirt.console()``. On x86-64 the kernel's test of
    its timer at boot, which panics on a busy host, is left out. There is a balloon only with ``current_memory`` or
    in ``devices``.
    """
    vcpus = max(vcpus, len(cells))
    total_kib = sum(int(_kib(cell)) for cell in cells) if cells else int(_kib(memory))
    root = etree.Element("domain", {"type": kind}, nsmap={"qemu": _QEMU_NAMESPACE})
    root.append(E.name(name))
    root.append(E.uuid(uuid or str(uuids.uuid4())))
    if metadata:
        root.append(etree.fromstring(f"<metadata>{metadata}</metadata>"))
    if max_memory:
        root.append(E.maxMemory(_kib(max_memory), unit="KiB", slots=str(slots)))
    root.append(E.memory(str(total_kib), unit="KiB"))
    if current_memory:
        root.append(E.currentMemory(_kib(current_memory), unit="KiB"))
    if memory_backing:
        root.append(etree.fromstring(f"<memoryBacking>{memory_backing}</memoryBacking>"))
    if numatune:
        root.append(etree.fromstring(f"<numatune>{numatune}</numatune>"))
    root.append(E.vcpu(str(vcpus)))
    root.append(_boot(arch, machine, image, cmdline))
    if arch != "aarch64":  # where ACPI needs UEFI
        root.append(E.features(E.acpi()))
    if cells:
        numa = E.numa()
        for number, cell in enumerate(cells):
            cpus = f"{number}" if number < len(cells) - 1 else f"{number}-{vcpus - 1}"
            numa.append(E.cell(id=str(number), cpus=cpus, memory=_kib(cell), unit="KiB"))
        root.append(E.cpu(numa, mode="host-passthrough") if arch == "aarch64" else E.cpu(numa))
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "destroy"), ("on_crash", "destroy")):
        root.append(etree.fromstring(f"<{event}>{action}</{event}>"))
    serial = E.serial(E.source(path=str(CONSOLES / f"{name}.log")), E.target(port="0"), type="file")
    box = E.devices(E.controller(type="usb", model="none"), serial)
    if not current_memory and "<memballoon" not in devices:
        box.append(E.memballoon(model="none"))
    box.extend(etree.fromstring(f"<devices>{devices}</devices>"))
    root.append(box)
    if qemu_args:
        extra = etree.SubElement(root, f"{{{_QEMU_NAMESPACE}}}commandline")
        for argument in qemu_args:
            etree.SubElement(extra, f"{{{_QEMU_NAMESPACE}}}arg", value=argument)
    return etree.tostring(root, encoding="unicode", pretty_print=True)
