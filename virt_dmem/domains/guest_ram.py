# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify that a domain's RAM is its extents: all of them, and nothing else.

That QEMU maps a file does not make it the guest's RAM: ``<qemu:commandline>`` can give the machine another memory
backend, and the extent is then charged, mapped, and never used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from virt_dmem.allocation.models import Reservation
from virt_dmem.domain_xml.devices import is_boot_backend
from virt_dmem.domain_xml.qemu.guest_ram import BOOT, RamUse
from virt_dmem.errors import NotMapped
from virt_dmem.hypervisor.guest_ram import GuestRam, read_guest_ram
from virt_dmem.pools import extent_files
from virt_dmem.units import format_size

__all__ = ["verify"]


def verify(reservation: Reservation, pid: int) -> None:
    """Verify the RAM of a QEMU (PID) that has just started. It may delay that: for worker threads.

    :raise NotMapped: When it does not map an extent in full, does not use one as RAM, or has other RAM beside them.
    """
    extents = reservation.extents
    extent_files.check_mapped(pid, [(extent.alias, extent.path, extent.size_bytes) for extent in extents])
    ram = read_guest_ram(reservation.uuid, pid)
    boot = {extent.alias: extent.size_bytes for extent in extents if is_boot_backend(extent.alias)}
    devices = {f"mem{extent.alias}" for extent in extents if not is_boot_backend(extent.alias)}
    _compare(reservation.name, ram, boot, devices)


def _compare(name: str, ram: GuestRam, boot: Mapping[str, int], devices: Collection[str]) -> None:
    for use in ram.uses:
        if use.backend not in (boot if use.user in BOOT else devices):
            raise _elsewhere(name, _describe(use))
    used = {use.backend for use in ram.uses}
    if unused := sorted({*boot, *devices} - used):
        raise _elsewhere(name, f"memory backend {unused[0]!r} from the pool is used by nothing")
    has_bytes, boot_bytes = ram.boot_bytes or 0, sum(boot.values())
    if has_bytes > boot_bytes:
        raise _elsewhere(
            name,
            f"QEMU has {format_size(has_bytes)} of boot memory, and {format_size(boot_bytes)} are from the pool",
        )


def _describe(use: RamUse) -> str:
    if not use.backend:
        return f"{use.user} has memory that QEMU made by itself"
    return f"{use.user} has memory backend {use.backend!r}"


def _elsewhere(name: str, what: str) -> NotMapped:
    return NotMapped(
        f"The RAM of domain {name} is not the memory that was prepared for it: {what}.",
        hint="Remove what changes it: <qemu:commandline>, <qemu:override>, or a script that is its <emulator>.",
    )
