# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger: which domain holds how much of which pool, in one SQLite file.

It is a record of intent: a row stands here before the file stands in the pool, and is gone only after the
file is gone. What a domain is charged stays charged until its extent is removed, whatever the guest gave back
in between. Only ``virt-dmemd`` opens it, from one thread.

WAL with ``synchronous=NORMAL``: a commit survives the death of the process at any instant; what a power
failure could lose was memory that is gone as well.
"""

from __future__ import annotations

import enum
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.errors import LedgerError, NotEnoughMemory
from virt_dmem.ledger_file import SCHEMA_VERSION, migrate, open_file, version_of
from virt_dmem.plan import Plan
from virt_dmem.units import format_size

__all__ = ["Extent", "ExtentState", "Ledger", "Part", "Phase", "Reservation", "Step"]

_EXTENT_COLUMNS = """
SELECT id, uuid, alias, pool, path, size_bytes, page_size, policy, state, boot_id, link FROM extent
"""


class Phase(enum.Enum):
    """How far a domain's memory has come; each hook operation requires the one before it."""

    RESERVED = "reserved"
    """Charged; extents are being made."""
    PREPARED = "prepared"
    """Every extent is there, every page of it present."""
    LINKED = "linked"
    """Extents belong to QEMU's user and are linked where QEMU will open them."""
    RUNNING = "running"
    """QEMU maps them; they belong to root again."""
    STOPPED = "stopped"
    """libvirt says the domain is stopping; nothing is freed yet."""


class ExtentState(enum.Enum):
    """What is known of one file."""

    PLANNED = "planned"
    """Recorded; the file may or may not exist, and may be partly filled."""
    READY = "ready"
    """Whole, placed, every page present."""
    QUARANTINED = "quarantined"
    """Its domain is gone, but a process still maps it; charged until nobody does."""


@dataclass(frozen=True)
class Part:
    """A piece of an extent whose pages come from the same nodes: where it begins, its size, the NUMA policy."""

    offset_bytes: int
    size_bytes: int
    policy: str
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Extent:
    """One file in a pool that backs one memory backend; ``shares`` is bytes by node, summing to its size.

    In the order of ``shares`` the nodes follow each other in the file, except where it is interleaved.
    """

    id: int
    uuid: str
    alias: str
    pool: str
    path: Path
    size_bytes: int
    page_size: int
    policy: str
    state: ExtentState
    boot_id: str
    link: str
    shares: Mapping[int, int]

    @property
    def nodes(self) -> tuple[int, ...]:
        """Host nodes it is placed on, ascending; empty where the backend has no nodes."""
        return tuple(sorted(node for node in self.shares if node >= 0))

    def parts(self) -> list[Part]:
        """Return the pieces to prefault one after another, so that each node gives exactly its share.

        One call for several nodes would leave it to the kernel how much comes from each; page by page in
        turn, as interleaving has it, is the exception.
        """
        if self.policy in ("none", "interleave"):
            return [Part(0, self.size_bytes, self.policy, self.nodes)]
        parts, offset = [], 0
        for node, size in self.shares.items():
            parts.append(Part(offset, size, "bind", (node,)))
            offset += size
        return parts


@dataclass(frozen=True)
class Reservation:
    """What one domain holds."""

    uuid: str
    name: str
    boot_id: str
    phase: Phase
    since: float
    extents: tuple[Extent, ...]

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return sum(extent.size_bytes for extent in self.extents)


@dataclass(frozen=True)
class Step:
    """One step of a domain's last start or stop: when it ended, how long it took."""

    step: str
    at: float
    seconds: float


