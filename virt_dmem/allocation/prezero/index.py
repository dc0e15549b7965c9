# SPDX-License-Identifier: GPL-2.0-or-later
"""Index the pre-zeroed extents of a segment, and choose which of them to evict first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from virt_dmem.pools import prezeroed_files
from virt_dmem.pools.prezeroed_files import PrezeroedExtent
from virt_dmem.pools.record import PoolRecord

__all__ = ["PrezeroIndex"]


class PrezeroIndex:
    """Keep the pre-zeroed extents of one segment, read from its directory once and then updated by its callers.

    :param read_record: Returns the record of the segment.
    :param likelihood: Returns, by the UUID of a domain, how likely it is to start next.
    """

    def __init__(self, read_record: Callable[[], PoolRecord], likelihood: Callable[[str], float]) -> None:
        self._read_record = read_record
        self._likelihood = likelihood
        self._by_name: dict[str, PrezeroedExtent] | None = None
        self._held: Counter[int] = Counter()
        self._by_domain: defaultdict[str, dict[str, PrezeroedExtent]] = defaultdict(dict)

    # Read

    def extents(self) -> list[PrezeroedExtent]:
        """Return the pre-zeroed extents."""
        return list(self._loaded().values())

    def of_domain(self, uuid: str) -> list[PrezeroedExtent]:
        """Return those that were created for a domain, or that it had."""
        self._loaded()
        return list(self._by_domain.get(uuid, {}).values())

    def has(self, extent: PrezeroedExtent) -> bool:
        """Tell whether an extent is still present and unchanged."""
        return self._loaded().get(extent.path.name) == extent

    def held(self) -> Counter[int]:
        """Return the memory that they hold, in bytes by node."""
        self._loaded()
        return self._held.copy()

    def _loaded(self) -> dict[str, PrezeroedExtent]:
        if self._by_name is None:
            self._by_name = {}
            self._held.clear()
            self._by_domain.clear()
            for extent in prezeroed_files.scan(self._read_record()):
                self.add(extent)
        return self._by_name

    # Update

    def invalidate(self) -> None:
        """Read the directory again at the next access; nobody may be changing it meanwhile."""
        self._by_name = None

    def add(self, extent: PrezeroedExtent) -> None:
        """Add an extent, in place of one of the same name."""
        self._remove(extent.path.name)
        self._loaded()[extent.path.name] = extent
        self._by_domain[extent.owner.uuid][extent.path.name] = extent
        self._held.update(prezeroed_files.held_by_node([extent]))

    def replace(self, before: PrezeroedExtent, after: PrezeroedExtent | None) -> None:
        """Replace an extent, or (``None``) remove it."""
        self._remove(before.path.name)
        if after is not None:
            self.add(after)

    def _remove(self, name: str) -> None:
        if removed := self._loaded().pop(name, None):
            self._held.subtract(prezeroed_files.held_by_node([removed]))
            of_domain = self._by_domain[removed.owner.uuid]
            del of_domain[name]
            if not of_domain:
                del self._by_domain[removed.owner.uuid]

    # Choose

    def evictions(
        self, room: Mapping[int, int], *, below: float | None = None
    ) -> list[tuple[PrezeroedExtent, int]]:
        """Return which extents to truncate to which size so that all fit in ``room``, the least likely first.

        :param room: Bytes by node.
        :param below: Evict only what is less likely than this; then all may not fit.
        """
        evictions = []
        held = self.held()
        for extent in sorted(self.extents(), key=lambda one: (self._likelihood(one.owner.uuid), one.path.name)):
            excess = {node: size - room.get(node, 0) for node, size in held.items() if size > room.get(node, 0)}
            if not excess or (below is not None and self._likelihood(extent.owner.uuid) >= below):
                break
            size_bytes = prezeroed_files.keepable_bytes(extent, excess)
            if size_bytes < extent.zeroed_bytes:
                evictions.append((extent, size_bytes))
                after = prezeroed_files.truncated(extent, size_bytes)
                held.subtract(prezeroed_files.held_by_node([extent]))
                held.update(prezeroed_files.held_by_node([after] if after else []))
        return evictions
