# SPDX-License-Identifier: GPL-2.0-or-later
"""Derive QEMU's memory backends of a domain at start: their names, sizes and host nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lxml import etree

from virt_dmem.domain_xml.fields import DUMPXML, find_child, read_nodeset, read_number, read_size, text_of
from virt_dmem.domain_xml.qemu.ram_ids import RAM_IDS
from virt_dmem.errors import DomainRefused, DomainXmlInvalid
from virt_dmem.units import MIB, round_up

__all__ = [
    "default_ram_id",
    "memory_backends",
    "refuse_too_many",
    "machine_without_name",
    "all_memory",
    "boot_memory",
    "guest_cells",
    "machine_of",
    "Cell",
    "PLACED_MODELS",
]

PLACED_MODELS = {"dimm": "dimm", "virtio-mem": "virtiomem"}
"""Models of memory devices whose memory comes from a pool, and the prefixes of libvirt's aliases of them. The
others have a path of their own (nvdimm, virtio-pmem) or memory of another kind (sgx-epc)."""

_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_SLOTS = 256
"""Of dimms and nvdimms together (ACPI_MAX_RAM_SLOTS in QEMU's include/hw/acpi/acpi.h). QEMU has no limit for
devices without a slot, as virtio-mem: each is a device on a bus, and no guest has more than this."""
_MOST_CELLS = 128
"""MAX_NODES in QEMU's include/sysemu/numa.h."""
_POLICIES = ("strict", "preferred", "interleave", "restrictive")


@dataclass(frozen=True)
class Cell:
    """One memory backend of a guest at start: a cell's, all boot memory, or a memory device's."""

    alias: str
    """The file's name: ``ram-node0`` …, the machine's default RAM id (``pc.ram``), a device's alias (``dimm0``)."""
    cell: int | None
    """The guest NUMA cell it is in; None in a guest without cells."""
    size_bytes: int
    """Its size in QEMU, rounded as libvirt does at start."""
    host_nodes: tuple[int, ...]
    """The host nodes of ``<numatune>``, ascending; empty: anywhere."""
    policy: str
    """``strict``, ``preferred``, ``interleave``, ``restrictive``, or empty without ``<numatune>``."""
    block_bytes: int = 0
    """Of virtio-mem: the unit in which it is plugged and unplugged; 0 for all others."""


def refuse_too_many(root: etree._Element) -> None:
    """Refuse more cells or memory devices than QEMU starts with, before any work for each of them.

    :raise DomainRefused: Names the elements, their number and the limit.
    """
    devices, nodes = len(root.findall("devices/memory")), len(root.findall("numatune/memnode"))
    for count, most, what in (
        (len(root.findall("cpu/numa/cell")), _MOST_CELLS, "guest NUMA cells"),
        (nodes, _MOST_CELLS, "<memnode> in its <numatune>"),
        (devices, _SLOTS, "memory devices"),
    ):
        if count > most:
            raise DomainRefused(
                f"The domain has {count} {what}, and QEMU supports {most}.",
                hint="Give it fewer and larger ones, or leave this domain as it is.",
            )


def memory_backends(root: etree._Element) -> tuple[Cell, ...]:
    """Return the memory backends at start: the guest's cells or its boot memory, then its devices.

    The alias is empty where it depends on a machine type that is missing, unknown, or without a backend.

    :raise DomainXmlInvalid: When sizes are missing or unreadable.
    :raise DomainRefused: When there are more than QEMU can have.
    """
    refuse_too_many(root)
    align = 256 * MIB if machine_of(root)[0].startswith("ppc64") else MIB  # qemuDomainAlignMemorySizes()
    cells = guest_cells(root)
    if cells:
        sizes = {cell: round_up(read_size(e.get("memory"), e.get("unit")), align) for cell, e in cells.items()}
        of_cells = _host_nodes_of_cells(root)
        found = [
            Cell(f"ram-node{cell}", cell, size, *of_cells.get(cell, of_cells[None])) for cell, size in sizes.items()
        ]
    else:
        size_bytes = round_up(boot_memory(root), align)
        found = [Cell(default_ram_id(root) or "", None, size_bytes, *_host_nodes_of_cells(root)[None])]
    found += _devices(root, align)
    if any(cell.size_bytes <= 0 for cell in found):
        raise DomainXmlInvalid("The domain XML gives no memory to the domain or to a part of it.", hint=DUMPXML)
    return tuple(found)


def guest_cells(root: etree._Element) -> dict[int, etree._Element]:
    """Return the ``<cell>`` elements by their ids, ascending; libvirt accepts 0 … n-1 only."""
    numa = find_child(root, "cpu", "numa")
    cells = [] if numa is None else numa.findall("cell")
    by_id = {read_number(cell.get("id", str(index)), "cell id"): cell for index, cell in enumerate(cells)}
    if sorted(by_id) != list(range(len(cells))):
        raise DomainXmlInvalid("The ids of the guest's NUMA cells do not count from 0 up.", hint=DUMPXML)
    return dict(sorted(by_id.items()))


def boot_memory(root: etree._Element) -> int:
    """Return the bytes of ``<memory>`` less those of all memory devices, as virDomainDefGetMemoryInitial()."""
    memory = find_child(root, "memory")
    if memory is None:
        raise DomainXmlInvalid("The domain XML has no <memory>.", hint=DUMPXML)
    devices = [find_child(device, "target", "size") for device in root.iterfind("devices/memory")]
    plugged = sum(read_size(text_of(size), size.get("unit")) for size in devices if size is not None)
    return read_size(text_of(memory), memory.get("unit")) - plugged


def all_memory(root: etree._Element) -> int:
    """Return the bytes of all memory of the domain, memory devices included.

    :raise DomainXmlInvalid: When sizes are missing or unreadable.
    """
    cells = guest_cells(root)
    if not cells:
        sizes = [boot_memory(root)]
    else:
        sizes = [read_size(cell.get("memory"), cell.get("unit")) for cell in cells.values()]
    for device in root.iterfind("devices/memory"):
        size = find_child(device, "target", "size")
        sizes += [] if size is None else [read_size(text_of(size), size.get("unit"))]
    return sum(sizes)


def _devices(root: etree._Element, align: int) -> list[Cell]:
    """Return the memory devices whose memory comes from a pool; virtio-mem with all that it may plug.

    The file of a device is named as its alias, which libvirt or the user wrote; else libvirt will choose it at
    start, for a dimm by its slot, for virtio-mem by its order (qemuAssignDeviceMemoryAlias()).
    """
    found: list[Cell] = []
    ordinal = 0
    free_slots = iter(sorted(set(range(_SLOTS)) - _taken_slots(root)))
    of_cells = _host_nodes_of_cells(root)
    for device in root.iterfind("devices/memory"):
        model, target = device.get("model", ""), find_child(device, "target")
        slot = _slot(device, free_slots) if model in ("dimm", "nvdimm") else None
        if model not in PLACED_MODELS:
            continue
        alias = find_child(device, "alias")
        if alias is not None:
            name = alias.get("name", "")
        else:
            name = f"{PLACED_MODELS[model]}{ordinal if slot is None else slot}"
            ordinal += slot is None
        if not _ALIAS.fullmatch(name):
            raise DomainXmlInvalid(f"The domain XML has a memory device with the alias {name!r}.", hint=DUMPXML)
        size, block = find_child(target, "size"), find_child(target, "block")
        cell = find_child(target, "node")
        number = None if cell is None else read_number(text_of(cell), "node of a memory device")
        size_bytes = 0 if size is None else round_up(read_size(text_of(size), size.get("unit")), align)
        block_bytes = 0 if block is None else read_size(text_of(block), block.get("unit"))
        nodes, policy = _host_nodes_of(device, of_cells.get(number, of_cells[None]))
        found.append(Cell(name, number, size_bytes, nodes, policy, block_bytes))
    return found


def _taken_slots(root: etree._Element) -> set[int]:
    addresses = root.iterfind("devices/memory/address[@type='dimm']")
    return {read_number(address.get("slot"), "slot") for address in addresses if address.get("slot") is not None}


def _slot(device: etree._Element, free_slots: Iterator[int]) -> int:
    """Return the slot of a dimm or nvdimm; without one the next free slot, as libvirt does."""
    address = find_child(device, "address")
    if address is not None and address.get("slot") is not None:
        return read_number(address.get("slot"), "slot")
    return next(free_slots, _SLOTS)


_HostNodes = tuple[tuple[int, ...], str]
"""Nodes, and policy."""


def _host_nodes_of_cells(root: etree._Element) -> dict[int | None, _HostNodes]:
    """Return the host nodes of each cell with nodes of its own; those of all others are under ``None``."""
    numatune = find_child(root, "numatune")
    found: dict[int | None, _HostNodes] = {None: _host_nodes(find_child(numatune, "memory"))}
    for memnode in [] if numatune is None else numatune.findall("memnode"):
        found[read_number(memnode.get("cellid"), "memnode cellid")] = _host_nodes(memnode)
    return found


def _host_nodes(element: etree._Element | None) -> _HostNodes:
    if element is None:
        return (), ""
    policy = element.get("mode", "strict")
    if policy not in _POLICIES:
        raise DomainXmlInvalid(f"The domain XML has an unknown numatune mode {policy!r}.", hint=DUMPXML)
    return read_nodeset(element.get("nodeset", "")), policy


def _host_nodes_of(device: etree._Element, of_cell: _HostNodes) -> _HostNodes:
    """Return nodes and policy: a ``<nodemask>`` of its own wins over its cell's nodes, not over their mode."""
    nodes, policy = of_cell
    nodemask = find_child(device, "source", "nodemask")
    return (nodes, policy) if nodemask is None else (read_nodeset(text_of(nodemask)), policy or "strict")


def machine_of(root: etree._Element) -> tuple[str, str]:
    """Return architecture and machine type, empty where they are missing."""
    os_type = find_child(root, "os", "type")
    return ("", "") if os_type is None else (os_type.get("arch", ""), os_type.get("machine", ""))


def default_ram_id(root: etree._Element) -> str | None:
    """Return libvirt's id of the one memory backend of a guest without cells; None: not known."""
    arch, machine = machine_of(root)
    known = [
        (len(family), ram_id)
        for arches, ram_id, families in RAM_IDS
        if arch in arches.split()
        for family in families.split()
        if machine == family or machine.startswith(f"{family}-")
    ]
    return max(known)[1] if known else None


def machine_without_name(root: etree._Element) -> DomainRefused:
    """Return the refusal of a domain whose boot memory has no name, or an unknown one."""
    arch, machine = machine_of(root)
    if not arch or not machine:
        return DomainXmlInvalid("The domain XML does not say its architecture and machine type.", hint=DUMPXML)
    if default_ram_id(root) is not None:
        return DomainRefused(
            f"QEMU makes no memory backend for the boot memory of a machine {machine!r} on {arch!r}.",
            hint="Its memory cannot come from a pool; leave this domain as it is.",
        )
    return DomainRefused(
        f"The name of the boot memory of a machine {machine!r} on {arch!r} is not known.",
        hint="Give the guest one NUMA cell with all its memory: its name does not depend on the machine.",
    )
