# SPDX-License-Identifier: GPL-2.0-or-later
"""Refuse, in words, domains that cannot be parked, or are. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from virt_dmem.allocation.models import ExtentState, Parked, ParkedStep, Reservation
from virt_dmem.domain_xml.monitor import is_monitored
from virt_dmem.errors import DomainParked, DomainRefused, ExtentError

__all__ = ["file_gone", "is_parked", "refuse_devices", "refuse_unsettled"]

_KEEP = "Remove it and start the domain anew; or move the domain to another host instead."


def is_parked(name: str, parked: Parked) -> DomainParked:
    """Return the error for a domain that would begin anew while its memory is kept."""
    state = f"its saved state is {parked.state_file}"
    if parked.step is ParkedStep.PARKING:
        state = "it is being saved"
    if parked.step in (ParkedStep.UNPARKING, ParkedStep.RESUMING):
        state = "it is being restored"
    return DomainParked(
        f"Domain {name} is parked: its memory is kept in the pool, and {state}.",
        hint=f"'virt-dmem unpark {parked.uuid}' lets it go on; 'virt-dmem unpark --discard {parked.uuid}' gives the"
        " memory back, and the guest up.",
    )


def file_gone(name: str, path: Path) -> ExtentError:
    """Return the error for a running domain whose memory has a file no more."""
    return ExtentError(
        f"The file {path} of running domain {name} was removed: the domain keeps its memory until it ends.",
        hint="Look for who removes files in pools; shut the domain down, and start it again.",
    )


def refuse_unsettled(reservation: Reservation) -> None:
    """Refuse a domain of which a memory device is being attached, resized or detached.

    :raise DomainRefused: Names the device.
    """
    for extent in reservation.extents:
        if extent.state is not ExtentState.POPULATED:
            raise DomainRefused(
                f"Memory device {extent.alias} of domain {reservation.name} is {extent.state.value}.",
                hint="Wait until that has ended ('virt-dmem show'), and try again.",
            )


def refuse_devices(name: str, root: etree._Element) -> None:
    """Refuse a domain whose memory or devices do not outlive its QEMU, as its live XML says.

    What libvirt itself cannot save it refuses itself, before it stops the guest.

    :raise DomainRefused: Names the devices.
    """
    if not is_monitored(root):
        raise DomainRefused(
            f"Domain {name} runs without QEMU's second monitor, by which it is told to leave its memory in place.",
            hint="Apply it with the monitor ('virt-dmem apply', without --no-monitor), shut it down and start it.",
        )
    if found := [*_passed_through(root), *_lost(root)]:
        raise DomainRefused(f"Domain {name} cannot be parked: {'; '.join(found)}.", hint=_KEEP)


def _passed_through(root: etree._Element) -> Iterator[str]:
    for device in root.iterfind("devices/hostdev"):
        yield f"a {device.get('type', '?')[:20]} host device is passed through"
    for interface in root.iterfind("devices/interface"):
        actual = interface.find("actual")
        kinds = {interface.get("type"), None if actual is None else actual.get("type")}
        for kind in sorted(kinds & {"hostdev", "vdpa", "vhostuser"}, key=str):
            yield f"an interface is of type {kind}"
    for disk in root.iterfind("devices/disk"):
        if disk.get("type") in ("nvme", "vhostuser", "vhostvdpa"):
            yield f"a disk is of type {disk.get('type')}"


def _lost(root: etree._Element) -> Iterator[str]:
    if root.find("memoryBacking/discard") is not None:
        yield "its <memoryBacking> has <discard/>, by which QEMU gives the memory up when it ends"
    for cell in root.iterfind("cpu/numa/cell"):
        if cell.get("discard") == "yes":
            yield f"NUMA cell {cell.get('id', '?')[:10]} has discard='yes'"
    for memory in root.iterfind("devices/memory"):
        if memory.get("model") == "virtio-mem":
            yield "it has a virtio-mem device, whose memory a QEMU before 8.1 discards when it starts"
        elif memory.get("model") != "dimm":
            yield f"it has a memory device of model {memory.get('model', '?')[:20]}"
        elif memory.get("discard") == "yes":
            yield "a memory device has discard='yes'"
