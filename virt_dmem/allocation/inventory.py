# SPDX-License-Identifier: GPL-2.0-or-later
"""What the pools of this host have, and what of it is free.

Free is capacity less reservations, never what statfs says: pages that a guest gave back through its balloon
stay the guest's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import NodeStatus, PoolStatus
from virt_dmem.allocation.plan import PoolFree
from virt_dmem.config.schema import Config
from virt_dmem.errors import DmemError, PoolBusy, PoolDraining, PoolNotFound
from virt_dmem.host import numa
from virt_dmem.pools import registry
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size

__all__ = ["Inventory", "Withheld"]


@dataclass(frozen=True)
class Withheld:
    """Memory of a segment that was given back and is not known to have come back."""

    size_bytes: int
    since: float
    """By the monotonic clock."""


class Inventory:
    """The pools as recorded on disk and as mounted; ``refresh`` reads the records again."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self._config = config
        self._ledger = ledger
        self._records: dict[str, PoolRecord] = {}
        self._damaged: Mapping[str, DmemError] = {}
        self._draining: set[str] = set()
        self._retiring: set[str] = set()
        self._withheld: dict[str, Withheld] = {}
        self._slow_nodes = numa.nodes_without_cpus()
        self.refresh()

    def refresh(self) -> None:
        """Read the records again, after a pool was made, changed or destroyed, or was not after all."""
        self._retiring.clear()
        self.read_records()

    def read_records(self) -> None:
        """Read the records again; one that cannot be read any more stays as it was read last.

        A pool that was drained stays so, as long as it exists; one that is about to go stays that, too.
        """
        found, self._damaged = registry.readable(self._config)
        names = {Path(path).stem for path in self._damaged}
        kept = {name: record for name, record in self._records.items() if name in names}
        self._records = kept | {record.name: record for record in found}
        self._withheld = {name: one for name, one in self._withheld.items() if name in self.ready()}
        there = {record.pool for record in self._records.values()} | {name.partition("+")[0] for name in names}
        for gone in self._ledger.drained() - there:
            self._ledger.set_drained(gone, drained=False)
        self._draining = self._ledger.drained()

    def look_for_damage(self) -> None:
        """Read the records again if one cannot be read any more, or can be again."""
        _, damaged = registry.readable(self._config)
        if damaged.keys() != self._damaged.keys():
            self.read_records()

    def damaged(self) -> Mapping[str, DmemError]:
        """Return why records of pools (by path) cannot be read."""
        return self._damaged

    def read_nodes(self) -> None:
        """See again which nodes have CPUs."""
        self._slow_nodes = numa.nodes_without_cpus()

    def record(self, segment: str) -> PoolRecord:
        """Return the record of a segment.

        :raise PoolNotFound: When there is none.
        """
        return self._segments(f"{segment}+0" if "+" not in segment else segment)[0]

    def _segments(self, name: str) -> list[PoolRecord]:
        """Return the segments of a pool, or (``POOL+0``, ``POOL+1``, …) one of them.

        :raise PoolNotFound: When there is none.
        """
        pool, _, number = name.partition("+")
        found = [
            record
            for record in self._records.values()
            if record.pool == pool and (not number or str(record.number) == number)
        ]
        if not found:
            raise PoolNotFound(
                f"There is no pool {name!r} on this host.", hint="'virt-dmem pool list' shows those there are."
            )
        return sorted(found, key=lambda record: record.number)

    def mount(self, segment: str) -> Path:
        """Return where a segment is mounted."""
        return Path(self.record(segment).mount)

    def nodes(self, segment: str) -> list[int]:
        """Return the host nodes that a segment has memory of; -1 alone where its backend has none."""
        return sorted(registry.capacity(self.record(segment)))

    def has_struct_pages(self, segment: str) -> bool:
        """Tell whether memory of a segment has struct pages; of one that is gone, it has."""
        record = self._records.get(segment)
        return record is None or backend(record.backend).has_struct_pages

    def zeroes_on_allocation(self, segment: str) -> bool:
        """Tell whether memory of a segment is handed out clean by the kernel; of one that is gone, it is."""
        record = self._records.get(segment)
        return record is None or backend(record.backend).zeroes(record)

    def ready(self) -> dict[str, PoolRecord]:
        """Return the segments that are whole, also those that give no memory any more."""
        return {name: record for name, record in self._records.items() if record.state == "ready"}

    def allocatable(self) -> dict[str, PoolRecord]:
        """Return the segments that are whole and not about to go."""
        return {name: record for name, record in self.ready().items() if name not in self._retiring}

    def is_draining(self, pool: str) -> bool:
        """Tell whether a pool gives no memory to domains that start."""
        return pool in self._draining

    def refuse_draining(self, name: str) -> None:
        """Refuse the pool that a domain asks for (empty: that of domains that name none) if it is drained.

        :raise PoolDraining: When it is.
        """
        ready = sorted({record.pool for record in self.ready().values()})
        name = name or self._config.default_pool or (ready[0] if len(ready) == 1 else "")
        if name in self._draining:
            raise PoolDraining(
                f"Pool {name} is draining: it gives no memory to domains that start.",
                hint=f"Take another pool, or run 'virt-dmem pool drain {name} --undo'.",
            )

    def capacity(self) -> dict[tuple[str, int], int]:
        """Return the bytes that each (segment, node) really has now."""
        return {
            (name, node): size
            for name, record in self.ready().items()
            for node, size in self._capacity(record).items()
        }

    def _capacity(self, record: PoolRecord) -> dict[int, int]:
        """Return capacity less what is withheld, of each node: nobody says on which a page is that is pinned."""
        withheld = self._withheld.get(record.name)
        has = registry.capacity(record)
        return {node: max(0, size - withheld.size_bytes) for node, size in has.items()} if withheld else has

    # What was given back and has not come back

    def withhold(self, segment: str, size_bytes: int) -> None:
        """Give no memory in place of so much that was given back and may not have come back."""
        before = self._withheld.get(segment) or Withheld(0, time.monotonic())
        self._withheld[segment] = Withheld(before.size_bytes + size_bytes, before.since)

    def set_withheld(self, segment: str, size_bytes: int) -> None:
        """Withhold so much of a segment, and no more."""
        before = self._withheld.pop(segment, None)
        if size_bytes:
            self._withheld[segment] = Withheld(size_bytes, before.since if before else time.monotonic())

    def withheld(self) -> Mapping[str, Withheld]:
        """Return what is withheld of each segment."""
        return self._withheld

    def free_in(self, segment: str) -> dict[int, int]:
        """Return what of a segment is not reserved, in bytes by node."""
        record, reserved = self.record(segment), self._ledger.reserved()
        return {
            node: max(0, size - reserved.get((segment, node), 0)) if record.state == "ready" else 0
            for node, size in sorted(self._capacity(record).items())
        }

    def free(self) -> dict[str, PoolFree]:
        """Return what may still be reserved, by pool, segment and node; never negative."""
        reserved = self._ledger.reserved()
        segments: dict[str, dict[str, dict[int, int]]] = {}
        for (name, node), size in self.capacity().items():
            pool = self._records[name].pool
            if pool not in self._draining and name not in self._retiring:
                of_pool = segments.setdefault(pool, {})
                of_pool.setdefault(name, {})[node] = max(0, size - reserved.get((name, node), 0))
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
        """Give no more memory from a pool, or (``undo``) give it again; holds until it is said otherwise.

        :raise PoolNotFound: When there is none.
        """
        self._segments(name)
        self._ledger.set_drained(name, drained=not undo)
        (self._draining.discard if undo else self._draining.add)(name)

    def retire(self, name: str) -> None:
        """Give no more memory from an empty pool, or one of its segments, that is about to go.

        The next ``refresh`` takes this back if it did not. ``name``: ``POOL`` for all of it, ``POOL+0`` and so
        on for one segment.

        :raise PoolNotFound: When there is none.
        :raise PoolBusy: When memory of it is reserved; names the holders.
        """
        names = [record.name for record in self._segments(name)]
        held = [extent for segment in names for extent in self._ledger.extents_in(segment)]
        if held:
            domains = {reservation.uuid: reservation.name for reservation in self._ledger.reservations()}
            holders = sorted({domains.get(extent.uuid, extent.uuid) for extent in held})
            raise PoolBusy(
                f"Domains hold {format_size(sum(extent.size_bytes for extent in held))} of pool {name}:"
                f" {', '.join(holders)}.",
                hint="Stop these domains first; 'virt-dmem show DOMAIN' tells what each holds.",
            )
        self._retiring.update(names)

    def views(self) -> list[PoolStatus]:
        """Return the status of every recorded pool, without its pre-zeroed memory."""
        reserved = self._ledger.reserved()
        return [self._view(pool, reserved) for pool in sorted({record.pool for record in self._records.values()})]

    def _view(self, pool: str, reserved: dict[tuple[str, int], int]) -> PoolStatus:
        segments = self._segments(pool)
        capacity: Counter[int] = Counter()
        held: Counter[int] = Counter()
        for record in segments:
            capacity.update(self._capacity(record))
            held.update({node: size for (name, node), size in reserved.items() if name == record.name})
        nodes = [
            NodeStatus(node, size, held[node], max(0, size - held[node])) for node, size in sorted(capacity.items())
        ]
        gone = pool in self._draining or {record.name for record in segments} <= self._retiring
        state = next((record.state for record in segments if record.state != "ready"), "ready")
        return PoolStatus(
            name=pool,
            backend=segments[0].backend,
            page_size=segments[0].page_size,
            mount=segments[0].mount,
            state="draining" if state == "ready" and gone else state,
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
                if (withheld := self._withheld.get(record.name)) is not None
            ),
            nodes=nodes,
        )
