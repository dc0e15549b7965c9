# SPDX-License-Identifier: GPL-2.0-or-later
"""Open the file of the ledger, and run its transactions."""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

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
from virt_dmem.errors import LedgerError
from virt_dmem.replaced_file import UNFINISHED, file_identity

__all__ = ["LedgerFile"]

log = logging.getLogger(__name__)

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
"""Record in memory, as part of each transaction, the domains of which a row was written."""


class LedgerFile:
    """Hold the open file.

    :raise LedgerError: From every method, when SQLite cannot read or write (disk full, damaged file).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._never_closed: list[sqlite3.Connection] = []
        """Connections to files that were removed: closing one would remove the companions of their successor."""
        with self._explained():
            self._begin()
            self._sum_charges()

    def _begin(self) -> None:
        database = self._open()
        database.executescript(f"PRAGMA temp_store = MEMORY;{_TOUCHED}")
        self._db = database
        self._file = file_identity(self._path)

    def _open(self) -> sqlite3.Connection:
        """Open the file; set a damaged one aside and create a new one, which reconcile fills again."""
        try:
            return self._open_sound()
        except Damaged as damage:
            aside = set_aside(self._path)
            log.error("the ledger was damaged (%s) and renamed to %s; created a new one", damage, aside)  # noqa: TRY400
            database = self._open_sound()
            salvage(aside, database)
            return database

    def _open_sound(self) -> sqlite3.Connection:
        database = open_file(self._path)
        try:
            with damage_told():
                version = version_of(database)
                if version != SCHEMA_VERSION and has_our_schema(database):
                    raise Damaged(f"its version is not {version}")
                if version > SCHEMA_VERSION:
                    raise LedgerError(
                        f"The ledger {self._path} has version {version}, and this virt-dmemd supports version"
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

    def damaged_file(self) -> str:
        """Return the path of the newest damaged ledger that was set aside and is still there; empty: none."""
        found = self._path.parent.glob(f"{self._path.name}.damaged-*")
        return str(max((path for path in found if not path.name.endswith(COMPANIONS)), default=""))

    def _sum_charges(self) -> None:
        """Sum up again the charges that triggers keep, as other programs may have changed the file.

        Where they are right nothing is written: the disk may be full.
        """
        kept = dict(self._db.execute("SELECT pool || '@' || node, bytes FROM charged WHERE bytes != 0"))
        summed = dict(
            self._db.execute(
                "SELECT pool || '@' || node, sum(bytes) FROM share JOIN extent ON id = extent"
                " GROUP BY pool, node HAVING sum(bytes) != 0"
            )
        )
        if kept == summed:
            return
        with self._transaction() as db:
            db.execute("DELETE FROM charged")
            db.execute(
                "INSERT INTO charged SELECT pool, node, sum(bytes) FROM share JOIN extent ON id = extent"
                " GROUP BY pool, node"
            )

    def lost(self) -> str:
        """Return what others did to the file, to continue a sentence about it; empty: nothing."""
        found = file_identity(self._path)
        if found == self._file:
            return ""
        return "was removed" if found is None else "was replaced by another file"

    def write_again(self) -> None:
        """Put the ledger back to its place if its file was removed; between transactions.

        :raise LedgerError: When it cannot be written; the one without a file stays in use.
        """
        if self._path.exists():
            return
        with self._explained():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._path.with_name(f".{self._path.stem}{UNFINISHED}")
            fresh.unlink(missing_ok=True)
            with closing(open_file(fresh)) as copy:
                self._db.backup(copy)
            touched = self._db.execute("SELECT uuid FROM touched").fetchall()
            for suffix in COMPANIONS:  # of the one without a file, which has them open
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            fresh.rename(self._path)
            before = self._db
            try:
                self._begin()
            except BaseException:
                self._path.unlink()
                raise
            self._db.executemany("INSERT OR IGNORE INTO touched VALUES (?)", touched)
            self._never_closed.append(before)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            failure = LedgerError(f"The ledger {self._path} cannot be used: {error}.", hint=self._remedy(error))
            failure.is_unavailable = isinstance(error, sqlite3.OperationalError | OSError)
            raise failure from error

    def _remedy(self, error: sqlite3.Error | OSError) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the other bits are details
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return f"End the program that has it open: 'fuser -v {self._path}'. Running guests are not affected."
        if code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) == errno.ENOSPC:
            return f"Free space on the file system of {self._path.parent}; running guests are not affected."
        return "Check whether its file system is full or read-only; running guests are not affected."

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # after some errors SQLite has rolled back already
                    self._db.execute("ROLLBACK")
                raise
