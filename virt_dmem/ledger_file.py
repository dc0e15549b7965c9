# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger's file: its schema, and how a file of an earlier version becomes one of ours.

Before a schema changes, the file as it was is kept beside it (``ledger.sqlite.v1-20260131T120000``).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

__all__ = ["SCHEMA_VERSION", "migrate", "open_file", "version_of"]

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


def open_file(path: Path) -> sqlite3.Connection:
    """Open the file, root's own, made if it is missing; SQLite gives its companions (``-wal``) the same mode."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, isolation_level=None)


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
