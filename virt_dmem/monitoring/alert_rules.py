# SPDX-License-Identifier: GPL-2.0-or-later
"""Derive the alerts that are due from the state of guests, ledger and pools: faults that no command reported.

Pure; ``alert_tracker`` collects the facts, and remembers which alerts are new.
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
    APPLY_PAUSED,
    DEVICE_ON_RAW_MEMORY,
    EXTENT_ENLARGED,
    EXTENT_QUARANTINED,
    GUEST_OUTSIDE_POOL,
    LEDGER_DAMAGED,
    LIBVIRT_UNREACHABLE,
    MEMORY_FAILED,
    MEMORY_OUTSIDE_POOL,
    MEMORY_PINNED,
    POOL_SHORT,
    RECONCILE_FAILED,
)
from virt_dmem.text import counted
from virt_dmem.units import format_size

__all__ = ["Alert", "Facts", "due"]

_LIMIT = 100
"""Alerts of one kind that are named, where others can cause any number."""
START_SECONDS = 30.0
"""Time within which a guest that libvirt calls started is expected to be RUNNING in the ledger."""

LIBVIRT_SECONDS = 60.0
"""Time for which libvirt may be away, as it is when it is restarted."""


@dataclass(frozen=True)
class Alert:
    """A fault, with its place and how to fix it."""

    code: str
    subject: str
    """UUID of a domain, name of a pool or path of a file; identifies the alert together with ``code``."""
    message: str
    hint: str


@dataclass(frozen=True)
class Facts:
    """State of the host at one moment."""

    uptime: float
    """By ``kernel.uptime``, as ages must not depend on the wall clock."""
    guests: Iterable[Guest] = ()
    """Running guests, according to libvirt."""
    phases: Mapping[str, PhaseChange] = field(default_factory=dict)
    """Domains that hold memory, by UUID, with the phase of their start."""
    extents: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Aliases of the extents of guests with memory devices, by UUID."""
    on_raw_memory: Mapping[str, str] = field(default_factory=dict)
    """Pools without struct pages, by the UUID of guests with devices that need them."""
    quarantined: Iterable[Extent] = ()
    capacity: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Bytes that exist, by segment and node."""
    reserved: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Bytes that domains hold, likewise; also of pools that no longer exist."""
    pinned: Mapping[str, int] = field(default_factory=dict)
    """Bytes by segment that guests gave back and that have been pinned for some time."""
    enlarged: Mapping[str, int] = field(default_factory=dict)
    """Bytes by path by which files of domains were too large, and were truncated."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Items that could not be reconciled, with the reason."""
    damaged_ledger: str = ""
    """The path of a ledger that could not be read and was set aside."""
    failures: Iterable[Failure] = ()
    """Extents with failed memory."""
    definitions: Collection[Alert] = ()
    """What is wrong with the definitions of domains, found when they were defined or listed."""
    deviations: Iterable[Alert] = ()
    """Alerts of what others changed on the host."""
    libvirt_gone_seconds: float = 0.0
    """How long libvirt has not answered; 0: it does."""
    paused_until: float | None = None
    """End of the pause of automatic apply, in seconds since the epoch; ``None``: it is not paused."""
    is_alive: Callable[[Guest], bool] = lambda _: True
    """Return whether a guest's QEMU exists: libvirt's word may be a moment old. Called for suspects only."""


def due(facts: Facts) -> list[Alert]:
    """Return the alerts that are due, those of guests first."""
    return [
        *_guests(facts),
        *_raw(facts),
        *_quarantined(facts),
        *_enlarged(facts),
        *_failed(facts),
        *_pools(facts),
        *facts.deviations,
        *_pinned(facts),
        *_libvirt(facts),
        *_reconcile(facts),
        *_apply(facts),
    ]


