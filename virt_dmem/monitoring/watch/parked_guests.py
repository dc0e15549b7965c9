# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch what parked guests need to go on: their state files, and their memory."""

from __future__ import annotations

from collections.abc import Iterator, Set

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Parked, ParkedStep, Reservation
from virt_dmem.monitoring.alert_codes import PARKED_GUEST_LOST
from virt_dmem.monitoring.watch.base import Deviation, Look, Sight
from virt_dmem.pools import mount_state
from virt_dmem.pools.segment_id import SegmentId

__all__ = ["parked_guests"]


def parked_guests(ledger: Ledger) -> Look:
    """Return what yields a deviation for each parked guest that cannot go on."""

    def deviations(sight: Sight) -> Iterator[Deviation]:
        if not (all_parked := ledger.all_parked()):
            return
        ready = {one.segment for one in sight.records if mount_state.obstacle(one, root=sight.root) is None}
        for uuid, parked in all_parked.items():
            reservation = ledger.find(uuid)
            if reservation is None or parked.step is not ParkedStep.PARKED:
                continue
            if lost := _lost(parked, reservation, ready):
                yield Deviation(
                    PARKED_GUEST_LOST,
                    uuid,
                    f"Domain {reservation.name} is parked, and cannot go on: {lost}.",
                    "Put that back, or give the guest up, and its memory back to the pool, with"
                    f" 'virt-dmem unpark --discard {uuid}'.",
                )

    return deviations


def _lost(parked: Parked, reservation: Reservation, ready: Set[SegmentId]) -> str:
    """Return what of a parked guest is not there; memory that cannot be reached may come back."""
    if not parked.state_file.is_file():
        return f"its state file {parked.state_file} is gone"
    for extent in reservation.extents:
        if extent.segment in ready and not extent.path.is_file():
            return f"its memory {extent.path} is gone"
    return ""
