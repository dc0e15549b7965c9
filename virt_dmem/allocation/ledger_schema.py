# SPDX-License-Identifier: GPL-2.0-or-later
"""Define the schema of the ledger's file, migrate earlier versions, and verify and salvage it.

Before a migration the file is copied beside it (``ledger.sqlite.v1-20260131T120000``); a damaged one is renamed
(``ledger.sqlite.damaged-20260131T120000``).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from virt_dmem.allocation.models import ExtentState, ParkedStep, Phase

__all__ = [
    "COMPANIONS",
    "SCHEMA_VERSION",
    "Damaged",
    "damage_told",
    "has_our_schema",
    "migrate",
    "open_file",
    "require_sound",
    "salvage",
    "set_aside",
    "version_of",
]

_MIGRATIONS = (
    """
CREATE TABLE reservation (
    uuid TEXT PRIMARY KEY, name TEXT NOT NULL, boot_id TEXT NOT NULL, phase TEXT NOT NULL, since REAL NOT NULL);
CREATE TABLE extent (
    id INTEGER PRIMARY KEY, uuid TEXT NOT NULL, alias TEXT NOT NULL, pool TEXT NOT NULL, path TEXT NOT NULL UNIQUE,
    size_bytes INTEGER NOT NULL, page_size INTEGER NOT NULL, policy TEXT NOT NULL, state TEXT NOT NULL,
    boot_id TEXT NOT NULL, link TEXT NOT NULL DEFAULT '');
CREATE UNIQUE INDEX extent_of_domain ON extent (uuid, alias) WHERE state != 'quarantined';
CREATE TABLE share (
    extent INTEGER NOT NULL REFERENCES extent (id) ON DELETE CASCADE, node INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (extent, node));
CREATE TABLE step (uuid TEXT NOT NULL, step TEXT NOT NULL, at REAL NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (uuid, step));
""",
    """
CREATE TABLE drained (pool TEXT PRIMARY KEY);
CREATE TABLE paused (what TEXT PRIMARY KEY, until REAL NOT NULL);
""",
    """
CREATE TABLE failure (
    extent INTEGER PRIMARY KEY REFERENCES extent (id) ON DELETE CASCADE, domain TEXT NOT NULL, what TEXT NOT NULL);
""",
    """
CREATE INDEX reservation_name ON reservation (name);
CREATE INDEX extent_uuid ON extent (uuid);
CREATE INDEX extent_unsettled ON extent (state) WHERE state != 'ready';
CREATE TABLE charged (pool TEXT NOT NULL, node INTEGER NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (pool, node));
INSERT INTO charged SELECT pool, node, sum(bytes) FROM share JOIN extent ON id = extent GROUP BY pool, node;
CREATE TRIGGER share_comes AFTER INSERT ON share BEGIN
    INSERT INTO charged SELECT pool, NEW.node, NEW.bytes FROM extent WHERE id = NEW.extent
    ON CONFLICT (pool, node) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER share_goes AFTER DELETE ON share BEGIN
    UPDATE charged SET bytes = bytes - OLD.bytes
    WHERE node = OLD.node AND pool = (SELECT pool FROM extent WHERE id = OLD.extent);
END;
CREATE TRIGGER extent_goes BEFORE DELETE ON extent BEGIN DELETE FROM share WHERE extent = OLD.id; END;
""",
    """
CREATE TABLE parked (
    uuid TEXT PRIMARY KEY REFERENCES reservation (uuid), step TEXT NOT NULL, state_file TEXT NOT NULL,
    since REAL NOT NULL);
