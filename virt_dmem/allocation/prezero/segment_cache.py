# SPDX-License-Identifier: GPL-2.0-or-later
"""Own the unreserved memory that one segment holds: its pre-zeroed extents, its ballast, its background job."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.models import Extent
from virt_dmem.allocation.prezero.index import PrezeroIndex
from virt_dmem.allocation.prezero.job import BackgroundJob
from virt_dmem.pools import ballast, prezeroed_files
from virt_dmem.pools.prezeroed_files import Owner, PrezeroedExtent, Shares
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.runtime.aio import uninterrupted

__all__ = ["SegmentCache"]

T = TypeVar("T")


class SegmentCache:
    """Hold the unreserved memory of one segment; enter it with ``async with`` to change its files.

    Methods below "With the lock" require that; the others may be called at any time.
    """

    def __init__(self, segment: SegmentId, inventory: Inventory, likelihood: Callable[[str], float]) -> None:
        self.segment = segment
        self._inventory = inventory
        self._lock = asyncio.Lock()
        self._index = PrezeroIndex(lambda: inventory.record(segment), likelihood)
        self._job = BackgroundJob()

    async def __aenter__(self) -> SegmentCache:
        """Acquire the lock of the segment's unreserved files."""
        await self._lock.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._lock.release()

    # Read

    @property
    def record(self) -> PoolRecord:
        """Return the record of the segment.

        :raise PoolNotFound: When it is gone.
        """
        return self._inventory.record(self.segment)

    def extents(self) -> list[PrezeroedExtent]:
        """Return the pre-zeroed extents."""
        return self._index.extents()

    def of_domain(self, uuid: str) -> list[PrezeroedExtent]:
        """Return those that were created for a domain, or that it had."""
        return self._index.of_domain(uuid)

    def has(self, extent: PrezeroedExtent) -> bool:
        """Tell whether an extent is still present and unchanged."""
        return self._index.has(extent)

    def held(self) -> Counter[int]:
        """Return the memory that pre-zeroed extents hold, in bytes by node."""
        return self._index.held()

    def create(self, policy: str, shares: Shares, owner: Owner) -> PrezeroedExtent | None:
        """Create an empty pre-zeroed extent; return ``None`` where it has too many nodes for a file name."""
        created = prezeroed_files.create(self.record, policy, shares, owner)
        if created is not None:
            self._index.add(created)
        return created

    # Background job

    @property
    def chunks_started(self) -> int:
        """The number of background chunks that were started here."""
        return self._job.started

    @property
    def is_working(self) -> bool:
        """Tell whether a background chunk is under way."""
        return self._job.is_running

    @property
    def is_paused(self) -> bool:
        """Tell whether no background chunk is to be started now."""
        return self._job.is_paused

    def pause(self) -> None:
        """Ask that no background chunk is started, until ``resume`` was called as often as this."""
        self._job.pause()

    def resume(self) -> None:
        """Undo one ``pause``."""
        self._job.resume()

    async def wait_for_chunk(self, chunk: asyncio.Task[T]) -> T | None:
        """Wait for a background chunk; return its result, or ``None`` if it was stopped."""
        return await self._job.wait(chunk)

    # With the lock

    async def stop_job(self) -> None:
        """Stop the background chunk under way; return when it has ended."""
        await self._job.stop()

    def start_zeroing(
        self,
        extent: PrezeroedExtent,
        chunk_bytes: int,
        growth: Mapping[int, int],
        *,
        threads: int,
        helper: Path | None,
    ) -> asyncio.Task[None]:
        """Start to populate the next chunk of an extent in the background."""

        async def zero() -> None:
            after = await prezeroed_files.zero_more(extent, chunk_bytes, threads=threads, helper=helper)
            self._index.replace(extent, after)

        return self._job.start(zero(), subject=extent, growth=growth)

    def start_job(self, work: Coroutine[Any, Any, T], growth: Mapping[int, int]) -> asyncio.Task[T]:
        """Start other background work that holds ``growth`` more, in bytes by node."""
        return self._job.start(work, growth=growth)

    async def take(self, extent: Extent) -> int | None:
        """Make the best fitting pre-zeroed extent the file of a reserved one.

        :return: Its zeroed bytes; ``None`` where none fits.
        :raise ExtentError: When the file cannot be moved.
        """
        if found := self._best_fit(extent):
            await self._job.stop(found)
        found = self._best_fit(extent)  # its chunk may have just ended
        if found is None:
            return None
        self._index.replace(found, None)
        with contextlib.suppress(FileNotFoundError):  # it was removed by other means
            return await uninterrupted(
                asyncio.to_thread(prezeroed_files.take, found, extent.path, extent.size_bytes)
            )
        return None

    def _best_fit(self, extent: Extent) -> PrezeroedExtent | None:
        wanted = extent.policy, tuple(extent.shares.items()), Owner(extent.uuid, extent.alias)
        for own in self.of_domain(extent.uuid):  # few, and mostly the one
            if prezeroed_files.is_exact_fit(own, *wanted):
                return own
        return prezeroed_files.best_fit(self.extents(), *wanted)

    async def evict(self, free: Mapping[int, int]) -> None:
        """Free what pre-zeroed extents and ballast hold beyond ``free`` (bytes by node)."""
        held = self.held() + self._job.growth()
        if ballast.nodes_to_hold(self.record) or any(size > free.get(node, 0) for node, size in held.items()):
            await self._job.stop()
            await self.evict_extents(free)
            await self.shrink_ballast(free)

    async def evict_extents(self, room: Mapping[int, int], *, below: float | None = None) -> None:
        """Truncate pre-zeroed extents until all fit in ``room`` (bytes by node), the least likely first.

        :param below: Evict only what is less likely than this.
        """
        for extent, size_bytes in self._index.evictions(room, below=below):
            await uninterrupted(self._truncate(extent, size_bytes))

    async def discard(self, extent: PrezeroedExtent) -> None:
        """Remove one pre-zeroed extent."""
        await uninterrupted(self._truncate(extent, 0))

    async def clear(self) -> None:
        """Stop the background job and remove all pre-zeroed extents."""
        await self._job.stop()
        for extent in self.extents():
            await self.discard(extent)

    async def _truncate(self, extent: PrezeroedExtent, size_bytes: int) -> None:
        self._index.replace(extent, await asyncio.to_thread(prezeroed_files.truncate, extent, size_bytes))

    async def shrink_ballast(self, free: Mapping[int, int], nodes: Iterable[int] | None = None) -> None:
        """Let ballast hold no more than what is free (bytes by node) and not pre-zeroed, on all nodes or some."""
        record, held = self.record, self.held()
        for node in ballast.nodes_to_hold(record) if nodes is None else nodes:
            await asyncio.to_thread(ballast.shrink, record, node, max(0, free.get(node, 0) - held[node]))

    async def invalidate(self) -> None:
        """Stop the background job, and read the segment's files again at the next access."""
        await self._job.stop()
        self._index.invalidate()
