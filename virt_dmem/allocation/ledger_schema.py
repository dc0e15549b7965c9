# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger's file: its schema, and how a file of an earlier version becomes one of ours.

Before a schema changes, the file as it was is kept beside it (``ledger.sqlite.v1-20260131T120000``); so is one that
is damaged (``ledger.sqlite.damaged-20260131T120000``).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from virt_dmem.allocation.models import ExtentState, Phase

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
)
"""What makes each version of the schema of the one before it, the first of an empty file. What was once released
is never changed, only added to: a file of any earlier version goes through all that it lacks."""

SCHEMA_VERSION = len(_MIGRATIONS)


_PHASES, _STATES = (", ".join(f"'{kind.value}'" for kind in of) for of in (Phase, ExtentState))
_END = "('/' || pool || '/libvirt-' || uuid || '/' || alias)"
"""Of a path, but for the number of one that was not the first. A file is emptied by its path: it must be this."""
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
}
"""What each row of a table must be: SQLite itself takes anything, and one flipped bit makes anything of a row."""


_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)
"""Errors that are about what is in the file (https://sqlite.org/rescode.html)."""


COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a file, by the ends of their names."""


class Damaged(Exception):
    """The file is no database, or no ledger of ours that can be trusted."""


def open_file(path: Path) -> sqlite3.Connection:
    """Open the file, root's own, made if it is missing; SQLite gives its companions (``-wal``) the same mode."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, isolation_level=None)


@contextlib.contextmanager
def damage_told() -> Iterator[None]:
    """Tell a file that is damaged from a disk that is full or does not answer, whatever is done with it here.

    :raise Damaged: When SQLite's error is of the first kind.
    """
    try:
        yield
    except UnicodeDecodeError as error:  # of what SQLite says
        raise Damaged(str(error)) from error
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in _DAMAGE:  # the rest of it says more exactly what
            raise Damaged(str(error)) from error
        raise


def require_sound(database: sqlite3.Connection) -> None:
    """Look at the whole file: its pages, and what stands in each row.

    :raise Damaged: When something in it cannot be.
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
            raise Damaged(f"{wrong} rows of table {table} are not as they can be")
        try:
            for _ in database.execute(f"SELECT * FROM {table}"):  # noqa: S608 -- of literals
                pass
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) is None:  # Python's own: text that is not UTF-8
                raise Damaged(str(error)) from error
            raise


def has_our_schema(database: sqlite3.Connection) -> bool:
    """Tell whether a file has the schema of our version, whatever version it says that it has."""
    with contextlib.closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript("".join(_MIGRATIONS))
        return _schema_of(database) == _schema_of(ours)


def _schema_of(database: sqlite3.Connection) -> list[tuple[str]]:
    return database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY sql").fetchall()


def salvage(aside: Path, database: sqlite3.Connection) -> None:
    """Copy what an administrator said, as far as it can be read, from a damaged file to a new one."""
    for table in ("drained", "paused"):
        with (
            contextlib.suppress(sqlite3.Error, UnicodeDecodeError),
            contextlib.closing(sqlite3.connect(aside)) as damaged,
        ):
            rows = damaged.execute(f"SELECT * FROM {table} WHERE {_IS_SOUND[table]}").fetchall()  # noqa: S608
            for row in rows:
                database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608


def set_aside(path: Path) -> Path:
    """Rename a file that is damaged, with what SQLite keeps beside it; return its new path."""
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
    """Return the version of its schema, 0 of an empty file."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def migrate(database: sqlite3.Connection, path: Path) -> None:
    """Bring the file at ``path`` to our version, all at once or not at all.

    :raise sqlite3.Error: When it cannot be, or no copy of it can be kept; it is then as it was.
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
    """Copy a database, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with contextlib.closing(open_file(unfinished)) as copy:
        database.backup(copy)
    unfinished.replace(path)
