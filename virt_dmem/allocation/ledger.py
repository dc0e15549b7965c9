# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger: which domain holds how much of which pool, in one SQLite file.

It is a record of intent: a row stands here before the file stands in the pool, and is gone only after the
file is gone. What a domain is charged stays charged until its extent is removed, whatever the guest gave back
in between. Only ``virt-dmemd`` opens it, from one thread.

WAL with ``synchronous=NORMAL``: a commit survives the death of the process at any instant; what a power
failure could lose was memory that is gone as well.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

from virt_dmem.allocation.ledger_schema import (
    COMPANIONS,
    SCHEMA_VERSION,
    Damaged,
    damage_told,
    has_our_schema,
    migrate,
    open_file,
    require_sound,
    salvage,
    set_aside,
    version_of,
)
from virt_dmem.allocation.models import Extent, ExtentState, Failure, Phase, Reservation, Standing, Step
from virt_dmem.allocation.plan import Plan
from virt_dmem.errors import LedgerError, NotEnoughMemory, UsageError
from virt_dmem.host.kernel import uptime
from virt_dmem.units import format_size

__all__ = ["Ledger"]

log = logging.getLogger(__name__)

_EXTENT_COLUMNS = """
extent.id, extent.uuid, alias, pool, path, size_bytes, page_size, policy, state, extent.boot_id, link, node, bytes
"""
_EXTENTS = f"SELECT {_EXTENT_COLUMNS} FROM extent LEFT JOIN share ON share.extent = extent.id"  # noqa: S608
_RESERVATIONS = f"""
SELECT reservation.uuid, name, reservation.boot_id, phase, since, {_EXTENT_COLUMNS} FROM reservation
LEFT JOIN extent ON extent.uuid = reservation.uuid AND state != 'quarantined'
LEFT JOIN share ON share.extent = extent.id
"""  # noqa: S608 -- of literals, as above
_QUARANTINED = ExtentState.QUARANTINED
_NOTE = """
CREATE TEMP TRIGGER {table}_{event} AFTER {event} ON main.{table} BEGIN
    INSERT OR IGNORE INTO touched SELECT {uuid};
END;"""
_TOUCHED = "CREATE TEMP TABLE touched (uuid TEXT PRIMARY KEY) WITHOUT ROWID;" + "".join(
    _NOTE.format(table=table, event=event, uuid=uuid.format(row))
    for table, uuid in (
        ("reservation", "{}.uuid"),
        ("extent", "{}.uuid"),
        ("share", "uuid FROM extent WHERE id = {}.extent"),
    )
    for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD"))
)
"""Notes, in memory and with each transaction, of which domain something is written, whoever writes it here."""
_KEPT_STEPS = 100_000
"""So many steps, the newest, are remembered: those of some 10 000 starts."""


