# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold the ledger's memory against what the kernel says of it: what was given back and did not come back yet.

What a guest had goes back to the kernel before anybody else gets it. A page that somebody pins does not come back
until the pin is gone, and the pool is smaller for so long (``Inventory.withhold``): who is admitted finds all pages
there, and a running guest never misses one that was promised to it.

At a release the file system's free space tells whether all came back. Where it cannot tell (something else moved in
the segment) the memory is withheld until all files of the segment were added up while nothing of ours moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from virt_dmem.aio import uninterrupted
from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.attempts import Round
from virt_dmem.deadline import within
from virt_dmem.errors import Delayed
from virt_dmem.pools import extent_files, segment_files
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.segment_files import SegmentUse
from virt_dmem.units import format_size

__all__ = ["Accounts"]

log = logging.getLogger(__name__)

_FEW = 500
"""Domains whose files are added up in some milliseconds: then at each release, else soon after it."""
_SAMPLES = 3
_PAUSE_SECONDS = 0.01


class Accounts:
    """What of each segment has come back, and what has not."""

    def __init__(self, ledger: Ledger, inventory: Inventory, holding: PrezeroCache) -> None:
        self._ledger = ledger
        self._inventory = inventory
        self._holding = holding
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._growing: Counter[str] = Counter()
        self._moves: Counter[str] = Counter()
        self.enlarged: dict[str, int] = {}
        """Files of domains (by path) that were larger than what their domain holds, and by how much, in bytes."""
        self._doubtful: set[str] = set()
        self.unsettled = asyncio.Event()
        """Something is withheld and may be less by now, or may have to be."""

    @contextlib.contextmanager
    def growing(self, segment: str) -> Iterator[None]:
        """Take note that files of a segment get memory in this context."""
        self._growing[segment] += 1
        try:
            yield
        finally:
            self._growing[segment] -= 1
            self._moves[segment] += 1

    async def give_back(self, extent: Extent) -> None:
        """Give the memory of an extent's file back to the kernel, and withhold what has not surely come back.

        The file goes, too.

        :raise OSError: When it cannot be opened.
        :raise ExtentError: When it cannot be removed.
        """
        segment = extent.pool
        # another guest that gives something back just then makes it seem that all came back
        is_small = self._counts_used(segment) and len(self._ledger.standings()) <= _FEW

        def empty() -> tuple[int, bool]:
            grown = max(segment_files.use_of(extent.path)) - extent.size_bytes
            if grown > 0:
                log.warning("%s was %s larger than what its domain held", extent.path, format_size(grown))
            came_back = segment_files.empty(extent.path)
            extent_files.remove(extent.path)
            return came_back, is_small and not segment_files.look(str(self._inventory.mount(segment))).missing_bytes

        async with self._holding.at_rest_in(segment):
            async with self._locks[segment]:
                came_back, is_whole = await uninterrupted(asyncio.to_thread(empty))
                self._moves[segment] += 1
                if is_whole or not self._counts_used(segment):
                    return
                if came_back < extent.size_bytes:
                    self._inventory.withhold(segment, extent.size_bytes)
                else:
                    self._doubtful.add(segment)
                self.unsettled.set()
            if is_small or came_back < extent.size_bytes:
                await self.audit(segment)

    def doubt(self, extent: Extent, given_back_bytes: int) -> None:
        """Withhold what a running guest gave back of an extent by itself, until it is known to have come back."""
        if given_back_bytes > 0 and self._counts_used(extent.pool):
            self._inventory.withhold(extent.pool, given_back_bytes)
            self.unsettled.set()

    async def cut_surplus(self, segment: str, use: SegmentUse, held: Mapping[str, int], tries: Round) -> list[str]:
        """Cut files of domains that are larger than what is charged for them; return what was done.

        :param held: The bytes that the ledger knows of each file of the segment, by path.
        """
        actions = []
        for path, size_bytes in held.items():
            found = use.files.get(path)
            if found is None or max(found) <= size_bytes:
                continue
            if path not in self.enlarged or found.size_bytes > size_bytes or self._counts_used(segment):
                with tries.trying(path):
                    await self._cut(Path(path), size_bytes)
                    self._moves[segment] += 1
                    self.enlarged[path] = max(found) - size_bytes
                    actions.append(
                        f"cut {path} to {format_size(size_bytes)}: it had grown to {format_size(max(found))}"
                    )
        return actions

    async def hold_to_size(self, some: Sequence[Extent]) -> None:
        """Cut extents that QEMU's user, who owned them for a moment, made larger."""

        def too_much() -> list[tuple[Extent, int]]:
            found = [(extent, max(segment_files.use_of(extent.path)) - extent.size_bytes) for extent in some]
            return [(extent, size_bytes) for extent, size_bytes in found if size_bytes > 0]

        for extent, size_bytes in await asyncio.to_thread(too_much):
            with contextlib.suppress(BlockingIOError, Delayed):  # a lease, or a write: housekeeping cuts it
                await self._cut(extent.path, extent.size_bytes)
            log.warning(
                "%s was %s larger than what its domain holds; it is cut", extent.path, format_size(size_bytes)
            )
            self.enlarged[str(extent.path)] = size_bytes

    @staticmethod
    async def _cut(path: Path, size_bytes: int) -> None:
        """Cut a file; who writes to it meanwhile, from a page that never comes, has the lock of its inode.

        :raise Delayed: When that takes too long.
        """
        await within(
            partial(segment_files.cut_surplus, path, size_bytes), f"the size of {path}", of=path.parent.name
        )

    def forget_enlarged(self, held: Collection[str]) -> None:
        """Forget the files that are in no row of the ledger any more."""
        self.enlarged = {path: size for path, size in self.enlarged.items() if path in held}

    def to_settle(self) -> set[str]:
        """Return the segments of which it is not known what is missing, and take them for known from now on."""
        segments = {*self._inventory.withheld(), *self._doubtful}
        self._doubtful.clear()
        return segments

    async def settle(self, segment: str) -> None:
        """Find out what is still missing of a segment, at the cost of what is made ready there just now."""
        async with self._holding.at_rest_in(segment):
            await self.audit(segment)

    async def audit(self, segment: str, use: SegmentUse | None = None) -> None:
        """Withhold just what is missing of a segment now.

        While files of it grow or shrink, more is missing for a moment than is: then only less is withheld.

        :param use: What was found there just now.
        """
        moves = self._moves_of(segment)
        missing = await self._missing(segment, use)
        if self._locks[segment].locked():  # what is given back just now is withheld by who does it
            return
        before = self._withheld_bytes(segment)
        still = moves is not None and moves == self._moves_of(segment)
        self._inventory.set_withheld(segment, missing if still else min(missing, before))
        if missing > before and not still:
            self._doubtful.add(segment)
            self.unsettled.set()
        after = self._withheld_bytes(segment)
        if after > before:
            log.warning("pool %s: %s belong to no domain and are not free", segment, format_size(after))
        elif before and not after:
            log.info("pool %s: all memory has come back", segment)
        if after:
            self.unsettled.set()

    async def _missing(self, segment: str, use: SegmentUse | None) -> int:
        """Return the least that is found missing: a guest may give something back, or take it, while we add up."""
        if not self._counts_used(segment):
            return await self._kept_by_files(segment, use)
        missing = use.missing_bytes if use else sys.maxsize
        for _ in range(_SAMPLES):
            if not missing:
                break
            found = await asyncio.to_thread(segment_files.look, str(self._inventory.mount(segment)))
            missing = min(missing, found.missing_bytes)
            if missing:
                await asyncio.sleep(_PAUSE_SECONDS)
        return missing

    async def _kept_by_files(self, segment: str, use: SegmentUse | None) -> int:
        """Return what files hold beyond their size: dmemfs keeps for a file what was cut off it, until it goes."""
        if use is None:
            use = await asyncio.to_thread(segment_files.look, str(self._inventory.mount(segment)))
        sizes = self._ledger.sizes_in(segment)
        return sum(max(0, found.held_bytes - sizes.get(path, sys.maxsize)) for path, found in use.files.items())

    def _moves_of(self, segment: str) -> tuple[int, int] | None:
        """Return what changes with all that we do to files of a segment; ``None`` while something goes on."""
        if self._growing[segment] or self._locks[segment].locked() or self._holding.chunks.works_in(segment):
            return None
        return self._moves[segment], self._holding.chunks.begun

    def _withheld_bytes(self, segment: str) -> int:
        withheld = self._inventory.withheld().get(segment)
        return withheld.size_bytes if withheld else 0

    def _counts_used(self, segment: str) -> bool:
        record = self._inventory.ready().get(segment)
        return record is not None and backend(record.backend).counts_used
