# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator should know and no command has failed to tell him: alerts, each with a stable code.

Pure: from what is known of guests, ledger and pools to the alerts that are due now. ``watch.py`` asks, and
remembers which of them are new.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from virt_dmem.allocation.models import Extent, Failure, Phase, PhaseChange
from virt_dmem.allocation.plan import NO_NODE
from virt_dmem.domain_xml.live import Guest
from virt_dmem.monitoring.alert_codes import (
    APPLY_FIGHT,
    APPLY_PAUSED,
    DEVICE_ON_RAW_MEMORY,
    EXTENT_ENLARGED,
    EXTENT_QUARANTINED,
    GUEST_OUTSIDE_POOL,
    LEDGER_DAMAGED,
    MEMORY_FAILED,
    MEMORY_OUTSIDE_POOL,
    MEMORY_PINNED,
    POOL_SHORT,
    RECONCILE_FAILED,
)
from virt_dmem.units import format_size

__all__ = ["Alert", "Facts", "due"]

_MOST = 100
"""So many alerts of a kind whose number others choose."""
START_SECONDS = 30.0
"""A guest that libvirt calls started is expected to be RUNNING in the ledger within so long."""


@dataclass(frozen=True)
class Alert:
    """One thing that is not as it should be: what, where, what happened, what to do."""

    code: str
    subject: str
    """The UUID of a domain, the name of a pool, the path of a file: with ``code`` it tells alerts apart."""
    message: str
    hint: str