class Ledger:
    """The open ledger.

    :raise LedgerError: From every method, when SQLite cannot read or write (disk full, damaged file).
    """

    def __init__(self, path: Path, boot_id: str) -> None:
        self._boot_id = boot_id
        self._path = path
        with self._explained():
            self._db = self._open()
            self._count_charges()
            self._db.executescript(f"PRAGMA temp_store = MEMORY;{_TOUCHED}")
            now = uptime()
            self._moment = 0
            self._standings = {
                uuid: Standing(Phase(phase), since, self._moment, now)
                for uuid, phase, since in self._db.execute("SELECT uuid, phase, since FROM reservation")
            }
            # of another process only the wall clock tells how much is left
            self._paused = {
                what: now + until - time.time()
                for what, until in self._db.execute("SELECT what, CAST(until AS REAL) FROM paused")
            }

    def _open(self) -> sqlite3.Connection:
        """Open the file; one that is damaged is set aside, for a new one that reconciling fills again."""
        try:
            return self._open_sound()
        except Damaged as damage:
            aside = set_aside(self._path)
            log.error("the ledger was damaged (%s) and is now %s; a new one is begun", damage, aside)  # noqa: TRY400
            database = self._open_sound()
            salvage(aside, database)
            return database

    def _open_sound(self) -> sqlite3.Connection:
        database = open_file(self._path)
        try:
            with damage_told():
                version = version_of(database)
                if version != SCHEMA_VERSION and has_our_schema(database):
                    raise Damaged(f"it is not of version {version}")
                if version > SCHEMA_VERSION:
                    raise LedgerError(
                        f"The ledger {self._path} has version {version}, and this virt-dmemd knows version"
                        f" {SCHEMA_VERSION}.",
                        hint="Install the version of virt-dmem that wrote it, or put back the copy kept beside it.",
                    )
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                database.execute("PRAGMA foreign_keys = ON")
                migrate(database, self._path)
                require_sound(database)
        except BaseException:
            database.close()
            raise
        return database

    def set_aside(self) -> str:
        """Return the path of the last damaged ledger that was set aside and not been removed yet; empty: none."""
        found = self._path.parent.glob(f"{self._path.name}.damaged-*")
        return str(max((path for path in found if not path.name.endswith(COMPANIONS)), default=""))

    def _count_charges(self) -> None:
        """Sum up anew what the triggers of the schema keep up to date, for others may have touched the file."""
        with self._transaction() as db:
            db.execute("DELETE FROM charged")
            db.execute(
                "INSERT INTO charged SELECT pool, node, sum(bytes) FROM share JOIN extent ON id = extent"
                " GROUP BY pool, node"
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(
                f"The ledger {self._path} cannot be used: {error}.",
                hint="Look whether its file system is full or read-only; running guests are not affected.",
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # What is reserved

    def reserve(self, plan: Plan, paths: Mapping[str, Path], capacity: Mapping[tuple[str, int], int]) -> None:
        """Charge a domain with a whole plan, or with nothing.

        :param paths: Where the extent of each alias will stand.
        :param capacity: Bytes that each (pool, node) really has now.
        :raise NotEnoughMemory: When the sum of all reservations would exceed a capacity.
        """
        standing = self._standing(Phase.RESERVED)
        with self._transaction() as db:
            db.execute(
                "INSERT INTO reservation VALUES (?, ?, ?, ?, ?)",
                (plan.uuid, plan.name, self._boot_id, standing.phase.value, standing.since),
            )
            db.execute("DELETE FROM step WHERE uuid = ?", (plan.uuid,))
            self._charge_plan(db, plan, paths, capacity)
        self._standings[plan.uuid] = standing

    def reserve_more(
        self, plan: Plan, paths: Mapping[str, Path], capacity: Mapping[tuple[str, int], int]
    ) -> tuple[Extent, ...]:
        """Charge a domain that holds memory already with a whole plan more, or with nothing; return the extents.

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
        capacity: Mapping[tuple[str, int], int],
    ) -> None:
        for extent in plan.extents:
            self._charge(
                db,
                Extent(
                    id=0,
                    uuid=plan.uuid,
                    alias=extent.alias,
                    pool=extent.pool,
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
        self._require_room({extent.pool for extent in plan.extents}, plan.name, capacity)

    def _require_room(self, pools: Collection[str], name: str, capacity: Mapping[tuple[str, int], int]) -> None:
        for key, reserved in self.reserved().items():
            if reserved > capacity.get(key, 0) and key[0] in pools:
                raise NotEnoughMemory(
                    f"Pool {key[0]} has {format_size(capacity.get(key, 0))} on node {key[1]}, and"
                    f" {format_size(reserved)} would be reserved with {name}.",
                    hint="Stop a domain that holds memory of the pool, or make the pool larger.",
                )

    def recharge(
        self, extent: Extent, shares: Mapping[int, int], capacity: Mapping[tuple[str, int], int] | None = None
    ) -> None:
        """Charge an extent with other shares; without ``capacity`` whatever the pool has: that is how it is.

        :raise NotEnoughMemory: When the sum of all reservations would exceed a capacity.
        """
        with self._transaction() as db:
            db.execute("DELETE FROM share WHERE extent = ?", (extent.id,))
            db.executemany(
                "INSERT INTO share VALUES (?, ?, ?)", [(extent.id, node, size) for node, size in shares.items()]
            )
            if capacity is not None:
                self._require_room({extent.pool}, extent.alias, capacity)

    def adopt(self, extent: Extent, name: str) -> None:
        """Charge what was found in use and stands in no row; reality is not refused, whatever the capacity.

        :param name: The domain's; an extent in state ``QUARANTINED`` has none any more.
        """
        if any(one.alias == extent.alias for one in self.extents_of(extent.uuid) if one.state is not _QUARANTINED):
            extent = replace(extent, state=_QUARANTINED)  # two files of one backend: one is what is left of before
        standing = self._standing(Phase.RUNNING)
        with self._transaction() as db:
            if extent.state is not ExtentState.QUARANTINED:
                db.execute(
                    "INSERT OR IGNORE INTO reservation VALUES (?, ?, ?, ?, ?)",
                    (extent.uuid, name, self._boot_id, standing.phase.value, standing.since),
                )
            self._charge(db, extent)
        if extent.state is not ExtentState.QUARANTINED:
            self._standings.setdefault(extent.uuid, standing)

    @staticmethod
    def _charge(db: sqlite3.Connection, extent: Extent) -> None:
        row = db.execute(
            "INSERT INTO extent (uuid, alias, pool, path, size_bytes, page_size, policy, state, boot_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (extent.uuid, extent.alias, extent.pool, str(extent.path), extent.size_bytes,
             extent.page_size, extent.policy, extent.state.value, extent.boot_id),
        )  # fmt: skip
        db.executemany(
            "INSERT INTO share VALUES (?, ?, ?)",
            [(row.lastrowid, node, size) for node, size in extent.shares.items()],
        )

    def reserved(self) -> dict[tuple[str, int], int]:
        """Return the bytes charged for each (pool, node), of all extents in every state."""
        with self._explained():
            rows = self._db.execute("SELECT pool, node, bytes FROM charged WHERE bytes != 0")
            return {(pool, node): size for pool, node, size in rows}

    def reservations(self) -> Iterator[Reservation]:
        """Yield all of them, by name of the domain; read to the end before anything is written."""
        return self._each("TRUE")

    def standings(self) -> Mapping[str, Standing]:
        """Return how far each domain that holds memory has come, by UUID; changes as the ledger does.

        Kept beside the file: what is asked about all domains at once, and often, does not read it.
        """
        return MappingProxyType(self._standings)

    def moment(self) -> int:
        """Return the number of the last change of a domain's phase: whatever has a larger one came later.

        A clock may be set back between two changes; this only ever grows, until the ledger is closed.
        """
        return self._moment

    def _standing(self, phase: Phase) -> Standing:
        self._moment += 1
        return Standing(phase, time.time(), self._moment, uptime())

    def reservations_of(self, uuids: Collection[str]) -> list[Reservation]:
        """Return those of these domains, as far as they hold anything: one question for all of them."""
        return self._reservations(f"reservation.uuid IN ({', '.join('?' * len(uuids))})", *uuids)

    def touched(self) -> set[str]:
        """Return the domains (UUIDs) of which something was written since this was asked last."""
        with self._explained():
            found = {uuid for (uuid,) in self._db.execute("SELECT uuid FROM touched")}
            if found:
                self._db.execute("DELETE FROM touched")
        return found

    def interrupted(self, boot_id: str) -> list[Reservation]:
        """Return those of this boot that are not in use: being prepared, or stopping."""
        phases = (Phase.RESERVED.value, Phase.STOPPED.value)
        return self._reservations("reservation.phase IN (?, ?) AND reservation.boot_id = ?", *phases, boot_id)

    def of_other_boots(self, boot_id: str) -> list[Reservation]:
        """Return those that were made in another boot than this."""
        return self._reservations("reservation.boot_id != ?", boot_id)

    def unsettled(self) -> list[Reservation]:
        """Return those of domains that run with an extent that is not simply ready."""
        return self._reservations(
            "reservation.phase = ? AND reservation.uuid IN (SELECT uuid FROM extent WHERE state != 'ready')",
            Phase.RUNNING.value,
        )

    def find(self, uuid: str) -> Reservation | None:
        """Return the reservation of a domain; tenants choose names, so only its key counts, in canonical form."""
        found = self._reservations("reservation.uuid = ?", uuid)
        return found[0] if found else None

    def find_named(self, typed: str) -> Reservation | None:
        """Return the reservation of the domain that a person means: by UUID, in any form, else by name.

        :raise UsageError: When several have that name: one of them was renamed or undefined while it runs.
        """
        found = self.find(typed) or self.find(_canonical(typed))
        if found:
            return found
        some = self._reservations("reservation.name = ?", typed)
        if len(some) > 1:
            raise UsageError(
                f"{len(some)} domains with memory of a pool are named {typed!r}:"
                f" {', '.join(held.uuid for held in some)}.",
                hint="Say which one by its UUID.",
            )
        return some[0] if some else None

    def quarantined(self) -> list[Extent]:
        """Return extents whose domain is gone and that a process still maps."""
        return self._extents("state = 'quarantined' AND state != 'ready'")  # so that the index is taken

    def extents_in(self, pool: str) -> list[Extent]:
        """Return every extent of a pool, in every state."""
        return self._extents("pool = ?", pool)

    def charged_in_part(self, pool: str) -> list[Extent]:
        """Return the extents of a pool that are charged with less than their size."""
        charged = "(SELECT total(bytes) FROM share WHERE share.extent = extent.id)"
        return self._extents(f"pool = ? AND size_bytes > {charged}", pool)

    def extents_of(self, uuid: str) -> list[Extent]:
        """Return every extent of a domain, in every state."""
        return self._extents("uuid = ?", uuid)

    def sizes_in(self, pool: str) -> dict[str, int]:
        """Return the size in bytes of every extent of a pool, in every state, by its path."""
        with self._explained():
            return dict(self._db.execute("SELECT path, size_bytes FROM extent WHERE pool = ?", (pool,)).fetchall())

    def has_path(self, path: Path) -> bool:
        """Tell whether an extent, in whatever state, stands at a path."""
        with self._explained():
            return self._db.execute("SELECT 1 FROM extent WHERE path = ?", (str(path),)).fetchone() is not None

    def _reservations(self, where: str, *values: str) -> list[Reservation]:
        return list(self._each(where, *values))

    def _each(self, where: str, *values: str) -> Iterator[Reservation]:
        with self._explained():
            rows = self._db.execute(
                f"{_RESERVATIONS} WHERE {where} ORDER BY name, reservation.uuid, extent.id, share.rowid",
                values,  # the condition is a literal of this module
            )
            for (uuid, name, boot_id, phase, since), of_one in groupby(rows, lambda row: row[:5]):
                extents = tuple(_extents(row[5:] for row in of_one))
                moment = self._standings[uuid].moment if uuid in self._standings else 0
                yield Reservation(uuid, name, boot_id, Phase(phase), since, extents, moment)

    def _extents(self, where: str, *values: str) -> list[Extent]:
        with self._explained():
            rows = self._db.execute(f"{_EXTENTS} WHERE {where} ORDER BY extent.id, share.rowid", values)
            return _extents(rows)

    # What the administrator targets, until he says otherwise

    def set_drained(self, pool: str, *, drained: bool) -> None:
        """Record that no memory is to be given from a pool any more, or again."""
        with self._transaction() as db:
            if drained:
                db.execute("INSERT OR IGNORE INTO drained VALUES (?)", (pool,))
            else:
                db.execute("DELETE FROM drained WHERE pool = ?", (pool,))

    def drained(self) -> set[str]:
        """Return the pools that no memory is to be given from."""
        with self._explained():
            return {pool for (pool,) in self._db.execute("SELECT pool FROM drained")}

    def pause(self, what: str, seconds: float) -> None:
        """Record that something is not to be done by itself for so long, maybe infinitely."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO paused VALUES (?, ?)", (what, time.time() + seconds))
        self._paused[what] = uptime() + seconds

    def resume(self, what: str) -> None:
        """Record that it is to be done again."""
        with self._transaction() as db:
            db.execute("DELETE FROM paused WHERE what = ?", (what,))
        self._paused.pop(what, None)

    def pause_left(self, what: str) -> float | None:
        """Return for how many seconds something is still paused, 0 or less when that is over; ``None``: it is not.

        By a clock that nobody sets, for as long as the ledger is open.
        """
        return self._paused[what] - uptime() if what in self._paused else None

    # Memory that failed

    def add_failure(self, uuid: str, what: str) -> str:
        """Record that some memory of a domain failed, nobody says where; return the domain's name."""
        reservation = self.find(uuid)
        if reservation is None:
            return uuid
        with self._transaction() as db:
            for extent in reservation.extents:
                db.execute("INSERT OR REPLACE INTO failure VALUES (?, ?, ?)", (extent.id, reservation.name, what))
        return reservation.name

    def has_failed(self, extent: Extent) -> bool:
        """Tell whether an extent may hold memory that failed."""
        with self._explained():
            rows = self._db.execute("SELECT 1 FROM failure WHERE extent = ?", (extent.id,))
            return rows.fetchone() is not None

    def failures(self) -> list[Failure]:
        """Return the extents that may hold memory that failed, by their path."""
        with self._explained():
            rows = self._db.execute(
                "SELECT extent.id, extent.path, failure.domain, failure.what FROM failure"
                " CROSS JOIN extent ON extent.id = failure.extent ORDER BY extent.path"  # few, looked up in many
            ).fetchall()
        return [Failure(row[0], Path(row[1]), row[2], row[3]) for row in rows]

    # What happens to it

    def set_phase(self, uuid: str, phase: Phase) -> None:
        """Record how far a domain has come."""
        standing = self._standing(phase)
        with self._transaction() as db:
            db.execute(
                "UPDATE reservation SET phase = ?, since = ? WHERE uuid = ?", (phase.value, standing.since, uuid)
            )
        if uuid in self._standings:
            self._standings[uuid] = standing

    def set_ready(self, some: Iterable[Extent]) -> None:
        """Record that extents are whole."""
        with self._transaction() as db:
            ready = ExtentState.READY.value
            db.executemany("UPDATE extent SET state = ? WHERE id = ?", [(ready, extent.id) for extent in some])

    def set_state(self, extent: Extent, state: ExtentState, *, link: str = "") -> None:
        """Record what is known of an extent of a domain that runs, and where it is about to be linked."""
        with self._transaction() as db:
            db.execute("UPDATE extent SET state = ?, link = ? WHERE id = ?", (state.value, link, extent.id))

    def set_links(self, links: Mapping[int, str]) -> None:
        """Record where extents (by id) are about to be linked; an empty path: no longer."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE extent SET link = ? WHERE id = ?", [(link, number) for number, link in links.items()]
            )

    def quarantine(self, extent: Extent) -> None:
        """Record that an extent outlives its domain: a process still maps it."""
        with self._transaction() as db:
            db.execute(
                "UPDATE extent SET state = ?, link = '' WHERE id = ?",
                (ExtentState.QUARANTINED.value, extent.id),
            )

    def forget_extent(self, extent: Extent) -> None:
        """Stop charging an extent; its file is gone."""
        with self._transaction() as db:
            db.execute("DELETE FROM extent WHERE id = ?", (extent.id,))

    def forget(self, uuid: str) -> None:
        """Remove a domain's reservation; its extents are gone or quarantined."""
        with self._transaction() as db:
            db.execute("DELETE FROM reservation WHERE uuid = ?", (uuid,))
        self._standings.pop(uuid, None)

    def add_steps(self, uuid: str, steps: Iterable[Step]) -> None:
        """Record how long steps took; those of the start before are forgotten when it reserves anew."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO step VALUES (?, ?, ?, ?)",
                [(uuid, step.step, step.at, step.seconds) for step in steps],
            )
            db.execute("DELETE FROM step WHERE rowid <= (SELECT max(rowid) FROM step) - ?", (_KEPT_STEPS,))

    def steps(self, uuid: str) -> list[Step]:
        """Return the steps of a domain's last start, in the order in which they ended."""
        with self._explained():
            rows = self._db.execute("SELECT step, at, seconds FROM step WHERE uuid = ? ORDER BY rowid", (uuid,))
            return [Step(*row) for row in rows]

    def last_steps(self) -> dict[str, float]:
        """Return when the last step of each domain was (seconds since the epoch), by UUID."""
        with self._explained():
            return dict(self._db.execute("SELECT uuid, max(at) FROM step GROUP BY uuid").fetchall())


def _canonical(typed: str) -> str:
    """Return a UUID in the form that libvirt prints, and what is none as it is."""
    try:
        return str(UUID(typed))
    except ValueError:
        return typed


def _extents(rows: Iterable[tuple[Any, ...]]) -> list[Extent]:
    """Return the extents of rows of ``_EXTENT_COLUMNS``: one for each share, those of an extent together."""
    return [
        Extent(
            id=row[0], uuid=row[1], alias=row[2], pool=row[3], path=Path(row[4]), size_bytes=row[5],
            page_size=row[6], policy=row[7], state=ExtentState(row[8]), boot_id=row[9], link=row[10],
            shares={share[11]: share[12] for share in of_one if share[11] is not None},
        )
        for number, some in groupby(rows, lambda row: row[0])
        if number is not None
        for of_one in [list(some)]
        for row in of_one[:1]
    ]  # fmt: skip
