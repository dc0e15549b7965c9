# SPDX-License-Identifier: GPL-2.0-or-later
"""A ledger of an earlier version is migrated, and a copy of it kept."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from virt_dmem.allocation import ledger_schema
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.ledger_schema import SCHEMA_VERSION, version_of
from virt_dmem.allocation.models import ExtentState, Phase
from virt_dmem.errors import LedgerError

MIB = 1 << 20

VERSION_1 = """
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
PRAGMA user_version = 1;
INSERT INTO reservation VALUES ('uuid-1', 'guest1', 'boot-1', 'running', 1700000000.5);
INSERT INTO extent VALUES (
    7, 'uuid-1', 'ram-node0', 'fast', '/fast/libvirt-uuid-1/ram-node0', 3145728, 4096, 'bind', 'ready', 'boot-1', ''
);
INSERT INTO extent VALUES (
    9, 'uuid-0', 'ram', 'fast', '/fast/libvirt-uuid-0/ram+2', 1048576, 4096, 'none', 'quarantined', 'boot-1', ''
);
INSERT INTO share VALUES (7, 1, 2097152), (7, 0, 1048576), (9, -1, 1048576);
INSERT INTO step VALUES ('uuid-1', 'prepare', 1700000000.25, 1.5);
"""
"""What the first release wrote."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Create a ledger of version 1 with some rows, as a killed daemon leaves it: in WAL mode."""
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(VERSION_1)
    return path


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of every table."""
    with closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: database.execute(f"SELECT * FROM {name} ORDER BY rowid").fetchall() for name in tables}


def copies(path: Path) -> list[Path]:
    return sorted(path.parent.glob("ledger.sqlite.*"))


def test_a_ledger_of_version_1_is_brought_to_ours_with_every_row(old: Path) -> None:
    before = rows(old)
    ledger = Ledger(old, "boot-1")
    held = ledger.find_named("guest1")
    assert held is not None
    assert (held.phase, held.since, held.size_bytes) == (Phase.RUNNING, 1700000000.5, 3 * MIB)
    assert list(held.extents[0].shares.items()) == [(1, 2 * MIB), (0, MIB)], "in the order they were written"
    assert [extent.state for extent in ledger.quarantined()] == [ExtentState.QUARANTINED]
    assert [step.seconds for step in ledger.steps("uuid-1")] == [1.5]
    assert ledger.drained() == set()
    ledger.close()
    after = rows(old)
    assert {name: after[name] for name in before} == before
    with closing(sqlite3.connect(old)) as database:
        assert version_of(database) == SCHEMA_VERSION


def test_the_ledger_as_it_was_is_kept_beside_it_for_root_alone(old: Path) -> None:
    before = rows(old)
    Ledger(old, "boot-1").close()
    (copy,) = copies(old)
    assert copy.name.startswith("ledger.sqlite.v1-2")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert rows(copy) == before
    with closing(sqlite3.connect(copy)) as database:
        assert version_of(database) == 1


def test_one_that_is_up_to_date_is_not_copied(tmp_path: Path) -> None:
    for _ in range(2):
        Ledger(tmp_path / "ledger.sqlite", "boot-1").close()
    assert copies(tmp_path / "ledger.sqlite") == []


def test_it_is_root_s_own_whatever_the_umask(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", "boot-1")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    ledger.close()
    assert modes == {0o600}


def test_a_migration_that_fails_half_way_leaves_it_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(old)
    broken = (
        ledger_schema._MIGRATIONS[0],
        "CREATE TABLE more (a); DROP TABLE share; INSERT INTO nowhere VALUES (1);",
    )
    monkeypatch.setattr(ledger_schema, "_MIGRATIONS", broken)
    with pytest.raises(LedgerError, match="nowhere"):
        Ledger(old, "boot-1")
    monkeypatch.undo()
    assert rows(old) == before
    ledger = Ledger(old, "boot-1")  # and the next one, which can, does
    assert ledger.find_named("guest1")
    ledger.close()


def test_without_a_copy_nothing_is_changed(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(old)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(LedgerError, match="No space left"):
        Ledger(old, "boot-1")
    monkeypatch.undo()
    assert rows(old) == before
    with closing(sqlite3.connect(old)) as database:
        assert version_of(database) == 1


def test_what_is_drained_or_paused_is_still_so_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, "boot-1")
    ledger.set_drained("fast", drained=True)
    ledger.pause("apply", float("inf"))
    ledger.close()
    ledger = Ledger(path, "boot-2")
    assert ledger.drained() == {"fast"}
    assert ledger.pause_left("apply") == float("inf")
    ledger.set_drained("fast", drained=False)
    ledger.resume("apply")
    assert ledger.drained() == set()
    assert ledger.pause_left("apply") is None
    ledger.close()


def test_a_schema_that_is_not_utf8_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path, "boot-1").close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    assert b"TABLE drained (pool" in whole
    path.write_bytes(whole.replace(b"TABLE drained (pool", b"TABLE drained (\xc3ool"))
    with closing(Ledger(path, "boot-1")) as ledger:
        assert ledger.drained() == set()
        assert ledger.damaged_file()
