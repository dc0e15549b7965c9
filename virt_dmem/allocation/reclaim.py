# SPDX-License-Identifier: GPL-2.0-or-later
"""Reclaim the memory of extents, and withhold from reservations what is not available after it was freed.

Memory of a guest is returned to the kernel before another guest gets it. A pinned page is not available until it is
unpinned, and the pool is smaller for that time (``Inventory.withhold``): an admitted domain finds all of its pages,
and no running guest lacks one that is reserved for it.

At a release the free space of the file system tells whether all memory is available. Where it cannot tell, because
other files of the segment changed, the memory is withheld until an audit: a sum of all files of the segment that is
taken while none of ours changes.
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

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.errors import Delayed
from virt_dmem.pools import extent_files, segment_files
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.segment_files import SegmentUse
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.runtime.aio import uninterrupted
from virt_dmem.runtime.attempts import Round
from virt_dmem.runtime.deadline import within
from virt_dmem.units import format_size

__all__ = ["Reclaimer"]

log = logging.getLogger(__name__)

_FEW = 500
"""Up to so many domains the audit takes some milliseconds, and runs at each release; else soon after it."""
_SAMPLES = 3
_PAUSE_SECONDS = 0.01


class Reclaimer:
    """Release memory of extents, and audit which memory of each segment is available again."""

    def __init__(self, ledger: Ledger, inventory: Inventory, prezero: PrezeroCache) -> None:
        self._ledger = ledger
        self._inventory = inventory
        self._prezero = prezero
        self._locks: defaultdict[SegmentId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._populating: Counter[SegmentId] = Counter()
        self._changes: Counter[SegmentId] = Counter()
        self.enlarged: dict[str, int] = {}
        """Surplus bytes of files of domains (by path) that were larger than their extent."""
        self._unaudited: set[SegmentId] = set()
        self.unsettled = asyncio.Event()
        """Set when an audit may withhold less, or has to withhold more."""

    @contextlib.contextmanager
    def populating(self, segment: SegmentId) -> Iterator[None]:
        """Mark files of a segment as being populated while in this context."""
        self._populating[segment] += 1
        try:
            yield
        finally:
            self._populating[segment] -= 1
            self._changes[segment] += 1

    async def release(self, extent: Extent) -> None:
        """Free the memory of an extent, remove its file, and withhold what may not be available.

        :raise OSError: When it cannot be opened.
        :raise ExtentError: When it cannot be removed.
        """
        segment = extent.segment
        # memory that another guest frees at the same time hides what is pinned
        is_small = self._counts_used(segment) and len(self._ledger.phases()) <= _FEW

        def empty() -> tuple[int, bool]:
            grown = max(segment_files.use_of(extent.path)) - extent.size_bytes
            if grown > 0:
                log.warning("%s was %s larger than its extent", extent.path, format_size(grown))
            freed_bytes = segment_files.empty(extent.path)
            extent_files.remove(extent.path)
            return freed_bytes, is_small and not segment_files.scan(
                str(self._inventory.mount(segment))
            ).missing_bytes

        async with self._prezero.quiesced(segment):
            async with self._locks[segment]:
                freed_bytes, is_whole = await uninterrupted(asyncio.to_thread(empty))
                self._changes[segment] += 1
                if is_whole or not self._counts_used(segment):
                    return
                if freed_bytes < extent.size_bytes:
                    self._inventory.withhold(segment, extent.size_bytes)
                else:
                    self._unaudited.add(segment)
                self.unsettled.set()
            if is_small or freed_bytes < extent.size_bytes:
                await self.audit(segment)

    def withhold(self, extent: Extent, freed_bytes: int) -> None:
        """Withhold memory of an extent that a running guest freed, until an audit finds it available."""
        if freed_bytes > 0 and self._counts_used(extent.segment):
            self._inventory.withhold(extent.segment, freed_bytes)
            self.unsettled.set()

    async def truncate_enlarged(
        self, segment: SegmentId, use: SegmentUse, held: Mapping[str, int], attempts: Round
    ) -> list[str]:
        """Truncate files of domains that are larger than their extents; return a sentence for each.

        :param held: The size of each extent of the segment in the ledger, by path.
        """
        actions = []
        for path, size_bytes in held.items():
            found = use.files.get(path)
            if found is None or max(found) <= size_bytes:
                continue
            if path not in self.enlarged or found.size_bytes > size_bytes or self._counts_used(segment):
                with attempts.trying(path):
                    await self._truncate(Path(path), size_bytes)
                    self._changes[segment] += 1
                    self.enlarged[path] = max(found) - size_bytes
                    actions.append(
                        f"truncate {path} to {format_size(size_bytes)}:"
                        f" it had been enlarged to {format_size(max(found))}"
                    )
        return actions

    async def truncate_surplus(self, extents: Sequence[Extent]) -> None:
        """Truncate extents that QEMU's user, who owned them for a moment, enlarged."""

        def surplus() -> list[tuple[Extent, int]]:
            found = [(extent, max(segment_files.use_of(extent.path)) - extent.size_bytes) for extent in extents]
            return [(extent, size_bytes) for extent, size_bytes in found if size_bytes > 0]

        for extent, size_bytes in await asyncio.to_thread(surplus):
            with contextlib.suppress(BlockingIOError, Delayed):  # a lease, or a write: housekeeping truncates it
                await self._truncate(extent.path, extent.size_bytes)
            log.warning("%s was %s larger than its extent; truncating it", extent.path, format_size(size_bytes))
            self.enlarged[str(extent.path)] = size_bytes

    @staticmethod
    async def _truncate(path: Path, size_bytes: int) -> None:
        """Truncate a file; a writer of it that waits for a page fault without end holds the lock of its inode.

        :raise Delayed: When that takes too long.
        """
        await within(partial(segment_files.truncate, path, size_bytes), f"the size of {path}", of=path.parent.name)

    def forget_enlarged(self, held: Collection[str]) -> None:
        """Forget the files that are not in the ledger any more (``held``: those that are)."""
        self.enlarged = {path: size for path, size in self.enlarged.items() if path in held}

    def take_unsettled(self) -> set[SegmentId]:
        """Return the segments that need an audit, and forget that they do."""
        segments = {*self._inventory.withheld(), *self._unaudited}
        self._unaudited.clear()
        return segments

    async def settle(self, segment: SegmentId) -> None:
        """Audit a segment with its background job stopped."""
        async with self._prezero.quiesced(segment):
            await self.audit(segment)

    async def audit(self, segment: SegmentId, use: SegmentUse | None = None) -> None:
        """Withhold just the memory of a segment that is missing now: used, and in no file.

        While its files change, more seems to be missing than is: then the withheld memory can only shrink.

        :param use: The result of a scan just now.
        """
        changes = self._changes_of(segment)
        missing = await self._missing(segment, use)
        if self._locks[segment].locked():  # a release under way withholds its memory itself
            return
        before = self._withheld_bytes(segment)
        is_exact = changes is not None and changes == self._changes_of(segment)
        self._inventory.set_withheld(segment, missing if is_exact else min(missing, before))
        if missing > before and not is_exact:
            self._unaudited.add(segment)
            self.unsettled.set()
        after = self._withheld_bytes(segment)
        if after > before:
            log.warning("pool %s: %s belong to no domain and are not free", segment, format_size(after))
        elif before and not after:
            log.info("pool %s: all freed memory is available again", segment)
        if after:
            self.unsettled.set()

    async def _missing(self, segment: SegmentId, use: SegmentUse | None) -> int:
        """Return the least of several samples of missing memory, as guests may change their files meanwhile."""
        if not self._counts_used(segment):
            return await self._kept_by_files(segment, use)
        missing = use.missing_bytes if use else sys.maxsize
        for _ in range(_SAMPLES):
            if not missing:
                break
            found = await asyncio.to_thread(segment_files.scan, str(self._inventory.mount(segment)))
            missing = min(missing, found.missing_bytes)
            if missing:
                await asyncio.sleep(_PAUSE_SECONDS)
        return missing

    async def _kept_by_files(self, segment: SegmentId, use: SegmentUse | None) -> int:
        """Return the memory that files hold beyond their size: dmemfs keeps truncated memory until they go."""
        if use is None:
            use = await asyncio.to_thread(segment_files.scan, str(self._inventory.mount(segment)))
        sizes = self._ledger.sizes_in(segment)
        return sum(max(0, found.held_bytes - sizes.get(path, sys.maxsize)) for path, found in use.files.items())

    def _changes_of(self, segment: SegmentId) -> tuple[int, int] | None:
        """Return counters of all changes by us to files of a segment; ``None`` while one is under way."""
        cache = self._prezero.of(segment)
        if self._populating[segment] or self._locks[segment].locked() or cache.is_working:
            return None
        return self._changes[segment], cache.chunks_started

    def _withheld_bytes(self, segment: SegmentId) -> int:
        withheld = self._inventory.withheld().get(segment)
        return withheld.size_bytes if withheld else 0

    def _counts_used(self, segment: SegmentId) -> bool:
        record = self._inventory.usable().get(segment)
        return record is not None and backend(record.backend).counts_used