def _guests(facts: Facts) -> Iterable[Alert]:
    for guest in sorted(facts.guests, key=lambda guest: guest.name):
        change = facts.phases.get(guest.uuid)
        if (guest.managed or guest.rule) and _is_outside(change, facts.uptime) and facts.is_alive(guest):
            state = f"has it as {change.phase.value}" if change else "did not see its start"
            wants = f"is taken by rule {guest.rule}" if guest.rule else "asks for pool memory"
            since = ", unless it was started before there was that rule" if guest.rule else ""
            yield Alert(
                GUEST_OUTSIDE_POOL,
                guest.uuid,
                f"Domain {guest.name} {wants} but runs outside of any pool: virt-dmemd {state}.",
                f"Run 'virt-dmem check' and fix the checks of the hook{since}; then shut the domain down and start"
                " it.",
            )
        elif guest.managed or change:
            ours = facts.extents.get(guest.uuid, ())
            for device in guest.devices:
                if device.alias not in ours:
                    yield Alert(
                        MEMORY_OUTSIDE_POOL,
                        f"{guest.uuid} {device.alias}",
                        f"Domain {guest.name} has {format_size(device.size_bytes)} outside of any pool, in its"
                        f" memory device {device.alias} ({device.model}).",
                        "Detach the device with 'virsh detach-device', and use 'virt-dmem attach' instead.",
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


def _is_outside(change: PhaseChange | None, uptime: float) -> bool:
    if change is None:
        return True
    if change.phase is Phase.STOPPED:  # libvirt has not said so yet
        return False
    return change.phase is not Phase.RUNNING and uptime - change.uptime > START_SECONDS


def _quarantined(facts: Facts) -> Iterable[Alert]:
    quarantined = list(facts.quarantined)
    for extent in quarantined[:_LIMIT]:
        yield Alert(
            EXTENT_QUARANTINED,
            str(extent.path),
            f"A process still uses {format_size(extent.size_bytes)} of pool {extent.segment} that belonged to"
            f" domain {extent.uuid}, which has ended.",
            f"'fuser -v {extent.path}' names the process; stop it, and the memory is freed some seconds later.",
        )
    yield from _more(EXTENT_QUARANTINED, len(quarantined))


def _more(code: str, number: int) -> Iterable[Alert]:
    """Yield an alert that counts those beyond the limit: others can cause any number, and each costs time."""
    if number > _LIMIT:
        yield Alert(
            code,
            "more",
            f"{counted(number - _LIMIT, 'more alert')} of this kind beside the {_LIMIT} that are listed.",
            "Fix those that are listed, and see what remains.",
        )


def _enlarged(facts: Facts) -> Iterable[Alert]:
    for path, size in [*facts.enlarged.items()][:_LIMIT]:
        yield Alert(
            EXTENT_ENLARGED,
            path,
            f"The memory file {path} of a domain was made {format_size(size)} larger than the domain reserved; it"
            " was truncated.",
            f"'fuser -v {path}' names the processes that have it open; QEMU does not do that by itself. The alert"
            " ends with the domain.",
        )
    yield from _more(EXTENT_ENLARGED, len(facts.enlarged))


def _pinned(facts: Facts) -> Iterable[Alert]:
    for segment, size in sorted(facts.pinned.items()):
        yield Alert(
            MEMORY_PINNED,
            segment,
            f"{format_size(size)} of pool {segment} belong to no domain and are not free: most likely guests gave"
            " them back, and a process or a device keeps them pinned.",
            "They are freed automatically once they are unpinned: look for processes of QEMU's user that"
            " outlive their guest, for direct I/O or RDMA that does not end, and for files in the pool that"
            " virt-dmem did not create.",
        )


def _libvirt(facts: Facts) -> Iterable[Alert]:
    """Yield an alert where it is missed: without guests, Debian's libvirtd ends by itself after two minutes."""
    if facts.phases and facts.libvirt_gone_seconds > LIBVIRT_SECONDS:
        hold = counted(len(facts.phases), "domain holds", "domains hold")
        yield Alert(
            LIBVIRT_UNREACHABLE,
            "",
            f"virt-dmemd has no connection to libvirt, and {hold} pool memory.",
            "Running guests are not affected. Start libvirtd or virtqemud ('systemctl start libvirtd'), and see"
            " 'virt-dmem check', line libvirt.",
        )


def _reconcile(facts: Facts) -> Iterable[Alert]:
    if facts.damaged_ledger:
        yield Alert(
            LEDGER_DAMAGED,
            facts.damaged_ledger,
            f"The ledger was damaged and is now {facts.damaged_ledger}; running domains were rediscovered.",
            "Check the disk; delete that file when you no longer need it.",
        )
    for item, why in sorted(facts.failed.items())[:_LIMIT]:
        yield Alert(
            RECONCILE_FAILED,
            item,
            f"{item} could not be reconciled: {why}",
            "It is retried every few seconds; all others were reconciled.",
        )
    yield from _more(RECONCILE_FAILED, len(facts.failed))


def _failed(facts: Facts) -> Iterable[Alert]:
    for failure in facts.failures:
        yield Alert(
            MEMORY_FAILED,
            str(failure.path),
            f"Memory of domain {failure.domain} failed ({failure.what}), somewhere in {failure.path}.",
            "Find the machine check in the kernel log, replace the memory module, and restart the domain soon.",
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
                f"'virt-dmem pool show {name}' and 'virt-dmem check' show what is missing; find out who unmounted"
                " or resized it, and shut its domains down before you mount it again.",
            )


def _apply(facts: Facts) -> Iterable[Alert]:
    for code in sorted({alert.code for alert in facts.definitions}):
        of_kind = [alert for alert in facts.definitions if alert.code == code]
        yield from sorted(of_kind, key=lambda alert: alert.subject)[:_LIMIT]
        yield from _more(code, len(of_kind))
    if facts.paused_until is not None:
        until = "until it is resumed"
        if math.isfinite(facts.paused_until):
            until = f"until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(facts.paused_until))}"
        yield Alert(
            APPLY_PAUSED,
            "",
            f"Automatic apply is paused {until}: domains defined with virt-dmem's metadata are not rewritten.",
            "Run 'virt-dmem pause-apply --resume' when the other tool is done.",
        )