@dataclass(frozen=True)
class Facts:
    """What is known at one moment."""

    uptime: float
    """By ``host.uptime``: how old things are, nobody's setting of a clock is to change."""
    guests: Iterable[Guest] = ()
    """Those that libvirt says have started and run."""
    standings: Mapping[str, PhaseChange] = field(default_factory=dict)
    """Domains (UUIDs) that hold memory, and how far it has come."""
    extents: Mapping[str, Collection[str]] = field(default_factory=dict)
    """The aliases of the extents of guests (UUIDs) with memory devices."""
    on_raw_memory: Mapping[str, str] = field(default_factory=dict)
    """Guests (UUIDs) with devices that need struct pages and memory that has none, and the pool of that."""
    quarantined: Iterable[Extent] = ()
    capacity: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Bytes that there really are, by segment of a pool and node."""
    reserved: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Bytes that domains hold, likewise; also of pools that are gone."""
    pinned: Mapping[str, int] = field(default_factory=dict)
    """Bytes by segment that guests gave back and somebody has kept pinned for a while."""
    enlarged: Mapping[str, int] = field(default_factory=dict)
    """Bytes by path that the files of domains were too large, and were cut to their size."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """What could not be reconciled: each item, and why."""
    damaged_ledger: str = ""
    """The path of a ledger that could not be read and was set aside."""
    failures: Iterable[Failure] = ()
    """Extents with memory that failed."""
    fights: Mapping[str, str] = field(default_factory=dict)
    """What to say of each domain (UUID) whose XML another tool keeps changing back."""
    paused_until: float | None = None
    """Until when automatic apply is paused, in seconds since the epoch; ``None``: it is not."""
    is_alive: Callable[[Guest], bool] = lambda _: True
    """Whether a guest's QEMU is there: libvirt's word may be a moment old. Asked of suspects only."""


def due(facts: Facts) -> list[Alert]:
    """Return the alerts that are due, those of guests first."""
    return [
        *_guests(facts),
        *_raw(facts),
        *_quarantined(facts),
        *_enlarged(facts),
        *_failed(facts),
        *_pools(facts),
        *_pinned(facts),
        *_reconcile(facts),
        *_apply(facts),
    ]


def _guests(facts: Facts) -> Iterable[Alert]:
    for guest in sorted(facts.guests, key=lambda guest: guest.name):
        standing = facts.standings.get(guest.uuid)
        if guest.managed and _is_outside(standing, facts.uptime) and facts.is_alive(guest):
            knows = f"still holds it {standing.phase.value}" if standing else "knows nothing of its start"
            yield Alert(
                GUEST_OUTSIDE_POOL,
                guest.uuid,
                f"Domain {guest.name} asks for pool memory and runs outside of any pool: virt-dmemd {knows}.",
                "Run 'virt-dmem check' and mend what it says of the hook, then shut the domain down and start it.",
            )
        elif guest.managed or standing:
            ours = facts.extents.get(guest.uuid, ())
            for device in guest.devices:
                if device.alias not in ours:
                    yield Alert(
                        MEMORY_OUTSIDE_POOL,
                        f"{guest.uuid} {device.alias}",
                        f"Domain {guest.name} has {format_size(device.size_bytes)} outside of any pool, in its"
                        f" memory device {device.alias} ({device.model}).",
                        "Take the device away with 'virsh detach-device', and use 'virt-dmem attach' instead.",
                    )


def _raw(facts: Facts) -> Iterable[Alert]:
    for guest in sorted(facts.guests, key=lambda guest: guest.name):
        pool = facts.on_raw_memory.get(guest.uuid)
        if pool is None:
            continue
        for obstacle in guest.obstacles:
            yield Alert(
                DEVICE_ON_RAW_MEMORY,
                f"{guest.uuid} {obstacle.what}",
                f"Domain {guest.name} runs on pool {pool}, whose memory has no struct pages, and {obstacle.what}.",
                f"{obstacle.fix[:1].upper()}{obstacle.fix[1:]} ('virsh detach-device' while it runs), or shut the"
                " domain down and give it a pool of huge pages.",
            )


def _is_outside(standing: PhaseChange | None, uptime: float) -> bool:
    if standing is None:
        return True
    if standing.phase is Phase.STOPPED:  # libvirt has not said so yet
        return False
    return standing.phase is not Phase.RUNNING and uptime - standing.uptime > START_SECONDS


def _quarantined(facts: Facts) -> Iterable[Alert]:
    quarantined = list(facts.quarantined)
    for extent in quarantined[:_MOST]:
        yield Alert(
            EXTENT_QUARANTINED,
            str(extent.path),
            f"A process still has {format_size(extent.size_bytes)} of pool {extent.segment} that domain"
            f" {extent.uuid} had before it ended.",
            f"'fuser -v {extent.path}' names the process; end it, and the memory is free some seconds later.",
        )
    yield from _more(EXTENT_QUARANTINED, len(quarantined))


def _more(code: str, number: int) -> Iterable[Alert]:
    """Say how many there are beyond those that are named: others can cause any number, and each costs time."""
    if number > _MOST:
        yield Alert(
            code,
            "more",
            f"There are {number - _MOST} more of this kind than those {_MOST} that are named.",
            "Mend what is named, and see what is left.",
        )


def _enlarged(facts: Facts) -> Iterable[Alert]:
    for path, size in [*facts.enlarged.items()][:_MOST]:
        yield Alert(
            EXTENT_ENLARGED,
            path,
            f"The memory file {path} of a domain was made {format_size(size)} larger than what the domain reserved;"
            " it was cut back.",
            f"'fuser -v {path}' names who has it open; QEMU does not do that by itself. The alert ends with the"
            " domain.",
        )
    yield from _more(EXTENT_ENLARGED, len(facts.enlarged))


def _pinned(facts: Facts) -> Iterable[Alert]:
    for segment, size in sorted(facts.pinned.items()):
        yield Alert(
            MEMORY_PINNED,
            segment,
            f"{format_size(size)} of pool {segment} belong to no domain and are not free: most likely guests gave"
            " them back, and a process or a device keeps them pinned.",
            "They are free by themselves when the pin is gone: look for processes of QEMU's user that outlive their"
            " guest, for direct I/O or RDMA that does not end, and for files in the pool that are not virt-dmem's.",
        )


def _reconcile(facts: Facts) -> Iterable[Alert]:
    if facts.damaged_ledger:
        yield Alert(
            LEDGER_DAMAGED,
            facts.damaged_ledger,
            f"The ledger was damaged and is now {facts.damaged_ledger}; running domains were found again.",
            "Look for a failing disk; remove that file when you do not need it any more.",
        )
    for item, why in sorted(facts.failed.items())[:_MOST]:
        yield Alert(
            RECONCILE_FAILED,
            item,
            f"{item} could not be reconciled: {why}",
            "It is tried again every few seconds; all others were reconciled.",
        )
    yield from _more(RECONCILE_FAILED, len(facts.failed))


def _failed(facts: Facts) -> Iterable[Alert]:
    for failure in facts.failures:
        yield Alert(
            MEMORY_FAILED,
            str(failure.path),
            f"Memory of domain {failure.domain} failed ({failure.what}), somewhere in {failure.path}.",
            "Look in the kernel log for the machine check, replace the module, and restart the domain soon.",
        )


def _pools(facts: Facts) -> Iterable[Alert]:
    for name in sorted({segment for segment, _ in facts.reserved}):
        held = {node: size for (segment, node), size in facts.reserved.items() if segment == name}
        has = {node: facts.capacity.get((name, node), 0) for node in held}
        if any(has[node] < held[node] for node in held):
            on = ", ".join(
                f"{format_size(held[node])} of {format_size(has[node])} on node {node}"
                for node in sorted(held)
                if node != NO_NODE and has[node] < held[node]
            )
            yield Alert(
                POOL_SHORT,
                name,
                f"Pool {name} has {format_size(sum(has.values()))}, and domains hold"
                f" {format_size(sum(held.values()))} of it{f' ({on})' if on else ''}.",
                f"'virt-dmem pool show {name}' and 'virt-dmem check' show what is missing; look who unmounted or"
                " resized it, and shut its domains down before you mount it again.",
            )


def _apply(facts: Facts) -> Iterable[Alert]:
    for uuid, message in sorted(facts.fights.items()):
        hint = f"Find the tool that redefines the domain, then run: virt-dmem apply {uuid}"
        yield Alert(APPLY_FIGHT, uuid, message, hint)
    if facts.paused_until is not None:
        until = "until it is resumed"
        if math.isfinite(facts.paused_until):
            until = f"until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(facts.paused_until))}"
        yield Alert(
            APPLY_PAUSED,
            "",
            f"Automatic apply is paused {until}: domains defined with our metadata are not rewritten.",
            "Run 'virt-dmem pause-apply --resume' when the other tool is done.",
        )
