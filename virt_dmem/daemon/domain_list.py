# SPDX-License-Identifier: GPL-2.0-or-later
"""Cache the list of all domains that hold memory, as the JSON sent over the socket.

With 10 000 domains it is 5 MB, and takes half a second to encode: so only domains that changed are encoded again, a
few at a time, and hooks are served in between.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from itertools import islice

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Reservation

__all__ = ["DomainList"]

AT_ONCE = 40
"""Domains that are encoded before anything else is served: some milliseconds."""


class DomainList:
    """Keep the JSON of each domain, sorted by name.

    :param encode: Returns the JSON of a domain.
    """

    def __init__(self, ledger: Ledger, encode: Callable[[Reservation], bytes]) -> None:
        self._ledger = ledger
        self._encode = encode
        self._stale = set(ledger.phases())
        self._names: dict[str, str] = {}
        """Of the domains in the list, by UUID."""
        self._order: list[tuple[str, str]] = []
        """Name and UUID, in the same order as ``_encoded``."""
        self._encoded: list[bytes] = []
        self._whole = b""

    async def json(self) -> bytes:
        """Return the current list.

        :raise LedgerError: When the ledger cannot be read.
        """
        while self.refresh():
            await asyncio.sleep(0)
        if not self._whole:
            self._whole = _array(self._encoded)
        return self._whole

    def refresh(self) -> bool:
        """Encode some of the domains that changed; return whether there are more.

        :raise LedgerError: When the ledger cannot be read.
        """
        self._stale |= self._ledger.touched()
        some = [*islice(self._stale, AT_ONCE)]
        if some:
            held = {one.uuid: one for one in self._ledger.reservations_of(some)}
            for uuid in some:
                self._update(uuid, held.get(uuid))
            self._stale.difference_update(some)
        return bool(self._stale)

    def _update(self, uuid: str, held: Reservation | None) -> None:
        self._whole = b""
        if (name := self._names.pop(uuid, None)) is not None:
            at = bisect_left(self._order, (name, uuid))
            del self._order[at], self._encoded[at]
        if held is not None:
            self._names[uuid] = held.name
            at = bisect_left(self._order, (held.name, uuid))
            self._order.insert(at, (held.name, uuid))
            self._encoded.insert(at, self._encode(held))


def _array(items: list[bytes]) -> bytes:
    """Return a JSON array, copied once."""
    if not items:
        return b"[]"
    first, *others = items
    if others:
        others[-1] += b"]"
        return b",".join([b"[" + first, *others])
    return b"[%b]" % first
