# SPDX-License-Identifier: GPL-2.0-or-later
"""Index the pre-zeroed extents of all segments, and choose which of them go first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.pools import prezeroed_files
from virt_dmem.pools.prezeroed_files import PrezeroedExtent

__all__ = ["PrezeroIndex"]


class PrezeroIndex:
    """Read from the pools once, then kept as its callers change it.

    :param likelihood: Tells, of the UUID of a domain, how likely it is to start next: the more, the likelier.
    """

    def __init__(self, inventory: Inventory, likelihood: Callable[[str], float]) -> None:
        self._inventory = inventory
        self.likelihood = likelihood
        self._segments: dict[str, dict[str, PrezeroedExtent]] = {}
        self._held: dict[str, Counter[int]] = {}
        self._by_domain: dict[str, defaultdict[str, dict[str, PrezeroedExtent]]] = {}

    def of(self, segment: str) -> list[PrezeroedExtent]:
        """Return the ready extents of a segment."""
        return list(self._of(segment).values())

    def _of(self, segment: str) -> dict[str, PrezeroedExtent]:
        if segment not in self._segments:
            self._segments[segment] = {}
            self._held[segment] = Counter()
            self._by_domain[segment] = defaultdict(dict)
            for extent in prezeroed_files.listed(self._inventory.record(segment)):
                self.add(segment, extent)
        return self._segments[segment]

    def forget(self, segment: str) -> None:
        """Read what there is in a segment when it is asked for next; nobody may be changing it."""
        self._segments.pop(segment, None)

    def segments(self) -> list[str]:
        """Return the segments that have been asked for."""
        return list(self._segments)

    def add(self, segment: str, extent: PrezeroedExtent) -> None:
        """There is one more; it takes the place of another of the same name."""
        self._drop(segment, extent.path.name)
        self._of(segment)[extent.path.name] = extent
        self._by_domain[segment][extent.owner.uuid][extent.path.name] = extent
        self._held[segment].update(prezeroed_files.by_node([extent]))

    def _drop(self, segment: str, name: str) -> None:
        if gone := self._of(segment).pop(name, None):
            self._held[segment].subtract(prezeroed_files.by_node([gone]))
            of_domain = self._by_domain[segment][gone.owner.uuid]
            del of_domain[name]
            if not of_domain:
                del self._by_domain[segment][gone.owner.uuid]

    def replace(self, segment: str, before: PrezeroedExtent, after: PrezeroedExtent | None) -> None:
        """One has become another, or (``None``) is there no more."""
        self._drop(segment, before.path.name)
        if after is not None:
            self.add(segment, after)

    def of_domain(self, uuid: str) -> dict[str, list[PrezeroedExtent]]:
        """Return, by segment, those that were made for a domain or that it had."""
        found = {segment: self.of_domain_in(segment, uuid) for segment in self._inventory.allocatable()}
        return {segment: some for segment, some in found.items() if some}

    def of_domain_in(self, segment: str, uuid: str) -> list[PrezeroedExtent]:
        """Return those of them that are in one segment."""
        self._of(segment)
        return list(self._by_domain[segment].get(uuid, {}).values())

    def has(self, segment: str, extent: PrezeroedExtent) -> bool:
        """Tell whether one is still there, as it was."""
        return self._of(segment).get(extent.path.name) == extent

    def held(self, segment: str) -> Counter[int]:
        """Return the memory that they hold, in bytes by node."""
        self._of(segment)
        return self._held[segment].copy()

    def cuts(
        self, segment: str, room: Mapping[int, int], *, below: float | None = None
    ) -> list[tuple[PrezeroedExtent, int]]:
        """Return which are to be cut to which size so that all fit in ``room`` (bytes by node), unlikely first.

        :param below: Cut only what is less likely than this; then all may not fit.
        """
        found = []
        held = self.held(segment)
        some = self._of(segment).values()
        for extent in sorted(some, key=lambda item: (self.likelihood(item.owner.uuid), item.path.name)):
            too_much = {node: size - room.get(node, 0) for node, size in held.items() if size > room.get(node, 0)}
            if not too_much or (below is not None and self.likelihood(extent.owner.uuid) >= below):
                break
            stays = prezeroed_files.longest(extent, too_much)
            if stays < extent.clean_bytes:
                found.append((extent, stays))
                after = prezeroed_files.shortened(extent, stays)
                held.subtract(prezeroed_files.by_node([extent]))
                held.update(prezeroed_files.by_node([after] if after else []))
        return found
