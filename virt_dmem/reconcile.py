# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring ledger, pools and live domains together again after something died.

Reality wins: what a process maps stays, whatever the ledger says. Two stages: ``from_host`` needs pools,
ledger and the kernel alone and runs before the daemon is ready; ``from_libvirt`` runs whenever libvirt
appears, with all its active domains listed anew. Each returns a sentence for everything it did (with
``dry_run``: would do).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from virt_dmem import extents
from virt_dmem.inventory import Inventory
from virt_dmem.ledger import Ledger, Phase
from virt_dmem.lifecycle import Lifecycle
from virt_dmem.units import format_size

__all__ = ["from_host", "from_libvirt"]

log = logging.getLogger(__name__)


async def from_host(
    ledger: Ledger, inventory: Inventory, lifecycle: Lifecycle, boot_id: str, *, dry_run: bool = False
) -> list[str]:
    """Mend what can be told without libvirt: earlier boots, interrupted preparations, files nobody knows."""
    actions = _forget_earlier_boots(ledger, boot_id, dry_run=dry_run)
    for reservation in ledger.reservations():
        if reservation.phase in (Phase.RESERVED, Phase.STOPPED) and reservation.boot_id == boot_id:
            actions.append(
                f"free {format_size(reservation.size_bytes)} of {reservation.name}:"
                f" interrupted while {reservation.phase.value}"
            )
            if not dry_run:
                await lifecycle.abandon(reservation)
    actions += _remove_strangers(ledger, inventory, dry_run=dry_run)
    if not dry_run:
        freed = await lifecycle.retry_quarantined()
        actions += [
            f"free {format_size(extent.size_bytes)} at {extent.path}: nobody maps it now" for extent in freed
        ]
    return actions


async def from_libvirt(
    ledger: Ledger, lifecycle: Lifecycle, active: Collection[str], listed_at: float, *, dry_run: bool = False
) -> list[str]:
    """Free what is held for domains that do not run.

    A domain is active for libvirt from before its ``prepare`` hook on (``qemuProcessInit`` gives it its id).

    :param active: UUIDs of the domains that libvirt called active.
    :param listed_at: When libvirt was asked (seconds since the epoch); what changed since then is left alone.
    """
    actions = []
    for reservation in ledger.reservations():
        if reservation.uuid in active or reservation.since >= listed_at:
            continue
        actions.append(f"free {format_size(reservation.size_bytes)} of {reservation.name}: the domain does not run")
        if not dry_run:
            await lifecycle.abandon(reservation)
    return actions


def _forget_earlier_boots(ledger: Ledger, boot_id: str, *, dry_run: bool) -> list[str]:
    actions = []
    stale = {item.pool for item in ledger.quarantined() if item.boot_id != boot_id}
    for extent in ledger.quarantined():
        if extent.boot_id != boot_id and not dry_run:
            ledger.forget_extent(extent)
    if stale:
        actions.append(f"forget quarantined extents of an earlier boot in {', '.join(sorted(stale))}")
    for reservation in ledger.reservations():
        if reservation.boot_id != boot_id:
            actions.append(f"forget the reservation of {reservation.name}: its memory went with an earlier boot")
            if not dry_run:
                for extent in reservation.extents:
                    ledger.forget_extent(extent)
                ledger.forget(reservation.uuid)
    return actions


def _remove_strangers(ledger: Ledger, inventory: Inventory, *, dry_run: bool) -> list[str]:
    """Remove files in our directories that no row of the ledger knows and that nobody has open."""
    actions = []
    for name, record in inventory.usable().items():
        known = {extent.path for extent in ledger.extents_in(name)}
        for path in sorted(Path(record.mount).glob("libvirt-*/*")):
            if path in known or path.is_symlink() or not path.is_file():
                continue
            if extents.in_use(path):
                actions.append(f"leave {path}: no reservation knows it, and a process maps it")
                log.warning("%s", actions[-1])
                continue
            actions.append(f"remove {path}: no reservation knows it")
            if not dry_run:
                extents.remove(path)
    return actions
