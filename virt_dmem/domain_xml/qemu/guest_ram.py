# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the memory that is a guest's RAM, in QEMU's own arguments: a memory backend is, once something uses it so.

A file of a pool that QEMU maps is not the guest's RAM if ``<qemu:commandline>`` gives the machine another memory
backend. Such arguments are foreseen in the XML (``brought_along``), and those of a QEMU that runs are read again
(``ram_uses``). A memory backend that only another device uses, ivshmem or nvdimm, is not RAM, and does no harm; nor
does ``-mem-prealloc``: a pool's memory is populated anyway.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lxml import etree

from virt_dmem.domain_xml.qemu.arguments import QEMU_NAMESPACE, Option, arguments_of, options
from virt_dmem.text import clipped

__all__ = ["BOOT", "RamUse", "brought_along", "ram_uses", "refers_to_boot_memory"]

BOOT = ("the machine", "a NUMA node")
"""The users of boot memory; all others are memory devices."""

_RAM_DEVICES = {"pc-dimm": "memdev", "virtio-mem": "memdev", "cxl-type3": "volatile-memdev", "hv-balloon": "memdev"}
"""Devices that bring RAM, by the beginnings of their names, and the property that names its memory backend."""
_NO_RAM = "memory-backend-epc"
"""For SGX, which libvirt's ``<memory model='sgx-epc'>`` uses."""
_MEMORY_PROPERTY = re.compile(r"(?:^|[.=,])(?:(?:volatile-)?memdev|mem-path|memory-backend)(?:[=,]|$)")
_MEMORY_GROUP = re.compile(r"(?:object|memory|machine|numa)\.")
_MOST = 5
"""Arguments that are named; all have to go."""


@dataclass(frozen=True)
class RamUse:
    """A use of a memory backend as RAM."""

    user: str
    """One of ``BOOT``, or a memory device."""
    backend: str
    """The id of its object; empty: one that QEMU makes by itself."""


def ram_uses(arguments: Sequence[str]) -> list[RamUse]:
    """Return what is RAM of the guest by the command line of a QEMU; of a repeated option the last counts."""
    machine, others = "", []
    for option in options(arguments):
        if option.name == "machine":
            machine = option.values.get("memory-backend", machine)
        elif option.name == "numa" and option.get("memdev"):
            others.append(RamUse(BOOT[1], option.get("memdev")))
        elif option.name == "device" and (property_of := _ram_device(option)):
            others.append(RamUse(f"memory device {_named(option)}", option.get(property_of)))
    if machine or not any(use.user in BOOT for use in others):
        others.insert(0, RamUse(BOOT[0], machine))
    return others


def refers_to_boot_memory(backend: str, ram_id: str | None) -> bool:
    """Return whether an id is that of libvirt's own boot memory. ``ram_id``: the machine's, if it is known."""
    return backend == ram_id or re.fullmatch(r"ram-node\d+", backend) is not None


def brought_along(root: etree._Element, ram_id: str | None) -> list[str]:
    """Return what in ``<qemu:commandline>`` and ``<qemu:override>`` makes other memory the guest's RAM, or may.

    :param ram_id: The id of libvirt's boot memory of a guest without cells, if the machine is known.
    """
    found = [*_of_arguments([*options(arguments_of(root))], ram_id), *_of_override(root)]
    return found if len(found) <= _MOST else [*found[:_MOST], f"{len(found) - _MOST} more"]


def _of_arguments(given: Sequence[Option], ram_id: str | None) -> Iterator[str]:
    harmless = {
        value for one in given if one.name == "device" and not _ram_device(one) for value in one.values.values()
    }
    for option in given:
        if reason := _reason(option, ram_id, harmless):
            shown = option.text.partition("=")[0] if option.name == "set" else option.text  # it may set a password
            yield f"-{option.name} {clipped(shown, 120)!r} {reason}"


def _reason(option: Option, ram_id: str | None, harmless: Iterable[str]) -> str:
    """Return what an option does to the guest's RAM; empty: nothing."""
    match option.name:
        case "machine" if not refers_to_boot_memory(
            option.values.get("memory-backend", ram_id or "ram-node0"), ram_id
        ):
            return "gives the machine another memory backend"
        case "numa" if not refers_to_boot_memory(option.values.get("memdev", "ram-node0"), ram_id):
            return "gives a NUMA node another memory backend"
        case "device" if _ram_device(option):
            return "adds RAM that libvirt does not know"
        case "object" if _is_backend(option) and option.get("id") not in harmless:
            return "makes a memory backend that no device but RAM can use"
        case "m" if option.get("size", first=True):
            return "sets the size of the memory"
        case "machine" if option.get("memory.size") or option.get("memory"):
            return "sets the size of the memory"
        case "machine" if option.get("confidential-guest-support") or option.get("memory-encryption"):
            return "protects the memory from the host, which may have to keep it elsewhere"
        case "mem-path":
            return "has QEMU make the memory in another place"
        case "readconfig":
            return "may define memory, in a file that is not read here"
        case "set" if _MEMORY_GROUP.match(option.text) or _MEMORY_PROPERTY.search(option.text):
            return "changes memory that was defined before"
        case "global" if _MEMORY_PROPERTY.search(option.text):
            return "gives devices another memory backend"
    return ""


def _of_override(root: etree._Element) -> Iterator[str]:
    for device in root.iterfind(f"{{{QEMU_NAMESPACE}}}override/{{{QEMU_NAMESPACE}}}device"):
        for found in device.iter(f"{{{QEMU_NAMESPACE}}}property"):
            name, parent = found.get("name", ""), found.getparent()
            of_backend = parent is not None and parent.tag != f"{{{QEMU_NAMESPACE}}}frontend"
            if _MEMORY_PROPERTY.search(name.replace("_", "-")) or (of_backend and name in ("share", "size")):
                yield f"<qemu:override> sets {clipped(name, 80)!r} of {clipped(device.get('alias', ''), 80)!r}"


def _ram_device(option: Option) -> str:
    """Return the property that names the RAM of a device; empty for one without."""
    driver = option.get("driver", first=True)
    return next((name for kind, name in _RAM_DEVICES.items() if driver.startswith(kind)), "")


def _is_backend(option: Option) -> bool:
    kind = option.get("qom-type", first=True)
    return kind.startswith("memory-backend-") and kind != _NO_RAM


def _named(option: Option) -> str:
    return clipped(option.get("id") or option.get("driver", first=True), 80)
