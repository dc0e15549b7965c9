# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of all domains that hold memory, kept as the JSON that goes over the socket.

With 10 000 domains it is 5 MB, and takes half a second to make: so what is written about one domain is made anew
for that one only, a few at a time, and hooks are served in between.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from itertools import islice

import msgspec

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Reservation, TimedStep
from virt_dmem.ipc.messages import DomainView, ExtentView, StepView

__all__ = ["DomainList", "view"]

AT_ONCE = 40
"""So many domains are made anew before others have their turn: some milliseconds."""


class DomainList:
    """What is shown of each domain, by name, without steps, of which there are ten times as many."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._stale = set(ledger.phases())
        self._names: dict[str, str] = {}
        """Of those that are shown, by UUID."""
        self._order: list[tuple[str, str]] = []
        """Name and UUID, and in the same order:"""
        self._shown: list[bytes] = []
        self._whole = b""

    async def json(self) -> bytes:
        """Return the list, of this moment.

        :raise LedgerError: When the ledger cannot be read.
        """
        while self.refresh():
            await asyncio.sleep(0)
        if not self._whole:
            self._whole = _array(self._shown)
        return self._whole

    def refresh(self) -> bool:
        """Make some of what is not of now anew; return whether there is more of it.

        :raise LedgerError: When the ledger cannot be read.
        """
        self._stale |= self._ledger.touched()
        some = [*islice(self._stale, AT_ONCE)]
        if some:
            held = {one.uuid: one for one in self._ledger.reservations_of(some)}
            for uuid in some:
                self._show(uuid, held.get(uuid))
            self._stale.difference_update(some)
        return bool(self._stale)

    def _show(self, uuid: str, held: Reservation | None) -> None:
        self._whole = b""
        if (name := self._names.pop(uuid, None)) is not None:
            at = bisect_left(self._order, (name, uuid))
            del self._order[at], self._shown[at]
        if held is not None:
            self._names[uuid] = held.name
            at = bisect_left(self._order, (held.name, uuid))
            self._order.insert(at, (held.name, uuid))
            self._shown.insert(at, msgspec.json.encode(view(held)))


def _array(items: list[bytes]) -> bytes:
    """Return a JSON array, copied once."""
    if not items:
        return b"[]"
    first, *others = items
    if others:
        others[-1] += b"]"
        return b",".join([b"[" + first, *others])
    return b"[%b]" % first


def view(held: Reservation, steps: Sequence[TimedStep] = ()) -> DomainView:
    """Return what is shown of a domain."""
    return DomainView(
        uuid=held.uuid,
        name=held.name,
        phase=held.phase.value,
        since=held.since,
        reserved_bytes=held.size_bytes,
        extents=[
            ExtentView(
                alias=extent.alias,
                pool=extent.segment.pool,
                path=str(extent.path),
                size_bytes=extent.size_bytes,
                page_size=extent.page_size,
                policy=extent.policy,
                nodes=list(extent.nodes),
                state=extent.state.value,
            )
            for extent in held.extents
        ],
        steps=[StepView(step.step, step.at, step.seconds) for step in steps],
    )
