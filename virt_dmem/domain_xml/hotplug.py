# SPDX-License-Identifier: GPL-2.0-or-later
"""Prepare a domain for memory hotplug: slots, a maximum, a guest NUMA cell.

The original elements are kept in the record of ``rewrite``, which calls this::

    <dmem:replaced hotplug="68719476736" added="… maxMemory numa cpu">
      <dmem:maxMemory slots="4" unit="KiB">4194304</dmem:maxMemory>
    </dmem:replaced>

``hotplug``: the requested maximum, in bytes. ``added``: which of the three were missing before.
"""

from __future__ import annotations

from collections.abc import Callable

from lxml import etree

from virt_dmem.domain_xml.edit import insert, last_of, lay_out, remove, swap
from virt_dmem.domain_xml.fields import find_child, read_number, read_size, text_of
from virt_dmem.domain_xml.memory_backends import all_memory, boot_memory, guest_cells, machine_of
from virt_dmem.errors import DomainRefused
from virt_dmem.units import KIB, MIB, format_size, round_up

__all__ = ["prepare", "prepared", "undo"]

_SLOTS = 16
"""Memory devices that a prepared domain can have at least; QEMU supports 256."""

_NO_ACPI = ("ppc64", "ppc64le")
_MACHINES = (
    ("x86_64 i686", ("pc", "q35")),
    ("aarch64", ("virt",)),
    ("ppc64 ppc64le", ("pseries",)),
)
"""Machine types that support memory hotplug (QEMU's get_hotplug_handler of hw/{i386,arm,ppc})."""


def prepared(record: etree._Element | None) -> int | None:
    """Return the maximum (bytes) in the record of an applied domain; ``None``: it was not prepared for hotplug."""
    hotplug = None if record is None else record.get("hotplug")
    return read_number(hotplug, "hotplug") if hotplug else None


def prepare(
    root: etree._Element,
    record: etree._Element,
    added: list[str],
    max_bytes: int,
    insert_resource: Callable[..., None],
) -> None:
    """Add the elements that memory hotplug up to ``max_bytes`` in all requires, and note them in ``record``.

    :raise DomainRefused: When its machine has no memory hotplug, or that much memory already; names the cause.
    """
    _refuse(root, max_bytes)
    record.set("hotplug", str(max_bytes))
    new = etree.Element("maxMemory", slots=str(_SLOTS), unit="KiB")
    new.text = str(max_bytes // KIB)
    now = find_child(root, "maxMemory")
    if now is None:
        insert_resource(root, new, "memory")
        added.append("maxMemory")
    else:
        new.set("slots", str(max(_SLOTS, read_number(now.get("slots", "0"), "slots"))))
        swap(now, new)
        now.tag = f"{{{etree.QName(record).namespace}}}maxMemory"
        record.append(now)
    if not guest_cells(root):
        _add_cell(root, added)


def _refuse(root: etree._Element, max_bytes: int) -> None:
    name = text_of(find_child(root, "name"))
    arch, machine = machine_of(root)
    kinds = next((kinds for arches, kinds in _MACHINES if arch in arches.split()), ())
    if machine and not any(machine == kind or machine.startswith(f"{kind}-") for kind in kinds):
        raise DomainRefused(
            f"Domain {name!r} is a machine {machine!r} on {arch!r}, which does not support memory hotplug.",
            hint=f"Use a machine type that does: {' or '.join(kinds)}."
            if kinds
            else f"No machine of {arch} does; do without --hotplug-max.",
        )
    if arch not in _NO_ACPI and find_child(root, "features", "acpi") is None:
        raise DomainRefused(
            f"Domain {name!r} has no ACPI, by which a guest learns of new memory.",
            hint="Add <acpi/> to its <features>, and boot it by UEFI (<os firmware='efi'>), without which libvirt"
            " allows none here."
            if arch == "aarch64"
            else "Add <acpi/> to its <features>.",
        )
    if max_bytes % MIB:
        raise DomainRefused(
            f"{max_bytes} bytes, the maximum memory for domain {name!r}, are not a multiple of 1 MiB.",
            hint=f"The nearest size is {max_bytes // MIB} MiB or {max_bytes // MIB + 1} MiB.",
        )
    has_bytes = all_memory(root)
    if max_bytes <= has_bytes:
        raise DomainRefused(
            f"Domain {name!r} has {format_size(has_bytes)} already, and its maximum is to be"
            f" {format_size(max_bytes)}.",
            hint="--hotplug-max is the total of the memory at start and the memory attached later.",
        )


def _add_cell(root: etree._Element, added: list[str]) -> None:
    """Put all boot memory and all CPUs into one cell: libvirt requires one, and QEMU names its memory by it."""
    cpu = find_child(root, "cpu")
    if cpu is None:
        cpu = etree.Element("cpu")
        insert(
            root, cpu, last_of(root, "features", "os") if last_of(root, "features", "os") is not None else root[-1]
        )
        added.append("cpu")
    numa = etree.Element("numa")
    insert(cpu, numa, cpu[-1] if len(cpu) else None)
    vcpus = read_number(text_of(find_child(root, "vcpu")).strip() or "1", "number of vCPUs")
    size_kib = round_up(boot_memory(root), MIB) // KIB
    cpus = "0" if vcpus == 1 else f"0-{vcpus - 1}"
    etree.SubElement(numa, "cell", id="0", cpus=cpus, memory=str(size_kib), unit="KiB")
    added.append("numa")
    if "cpu" in added:
        lay_out(cpu)
    lay_out(numa)


def undo(root: etree._Element, record: etree._Element, added: list[str]) -> None:
    """Undo ``prepare``, but for the elements that memory devices added since then need."""
    wanted, now = prepared(record), find_child(root, "maxMemory")
    if wanted is None or ("maxMemory" in added and root.find("devices/memory") is not None):
        return
    cpu = find_child(root, "cpu")
    numa = find_child(cpu, "numa")
    if "numa" in added and cpu is not None and numa is not None and len(numa.findall("cell")) == 1:
        remove(numa)
        if "cpu" in added and not len(cpu) and not cpu.attrib:
            remove(cpu)
    kept = find_child(record, f"{{{etree.QName(record).namespace}}}maxMemory")
    ours = now is not None and read_size(text_of(now), now.get("unit")) == wanted
    if now is not None and ours:  # else somebody set another maximum
        if "maxMemory" in added:
            remove(now)
        elif kept is not None:
            kept.tag = "maxMemory"
            swap(now, kept)
