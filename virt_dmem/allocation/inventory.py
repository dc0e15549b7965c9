# SPDX-License-Identifier: GPL-2.0-or-later
"""Take inventory of the pools of this host: their capacity, and what of it is free.

Free is capacity less reservations, not what statfs returns: pages that a guest gave back through its balloon remain
charged to it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import NodeStatus, PoolStatus, SegmentStatus
from virt_dmem.allocation.plan import PoolFree
from virt_dmem.config.schema import Config
from virt_dmem.errors import DmemError, PoolBusy, PoolDraining, PoolNotFound
from virt_dmem.host import numa
from virt_dmem.pools import record_files, registry
from virt_dmem.pools.backends import page_counts
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.elastic.room import elasticity_of
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.text import did_you_mean
from virt_dmem.units import format_size

__all__ = ["Inventory", "Withheld"]


@dataclass(frozen=True)
class Withheld:
    """Hold how much freed memory of a segment may not be available again, and since when."""

    size_bytes: int
    since: float
    """By the monotonic clock, in seconds."""


class Inventory:
    """Hold the pools as recorded on disk and as mounted."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self._config = config
        self._ledger = ledger
        self._records: dict[SegmentId, PoolRecord] = {}
        self._damaged: Mapping[str, DmemError] = {}
        self._draining: set[str] = set()
        self._retiring: dict[Hashable, set[SegmentId]] = {}
        """By the caller that is about to remove them."""
        self._emptying: dict[Hashable, str] = {}
        """Pool by the caller that waits until no domain holds memory of it, to remove it."""
        self._limits: dict[Hashable, tuple[str, int]] = {}
        """Pool and new size by the caller that is about to shrink it."""
        self._withheld: dict[SegmentId, Withheld] = {}
        self._gone: Mapping[SegmentId, Mapping[int, int]] = {}
        self._slow_nodes = numa.nodes_without_cpus()
        self.read_records()

    def read_records(self) -> None:
        """Reload the records; one that became unreadable is kept as it was read last.

        A drained pool stays drained while it exists.
        """
        found, self._damaged = registry.readable(self._config)
        unreadable = {SegmentId(Path(path).stem) for path in self._damaged}
        kept = {segment: record for segment, record in self._records.items() if segment in unreadable}
        self._records = kept | {record.segment: record for record in found}
        usable = self.usable()
        self._withheld = {segment: one for segment, one in self._withheld.items() if segment in usable}
        present = {segment.pool for segment in self._records.keys() | unreadable}
        for gone in self._ledger.drained() - present:
            self._ledger.set_drained(gone, drained=False)
        self._draining = self._ledger.drained()

    def reload_if_damaged(self) -> None:
        """Reload the records if one became unreadable, or readable again."""
        _, damaged = registry.readable(self._config)
        if damaged.keys() != self._damaged.keys():
            self.read_records()

    def reload_if_changed(self) -> None:
        """Reload the records if segments came or went unnoticed: a start that asked for one was cancelled."""
        known = self._records.keys() | {SegmentId(Path(path).stem) for path in self._damaged}
        if {SegmentId(path.stem) for path in record_files.paths(self._config)} != known:
            self.read_records()

    def damaged(self) -> Mapping[str, DmemError]:
        """Return the errors of records that cannot be read, by path."""
        return self._damaged

    def reload_nodes(self) -> None:
        """Read again which nodes have CPUs."""
        self._slow_nodes = numa.nodes_without_cpus()

    def record(self, segment: SegmentId) -> PoolRecord:
        """Return the record of a segment.

        :raise PoolNotFound: When there is none.
        """
        if segment not in self._records:
            raise self._not_found(segment)
        return self._records[segment]

    def _segments(self, name: str) -> list[PoolRecord]:
        """Return the records of a pool's segments by number, or of one of them (``POOL+0``, ``POOL+1``, …).

        :raise PoolNotFound: When there is none.
        """
        found = [
            record
            for segment, record in self._records.items()
            if name in (segment.pool, f"{segment.pool}+{segment.number}")
        ]
        if not found:
            raise self._not_found(name)
        return sorted(found, key=lambda record: record.number)

    def mount(self, segment: SegmentId) -> Path:
        """Return the path where a segment is mounted."""
        return Path(self.record(segment).mount)

    def nodes(self, segment: SegmentId) -> list[int]:
        """Return the host nodes that a segment has memory of; only -1 where its backend has no nodes."""
        return sorted(registry.capacity(self.record(segment)))

    def has_struct_pages(self, segment: SegmentId) -> bool:
        """Tell whether memory of a segment has struct pages; true if the segment is gone."""
        record = self._records.get(segment)
        return record is None or backend(record.backend).has_struct_pages

    def zeroes_on_allocation(self, segment: SegmentId) -> bool:
        """Tell whether the kernel zeroes memory of a segment on allocation; true if the segment is gone."""
        record = self._records.get(segment)
        return record is None or backend(record.backend).zeroes(record)

    def usable(self) -> dict[SegmentId, PoolRecord]:
        """Return the segments that are completely set up, retired ones included."""
        return {segment: record for segment, record in self._records.items() if record.state == "ready"}

    def allocatable(self) -> dict[SegmentId, PoolRecord]:
        """Return the usable segments that are not retired."""
        retired = self._retired()
        return {segment: record for segment, record in self.usable().items() if segment not in retired}

    def is_draining(self, pool: str) -> bool:
        """Tell whether a pool gives no memory to starting domains."""
        return pool in self._draining or pool in self._emptying.values()

    def require_not_draining(self, name: str) -> None:
        """Require that the pool of a domain (empty: that of domains without one) gives memory to starting domains.

        :raise PoolDraining: When it does not.
        """
        name = self._chosen(name)
        if self.is_draining(name):
            undo = f"run 'virt-dmem pool drain {name} --undo'"
            end = undo if name in self._draining else "end the command that empties it"
            raise PoolDraining(
                f"Pool {name} is draining: it gives no memory to starting domains.",
                hint=f"Use another pool, or {end}.",
            )

    def _chosen(self, name: str) -> str:
        """Return the pool of a domain that asks for ``name``; empty where none can be chosen."""
        usable = sorted({segment.pool for segment in self.usable()})
        return name or self._config.default_pool or (usable[0] if len(usable) == 1 else "")

    # Elastic pools

    def elastic_segments(self, name: str) -> list[PoolRecord]:
        """Return the segments of the pool of a domain that asks for ``name``; empty where it is not elastic."""
        chosen = self._chosen(name)
        found = sorted(
            (record for segment, record in self._records.items() if segment.pool == chosen),
            key=lambda record: record.number,
        )
        return found if found and backend(found[0].backend).elastic(found[0]) else []

    def has_elastic(self) -> bool:
        """Return whether there are elastic pools."""
        return any(backend(record.backend).elastic(record) for record in self._records.values())

    def on_demand(self) -> list[PoolRecord]:
        """Return the segments that elastic pools took for domains, in every state."""
        return [record for record in self._records.values() if backend(record.backend).on_demand(record)]

    def capacity(self) -> dict[tuple[SegmentId, int], int]:
        """Return the capacity of each (segment, node) in bytes, as mounted now."""
        return {
            (segment, node): size
            for segment, record in self.usable().items()
            for node, size in self._capacity(record).items()
        }

    def _capacity(self, record: PoolRecord) -> dict[int, int]:
        """Return the capacity of each node less what the host took of it, and less all withheld memory.

        The node of a pinned page is not known. A pool that is about to shrink has the smaller size already.
        """
        limits = [size for pool, size in self._limits.values() if pool == record.pool]
        withheld, gone = self._withheld.get(record.segment), self._gone.get(record.segment, {})
        less = withheld.size_bytes if withheld else 0
        return {
            node: max(0, min([size - less - gone.get(node, 0), *limits]))
            for node, size in registry.capacity(record).items()
        }

    # Memory that the host took from a pool

    def look_for_gone(self) -> Mapping[SegmentId, Mapping[int, int]]:
        """Find out now what the host took from usable segments, and return it."""
        self._gone = page_counts.gone_by_segment(self.usable().values())
        return self._gone

    def set_gone(self, gone: Mapping[SegmentId, Mapping[int, int]]) -> None:
        """Set the bytes by segment and node that a mount promises and the host does not have any more."""
        self._gone = gone

    def gone(self) -> Mapping[SegmentId, Mapping[int, int]]:
        """Return the bytes by segment and node that the host took."""
        return self._gone

    # Freed memory that may not be available

    def withhold(self, segment: SegmentId, size_bytes: int) -> None:
        """Withhold more memory of a segment from reservations, which was freed but may not be available."""
        before = self._withheld.get(segment) or Withheld(0, time.monotonic())
        self._withheld[segment] = Withheld(before.size_bytes + size_bytes, before.since)

    def set_withheld(self, segment: SegmentId, size_bytes: int) -> None:
        """Set the memory of a segment that is withheld from reservations."""
        before = self._withheld.pop(segment, None)
        if size_bytes:
            self._withheld[segment] = Withheld(size_bytes, before.since if before else time.monotonic())

    def withheld(self) -> Mapping[SegmentId, Withheld]:
        """Return the withheld memory of each segment."""
        return self._withheld

    def free_in(self, segment: SegmentId) -> dict[int, int]:
        """Return the unreserved memory of a segment, in bytes by node."""
        record, reserved = self.record(segment), self._ledger.reserved()
        return {
            node: max(0, size - reserved.get((segment, node), 0)) if record.state == "ready" else 0
            for node, size in sorted(self._capacity(record).items())
        }

    def free(self) -> dict[str, PoolFree]:
        """Return the memory that can be reserved, by pool, segment and node; never negative."""
        reserved, retired = self._ledger.reserved(), self._retired()
        segments: dict[str, dict[SegmentId, dict[int, int]]] = {}
        for (segment, node), size in self.capacity().items():
            pool = segment.pool
            if not self.is_draining(pool) and segment not in retired:
                of_pool = segments.setdefault(pool, {})
                of_pool.setdefault(segment, {})[node] = max(0, size - reserved.get((segment, node), 0))
        return {
            pool: PoolFree(
                name=pool,
                backend=(first := self._segments(pool)[0]).backend,
                page_size=first.page_size,
                segments=of_pool,
                slow_nodes=self._slow_nodes,
                may_lock=backend(first.backend).lockable,
                may_pin=backend(first.backend).has_struct_pages,
            )
            for pool, of_pool in segments.items()
        }

    def drain(self, name: str, *, undo: bool = False) -> None:
        """Drain a pool, or (``undo``) end that: it gives no memory to starting domains, also after a restart.

        :raise PoolNotFound: When there is none.
        """
        self._segments(name)
        self._ledger.set_drained(name, drained=not undo)
        (self._draining.discard if undo else self._draining.add)(name)

    # Pools that are about to change

    def empty(self, name: str, holder: Hashable) -> None:
        """Drain a pool until ``drop_claims`` of its caller, who waits until no domain holds memory of it.

        :raise PoolNotFound: When there is none.
        """
        self._segments(name)
        self._emptying[holder] = name

    def retire(self, name: str, holder: Hashable) -> None:
        """Reserve no more memory of an empty pool, or one of its segments, until ``drop_claims`` of its caller.

        ``name``: ``POOL`` for all of it, ``POOL+0`` and so on for one segment.

        :raise PoolNotFound: When there is none.
        :raise PoolBusy: When memory of it is reserved; names the holders.
        """
        segments = [record.segment for record in self._segments(name)]
        held = [extent for segment in segments for extent in self._ledger.extents_in(segment)]
        if held:
            domains = {reservation.uuid: reservation.name for reservation in self._ledger.reservations()}
            size = format_size(sum(extent.size_bytes for extent in held))
            raise PoolBusy.held(name, size, (domains.get(extent.uuid, extent.uuid) for extent in held))
        self._retiring.setdefault(holder, set()).update(segments)

    def limit(self, name: str, size_bytes: int, holder: Hashable) -> int:
        """Reserve at most ``size_bytes`` of a pool until ``drop_claims`` of its caller, unless more is reserved.

        For pools that consist of one segment without nodes, which shrink in place.

        :return: The bytes that are reserved now.
        :raise PoolNotFound: When there is none.
        """
        segments = {record.segment for record in self._segments(name)}
        reserved = sum(size for (segment, _), size in self._ledger.reserved().items() if segment in segments)
        if reserved <= size_bytes:
            self._limits[holder] = (name, size_bytes)
        return reserved

    def drop_claims(self, holder: Hashable) -> None:
        """End what ``empty``, ``retire`` and ``limit`` began for someone whose change ended, in whatever way."""
        self._emptying.pop(holder, None)
        self._retiring.pop(holder, None)
        self._limits.pop(holder, None)

    def _retired(self) -> set[SegmentId]:
        return set().union(*self._retiring.values())

    # Status

    def pool_statuses(self) -> list[PoolStatus]:
        """Return the status of every recorded pool, without its pre-zeroed memory."""
        reserved = self._ledger.reserved()
        return [self._status(pool, reserved) for pool in sorted({segment.pool for segment in self._records})]

    def _status(self, pool: str, reserved: dict[tuple[SegmentId, int], int]) -> PoolStatus:
        segments = self._segments(pool)
        capacity: Counter[int] = Counter()
        held: Counter[int] = Counter()
        statuses = []
        for record in segments:
            has = self._capacity(record)
            holds = {node: size for (segment, node), size in reserved.items() if segment == record.name}
            capacity.update(has)
            held.update(holds)
            statuses.append(SegmentStatus(record.name, sum(has.values()), sum(holds.values())))
        nodes = [
            NodeStatus(node, size, held[node], max(0, size - held[node])) for node, size in sorted(capacity.items())
        ]
        closed = self.is_draining(pool) or {record.segment for record in segments} <= self._retired()
        state = registry.shown_state(segments)
        return PoolStatus(
            name=pool,
            backend=segments[0].backend,
            page_size=segments[0].page_size,
            mount=segments[0].mount,
            state="draining" if state == "ready" and closed else state,
            capacity_bytes=sum(node.capacity_bytes for node in nodes),
            reserved_bytes=sum(node.reserved_bytes for node in nodes),
            free_bytes=sum(node.free_bytes for node in nodes),
            ready_bytes=0,
            ready_goal_bytes=0,
            ready_most_bytes=0,
            ready_policy="off",
            pinned_bytes=sum(
                withheld.size_bytes
                for record in segments
                if (withheld := self._withheld.get(record.segment)) is not None
            ),
            nodes=nodes,
            segments=statuses,
            elastic=elasticity_of(segments),
        )

    def _not_found(self, name: str) -> PoolNotFound:
        near = did_you_mean(name, {segment.pool for segment in self._records})
        hint = f"{near}'virt-dmem pool list' lists the pools."
        return PoolNotFound(f"There is no pool {name!r} on this host.", hint=hint)