class Ledger:
    """The open ledger.

    :raise LedgerError: From every method, when SQLite cannot read or write (disk full, damaged file).
    """

    def __init__(self, path: Path, boot_id: str) -> None:
        self._boot_id = boot_id
        self._path = path
        with self._explained():
            self._db = open_file(path)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            version = version_of(self._db)
            if version > SCHEMA_VERSION:
                raise LedgerError(
                    f"The ledger {path} has version {version}, and this virt-dmemd knows version {SCHEMA_VERSION}.",
                    hint="Install the version of virt-dmem that wrote it, or put back the copy kept beside it.",
                )
            migrate(self._db, path)

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
        with self._transaction() as db:
            db.execute(
                "INSERT INTO reservation VALUES (?, ?, ?, ?, ?)",
                (plan.uuid, plan.name, self._boot_id, Phase.RESERVED.value, time.time()),
            )
            db.execute("DELETE FROM step WHERE uuid = ?", (plan.uuid,))
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
            for key, reserved in self.reserved().items():
                if reserved > capacity.get(key, 0) and any(extent.pool == key[0] for extent in plan.extents):
                    raise NotEnoughMemory(
                        f"Pool {key[0]} has {format_size(capacity.get(key, 0))} on node {key[1]}, and"
                        f" {format_size(reserved)} would be reserved with {plan.name}.",
                        hint="Stop a domain that holds memory of the pool, or make the pool larger.",
                    )

    def adopt(self, extent: Extent, name: str) -> None:
        """Charge what was found in use and stands in no row; reality is not refused, whatever the capacity.

        :param name: The domain's; an extent in state ``QUARANTINED`` has none any more.
        """
        with self._transaction() as db:
            if extent.state is not ExtentState.QUARANTINED:
                db.execute(
                    "INSERT OR IGNORE INTO reservation VALUES (?, ?, ?, ?, ?)",
                    (extent.uuid, name, self._boot_id, Phase.RUNNING.value, time.time()),
                )
            self._charge(db, extent)

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
            rows = self._db.execute(
                "SELECT pool, node, sum(bytes) FROM share JOIN extent ON extent.id = share.extent"
                " GROUP BY pool, node"
            )
            return {(pool, node): size for pool, node, size in rows}

    def reservations(self) -> list[Reservation]:
        """Return all of them, by name of the domain."""
        with self._explained():
            rows = self._db.execute("SELECT * FROM reservation ORDER BY name, uuid").fetchall()
        return [self._reservation(row) for row in rows]

    def find(self, domain: str) -> Reservation | None:
        """Return the reservation of a domain, given by UUID or by name."""
        with self._explained():
            row = self._db.execute(
                "SELECT * FROM reservation WHERE uuid = ? OR name = ? ORDER BY uuid = ? DESC",
                (domain, domain, domain),
            ).fetchone()
        return self._reservation(row) if row else None

    def quarantined(self) -> list[Extent]:
        """Return extents whose domain is gone and that a process still maps."""
        return self._extents("state = ?", ExtentState.QUARANTINED.value)

    def extents_in(self, pool: str) -> list[Extent]:
        """Return every extent of a pool, in every state."""
        return self._extents("pool = ?", pool)

    def _reservation(self, row: tuple[str, str, str, str, float]) -> Reservation:
        uuid, name, boot_id, phase, since = row
        extents = self._extents("uuid = ? AND state != 'quarantined'", uuid)
        return Reservation(uuid, name, boot_id, Phase(phase), since, tuple(extents))

    def _extents(self, where: str, value: str) -> list[Extent]:
        with self._explained():
            rows = self._db.execute(
                f"{_EXTENT_COLUMNS} WHERE {where} ORDER BY id",  # a literal of this module
                (value,),
            ).fetchall()
            return [
                Extent(
                    id=row[0], uuid=row[1], alias=row[2], pool=row[3], path=Path(row[4]), size_bytes=row[5],
                    page_size=row[6], policy=row[7], state=ExtentState(row[8]), boot_id=row[9], link=row[10],
                    shares=dict(
                        self._db.execute("SELECT node, bytes FROM share WHERE extent = ? ORDER BY rowid", (row[0],))
                    ),
                )
                for row in rows
            ]  # fmt: skip

    # What the administrator wished, until he says otherwise

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

    def pause(self, what: str, until: float) -> None:
        """Record that something is not to be done by itself until then (seconds since the epoch, or infinity)."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO paused VALUES (?, ?)", (what, until))

    def resume(self, what: str) -> None:
        """Record that it is to be done again."""
        with self._transaction() as db:
            db.execute("DELETE FROM paused WHERE what = ?", (what,))

    def paused_until(self, what: str) -> float | None:
        """Return until when something is paused, which may be past; ``None`` when it is not."""
        with self._explained():
            row = self._db.execute("SELECT until FROM paused WHERE what = ?", (what,)).fetchone()
        return row[0] if row else None

    # What happens to it

    def set_phase(self, uuid: str, phase: Phase) -> None:
        """Record how far a domain has come."""
        with self._transaction() as db:
            db.execute(
                "UPDATE reservation SET phase = ?, since = ? WHERE uuid = ?", (phase.value, time.time(), uuid)
            )

    def set_ready(self, extent: Extent) -> None:
        """Record that an extent is whole."""
        with self._transaction() as db:
            db.execute("UPDATE extent SET state = ? WHERE id = ?", (ExtentState.READY.value, extent.id))

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

    def add_step(self, uuid: str, step: str, seconds: float) -> None:
        """Record how long a step took; the steps of the start before are forgotten when it reserves anew."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO step VALUES (?, ?, ?, ?)", (uuid, step, time.time(), seconds))

    def steps(self, uuid: str) -> list[Step]:
        """Return the steps of a domain's last start, in order."""
        with self._explained():
            rows = self._db.execute("SELECT step, at, seconds FROM step WHERE uuid = ? ORDER BY at", (uuid,))
            return [Step(*row) for row in rows]