""",
)
"""Make each version of the schema from the previous one, the first from an empty file. A released migration never
changes: a file of any earlier version runs through all that follow."""

SCHEMA_VERSION = len(_MIGRATIONS)


_PHASES, _STATES, _STEPS = (", ".join(f"'{kind.value}'" for kind in of) for of in (Phase, ExtentState, ParkedStep))
_END = "('/' || pool || '/libvirt-' || uuid || '/' || alias)"
"""The end of a path, without the number of a file that was not the first. Files are emptied by path, so it is
verified."""
_IS_SOUND = {
    "reservation": f"""typeof(uuid) = 'text' AND typeof(name) = 'text' AND typeof(boot_id) = 'text'
        AND typeof(since) = 'real' AND phase IN ({_PHASES})""",
    "extent": f"""typeof(uuid) = 'text' AND typeof(alias) = 'text' AND typeof(pool) = 'text'
        AND typeof(boot_id) = 'text' AND typeof(path) = 'text' AND path LIKE '/%' AND typeof(link) = 'text'
        AND substr(path || '+', instr(path, {_END}) + length({_END}), 1) = '+' AND instr(path, {_END}) > 0
        AND typeof(size_bytes) = 'integer' AND size_bytes > 0 AND typeof(page_size) = 'integer' AND page_size > 0
        AND size_bytes % page_size = 0
        AND (SELECT total(bytes) FROM share WHERE extent = extent.id) <= size_bytes
        AND policy IN ('none', 'bind', 'preferred', 'interleave')
        AND state IN ({_STATES})
        AND (state = 'quarantined' OR uuid IN (SELECT uuid FROM reservation))""",  # noqa: S608 -- of literals
    "share": """typeof(node) = 'integer' AND typeof(bytes) = 'integer'
        AND bytes BETWEEN 0 AND (SELECT size_bytes FROM extent WHERE id = share.extent)""",
    "step": "typeof(uuid) = 'text' AND typeof(step) = 'text' AND typeof(at) = 'real' AND typeof(seconds) = 'real'",
    "drained": "typeof(pool) = 'text'",
    "paused": "typeof(what) = 'text' AND typeof(until) = 'real'",
    "failure": "typeof(extent) = 'integer' AND typeof(domain) = 'text' AND typeof(what) = 'text'",
    "parked": f"""typeof(uuid) = 'text' AND typeof(state_file) = 'text' AND state_file LIKE '/%'
        AND typeof(since) = 'real' AND step IN ({_STEPS}) AND uuid IN (SELECT uuid FROM reservation)""",  # noqa: S608
}
"""Conditions on each row of a table: SQLite itself accepts any value, and a flipped bit can make any."""


_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)
"""Result codes about the content of the file (https://sqlite.org/rescode.html)."""


BUSY_SECONDS = 1.0
"""How long to wait for another program that has the file locked: no hook is served meanwhile."""

COMPANIONS = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps beside a database."""


class Damaged(Exception):
    """Report that the file is not a database, or not a valid ledger."""


def open_file(path: Path) -> sqlite3.Connection:
    """Open the file, or create it for root alone; SQLite gives its companions (``-wal``) the same mode."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)


@contextlib.contextmanager
def damage_told() -> Iterator[None]:
    """Distinguish a damaged file from a disk that is full or fails, for all access in this context.

    :raise Damaged: When SQLite reports a damaged file.
    """
    try:
        yield
    except UnicodeDecodeError as error:  # in the message of SQLite
        raise Damaged(str(error)) from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None or code & 0xFF in _DAMAGE:  # Python's own: text that is not UTF-8; other bits are details
            raise Damaged(str(error)) from error
        raise


def require_sound(database: sqlite3.Connection) -> None:
    """Verify the whole file: its pages, and each row.

    :raise Damaged: When something in it is invalid.
    """
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise Damaged(verdict)
    if not has_our_schema(database):
        raise Damaged("its tables are not those of a ledger")
    for table, sound in _IS_SOUND.items():
        (wrong,) = database.execute(
            f"SELECT count(*) FROM {table} WHERE NOT coalesce({sound}, FALSE)"  # noqa: S608 -- of literals
        ).fetchone()
        if wrong:
            raise Damaged(f"{wrong} rows of table {table} are invalid")
        for _ in database.execute(f"SELECT * FROM {table}"):  # noqa: S608 -- of literals
            pass


def has_our_schema(database: sqlite3.Connection) -> bool:
    """Tell whether a file has the schema of our version, whatever its version number."""
    with contextlib.closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript("".join(_MIGRATIONS))
        return _schema_of(database) == _schema_of(ours)


def _schema_of(database: sqlite3.Connection) -> list[tuple[str]]:
    return database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY sql").fetchall()


def salvage(aside: Path, database: sqlite3.Connection) -> None:
    """Copy the administrator's settings, as far as they can be read, from a damaged file to a new one."""
    for table in ("drained", "paused"):
        with (
            contextlib.suppress(sqlite3.Error, UnicodeDecodeError),
            contextlib.closing(sqlite3.connect(aside)) as damaged,
        ):
            rows = damaged.execute(f"SELECT * FROM {table} WHERE {_IS_SOUND[table]}").fetchall()  # noqa: S608
            for row in rows:
                database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608


def set_aside(path: Path) -> Path:
    """Rename a damaged file and its companions; return the new path."""
    now = time.strftime("%Y%m%dT%H%M%S")
    names = (
        path.with_name(f"{path.name}.damaged-{now}{more}") for more in ("", *(f".{n}" for n in range(1, 1000)))
    )
    aside = next(name for name in names if not name.exists())
    for companion in COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + companion).replace(aside.with_name(aside.name + companion))
    path.replace(aside)
    return aside


def version_of(database: sqlite3.Connection) -> int:
    """Return the version of its schema; 0 for an empty file."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def migrate(database: sqlite3.Connection, path: Path) -> None:
    """Migrate the file at ``path`` to our version, in one transaction.

    :raise sqlite3.Error: When that fails, or the copy; the file is unchanged then.
    """
    version = version_of(database)
    if version >= SCHEMA_VERSION:
        return
    if version:
        _keep_copy(database, path.with_name(f"{path.name}.v{version}-{time.strftime('%Y%m%dT%H%M%S')}"))
    steps = "".join(_MIGRATIONS[version:])
    try:
        database.executescript(f"BEGIN IMMEDIATE;{steps}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _keep_copy(database: sqlite3.Connection, path: Path) -> None:
    """Copy a database atomically."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with contextlib.closing(open_file(unfinished)) as copy:
        database.backup(copy)
    unfinished.replace(path)
