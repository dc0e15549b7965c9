# SPDX-License-Identifier: GPL-2.0-or-later
"""Record in one SQLite file which domain holds how much of which pool.

The ledger is a record of intent: a row is written before the file is created in the pool, and deleted only after
the file was removed. Charges last until the extent is removed, whatever the guest gave back in between. Only
``virt-dmemd`` opens the file, from one thread.

WAL with ``synchronous=NORMAL``: a commit survives a kill of the process at any instant; a power failure loses
the memory as well.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from virt_dmem.allocation.ledger_queries import LedgerQueries
from virt_dmem.allocation.models import Extent, ExtentState, ParkedStep, Phase, PhaseChange, TimedStep
from virt_dmem.allocation.plan import Plan
from virt_dmem.errors import NotEnoughMemory
from virt_dmem.host.kernel import uptime
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import format_size

__all__ = ["Ledger"]

_QUARANTINED = ExtentState.QUARANTINED
_KEPT_STEPS = 100_000
"""The number of steps, the newest, to keep: those of some 10 000 starts."""


class Ledger(LedgerQueries):
    """Write the ledger."""

    def __init__(self, path: Path, boot_id: str) -> None:
        super().__init__(path)
        self._boot_id = boot_id
        self.on_phase: Callable[[str, Phase | None], object] = lambda _uuid, _phase: None
        """Called when the phase of a domain (UUID) was recorded; ``None``: its reservation was deleted."""
        self.on_extent_gone: Callable[[Extent], object] = lambda _extent: None
        """Called when an extent was deleted."""
        with self._explained():
            now = uptime()
            # of another process only the wall clock tells how much is left
            self._paused = {
                what: now + until - time.time()
                for what, until in self._db.execute("SELECT what, CAST(until AS REAL) FROM paused")
            }

    # Charges

    def reserve(self, plan: Plan, paths: Mapping[str, Path], capacity: Mapping[tuple[SegmentId, int], int]) -> None:
        """Charge a domain with a whole plan, or with nothing.

        :param paths: The path of the extent of each alias.
        :param capacity: Bytes of each (segment, node).
        :raise NotEnoughMemory: When the sum of all reservations would exceed a capacity.
        """
        change = self._changed(Phase.RESERVED)
        with self._transaction() as db:
            db.execute(
                "INSERT INTO reservation VALUES (?, ?, ?, ?, ?)",
                (plan.uuid, plan.name, self._boot_id, change.phase.value, change.since),
            )
            db.execute("DELETE FROM step WHERE uuid = ?", (plan.uuid,))
            self._charge_plan(db, plan, paths, capacity)
        self._phases[plan.uuid] = change
        self.on_phase(plan.uuid, change.phase)

    def reserve_more(
        self, plan: Plan, paths: Mapping[str, Path], capacity: Mapping[tuple[SegmentId, int], int]
    ) -> tuple[Extent, ...]:
        """Charge a domain with a further whole plan, or with nothing; return the new extents.

        :raise NotEnoughMemory: As ``reserve``.
        """
        with self._transaction() as db:
            self._charge_plan(db, plan, paths, capacity)
        new = {extent.alias for extent in plan.extents}
        found = self.find(plan.uuid)
        return tuple(extent for extent in found.extents if extent.alias in new) if found else ()

    def _charge_plan(
        self,
        db: sqlite3.Connection,
        plan: Plan,
        paths: Mapping[str, Path],
        capacity: Mapping[tuple[SegmentId, int], int],
    ) -> None:
        for extent in plan.extents:
            self._charge(
                db,
                Extent(
                    id=0,
                    uuid=plan.uuid,
                    alias=extent.alias,
                    segment=extent.segment,
                    path=paths[extent.alias],
                    size_bytes=extent.size_bytes,
                    page_size=extent.page_size,
                    policy=extent.policy,
                    state=ExtentState.PLANNED,
                    boot_id=self._boot_id,
                    link="",
                    shares=dict(extent.shares),
                ),
            )
        self._require_room({extent.segment for extent in plan.extents}, plan.name, capacity)

    def _require_room(
        self, segments: Collection[SegmentId], name: str, capacity: Mapping[tuple[SegmentId, int], int]
    ) -> None:
        for key, reserved in self.reserved().items():
            if reserved > capacity.get(key, 0) and key[0] in segments:
                raise NotEnoughMemory(
                    f"Pool {key[0]} has {format_size(capacity.get(key, 0))} on node {key[1]}, and"
                    f" {format_size(reserved)} would be reserved with {name}.",
                    hint="Stop a domain that holds memory of the pool, or make the pool larger.",
                )

    def recharge(
        self, extent: Extent, shares: Mapping[int, int], capacity: Mapping[tuple[SegmentId, int], int] | None = None
    ) -> None:
        """Replace the charges of an extent; without ``capacity`` even beyond that of the pool.

        :raise NotEnoughMemory: When the sum of all reservations would exceed a capacity.
        """
        with self._transaction() as db:
            db.execute("DELETE FROM share WHERE extent = ?", (extent.id,))
            db.executemany(
                "INSERT INTO share VALUES (?, ?, ?)", [(extent.id, node, size) for node, size in shares.items()]
            )
            if capacity is not None:
                self._require_room({extent.segment}, extent.alias, capacity)

    def adopt(self, extent: Extent, name: str) -> None:
        """Charge an extent that is in use and not recorded, whatever the capacity.

        :param name: The domain's; ignored in state ``QUARANTINED``.
        """
        if any(one.alias == extent.alias for one in self.extents_of(extent.uuid) if one.state is not _QUARANTINED):
            extent = replace(extent, state=_QUARANTINED)  # a second file of a backend is a leftover
        change = self._changed(Phase.RUNNING)
        with self._transaction() as db:
            if extent.state is not ExtentState.QUARANTINED:
                db.execute(
                    "INSERT OR IGNORE INTO reservation VALUES (?, ?, ?, ?, ?)",
                    (extent.uuid, name, self._boot_id, change.phase.value, change.since),
                )
            self._charge(db, extent)
        is_held = extent.state is not ExtentState.QUARANTINED
        if is_held and self._phases.setdefault(extent.uuid, change) is change:
            self.on_phase(extent.uuid, change.phase)

    @staticmethod
    def _charge(db: sqlite3.Connection, extent: Extent) -> None:
        row = db.execute(
            "INSERT INTO extent (uuid, alias, pool, path, size_bytes, page_size, policy, state, boot_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (extent.uuid, extent.alias, extent.segment, str(extent.path), extent.size_bytes,
             extent.page_size, extent.policy, extent.state.value, extent.boot_id),
        )  # fmt: skip
        db.executemany(
            "INSERT INTO share VALUES (?, ?, ?)",
            [(row.lastrowid, node, size) for node, size in extent.shares.items()],
        )

    # Phases of domains

    def set_phase(self, uuid: str, phase: Phase) -> None:
        """Record the phase of a domain."""
        change = self._changed(phase)
        with self._transaction() as db:
            db.execute(
                "UPDATE reservation SET phase = ?, since = ? WHERE uuid = ?", (phase.value, change.since, uuid)
            )
        if uuid in self._phases:
            self._phases[uuid] = change
            self.on_phase(uuid, phase)

    def _changed(self, phase: Phase) -> PhaseChange:
        self._sequence += 1
        return PhaseChange(phase, time.time(), self._sequence, uptime())

    def forget(self, uuid: str) -> None:
        """Delete a domain's reservation, whose extents are gone or quarantined."""
        with self._transaction() as db:
            db.execute("DELETE FROM reservation WHERE uuid = ?", (uuid,))
        if self._phases.pop(uuid, None) is not None:
            self.on_phase(uuid, None)

    # Parked domains

    def set_parked(self, uuid: str, step: ParkedStep, state_file: Path) -> None:
        """Record how far a domain is parked. Its reservation cannot be deleted before ``forget_parked``."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO parked VALUES (?, ?, ?, ?)",
                (uuid, step.value, str(state_file), time.time()),
            )
            db.execute("INSERT OR IGNORE INTO touched VALUES (?)", (uuid,))

    def forget_parked(self, uuid: str) -> None:
        """Record that a domain is not parked any more: its memory is that of any other."""
        with self._transaction() as db:
            db.execute("DELETE FROM parked WHERE uuid = ?", (uuid,))
            db.execute("INSERT OR IGNORE INTO touched VALUES (?)", (uuid,))

    def keep_over_boot(self, uuid: str) -> None:
        """Record that the memory of a parked domain has survived a reboot of the host."""
        with self._transaction() as db:
            db.execute("UPDATE reservation SET boot_id = ? WHERE uuid = ?", (self._boot_id, uuid))
            db.execute("UPDATE extent SET boot_id = ?, link = '' WHERE uuid = ?", (self._boot_id, uuid))

    # States of extents

    def set_populated(self, extents: Iterable[Extent]) -> None:
        """Record that extents are completely populated."""
        with self._transaction() as db:
            populated = ExtentState.POPULATED.value
            db.executemany(
                "UPDATE extent SET state = ? WHERE id = ?", [(populated, extent.id) for extent in extents]
            )

    def set_state(self, extent: Extent, state: ExtentState, *, link: str = "") -> None:
        """Record the state of an extent of a running domain, and the path of the link to it that is to be made."""
        with self._transaction() as db:
            db.execute("UPDATE extent SET state = ?, link = ? WHERE id = ?", (state.value, link, extent.id))

    def set_links(self, links: Mapping[int, str]) -> None:
        """Record the paths of links that are to be made to extents (by id); empty: removed."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE extent SET link = ? WHERE id = ?", [(link, number) for number, link in links.items()]
            )

    def quarantine(self, extent: Extent) -> None:
        """Record that a process still maps an extent whose domain is gone."""
        with self._transaction() as db:
            db.execute(
                "UPDATE extent SET state = ?, link = '' WHERE id = ?",
                (ExtentState.QUARANTINED.value, extent.id),
            )

    def forget_extent(self, extent: Extent) -> None:
        """Delete an extent, whose file is gone, and its charges."""
        with self._transaction() as db:
            db.execute("DELETE FROM extent WHERE id = ?", (extent.id,))
        self.on_extent_gone(extent)

    # Failed memory, steps

    def add_failure(self, uuid: str, what: str) -> str:
        """Record that memory of a domain failed, at an unknown place; return the domain's name."""
        reservation = self.find(uuid)
        if reservation is None:
            return uuid
        with self._transaction() as db:
            for extent in reservation.extents:
                db.execute("INSERT OR REPLACE INTO failure VALUES (?, ?, ?)", (extent.id, reservation.name, what))
        return reservation.name

    def add_steps(self, uuid: str, steps: Iterable[TimedStep]) -> None:
        """Record the durations of steps; ``reserve`` deletes those of the previous start."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO step VALUES (?, ?, ?, ?)",
                [(uuid, step.step, step.at, step.seconds) for step in steps],
            )
            db.execute("DELETE FROM step WHERE rowid <= (SELECT max(rowid) FROM step) - ?", (_KEPT_STEPS,))

    # Settings of the administrator

    def set_drained(self, pool: str, *, drained: bool) -> None:
        """Record that a pool is drained, or not any more."""
        with self._transaction() as db:
            if drained:
                db.execute("INSERT OR IGNORE INTO drained VALUES (?)", (pool,))
            else:
                db.execute("DELETE FROM drained WHERE pool = ?", (pool,))

    def pause(self, what: str, seconds: float) -> None:
        """Pause an automatic task for some seconds, maybe infinitely."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO paused VALUES (?, ?)", (what, time.time() + seconds))
        self._paused[what] = uptime() + seconds

    def resume(self, what: str) -> None:
        """Resume an automatic task."""
        with self._transaction() as db:
            db.execute("DELETE FROM paused WHERE what = ?", (what,))
        self._paused.pop(what, None)

    def pause_left(self, what: str) -> float | None:
        """Return the seconds until a pause ends, 0 or less when it has ended; ``None``: not paused.

        By the boot clock, which cannot be set, as long as the ledger is open.
        """
        return self._paused[what] - uptime() if what in self._paused else None
