# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger's work for one domain does not grow with the number of domains; in statements, not in seconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from tests.rig.plans import PAGE, make_plan, paths_of
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import ExtentState, Phase, TimedStep

CAPACITY = {("fast", node): 1000 * PAGE for node in range(2)}
MANY = 50


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.sqlite", "boot-1")
    for number in range(MANY):
        reserve(ledger, number)
    return ledger


def reserve(ledger: Ledger, number: int) -> None:
    plan = make_plan(number, (0, 1), (1, 2))
    ledger.reserve(plan, paths_of(plan), CAPACITY)


def statements(ledger: Ledger, action: Callable[[], object]) -> list[str]:
    """Return the statements run, with their values; SQLite shows triggers as comments."""
    found: list[str] = []
    ledger._db.set_trace_callback(found.append)
    action()
    ledger._db.set_trace_callback(None)
    return [text for text in found if not text.startswith("--")]


def scans(ledger: Ledger, texts: Collection[str]) -> list[str]:
    """Return the query plan's full scans of tables with rows for each domain."""
    plans = [
        row[3]
        for text in texts
        if text.lstrip().startswith(("SELECT", "DELETE", "UPDATE", "INSERT"))
        for row in ledger._db.execute(f"EXPLAIN QUERY PLAN {text}")
    ]
    return [plan for plan in plans if plan.split()[:2] in (["SCAN", name] for name in ("extent", "share", "step"))]


def test_no_query_for_one_domain_goes_through_all(ledger: Ledger) -> None:
    def one_domain() -> None:
        reserve(ledger, MANY)
        found = ledger.find_named(f"guest{MANY}")
        assert found is not None
        ledger.extents_of(found.uuid)
        ledger.has_path(found.extents[0].path)
        ledger.set_populated(found.extents)
        ledger.set_phase(found.uuid, Phase.RUNNING)
        ledger.recharge(found.extents[0], {0: PAGE}, CAPACITY)
        ledger.add_steps(found.uuid, [TimedStep("prepare", 1.0, 0.5)])
        ledger.quarantined()
        assert not ledger.has_failed(found.extents[0])
        ledger.failures()
        for extent in found.extents:
            ledger.forget_extent(extent)
        ledger.forget(found.uuid)

    assert scans(ledger, statements(ledger, one_domain)) == []


@pytest.mark.parametrize("of_all", ["reservations", "unsettled", "quarantined"])
def test_all_domains_are_read_with_one_query(ledger: Ledger, of_all: str) -> None:
    assert len(statements(ledger, lambda: list(getattr(ledger, of_all)()))) == 1


def test_the_sums_of_charges_are_those_of_the_rows(ledger: Ledger) -> None:
    assert ledger.reserved() == {("fast", 0): MANY * PAGE, ("fast", 1): MANY * 2 * PAGE}
    found = ledger.find_named("guest7")
    assert found is not None
    ledger.recharge(found.extents[1], {0: PAGE, 1: PAGE})
    ledger.quarantine(found.extents[1])
    ledger.forget_extent(found.extents[0])
    ledger.forget(found.uuid)
    rows = ledger._db.execute(
        "SELECT pool, node, sum(bytes) FROM share JOIN extent ON id = extent GROUP BY pool, node"
    )
    assert ledger.reserved() == {(pool, node): size for pool, node, size in rows}
    assert ledger.reserved() == {("fast", 0): MANY * PAGE, ("fast", 1): (MANY * 2 - 1) * PAGE}


def test_wrong_sums_are_computed_anew_when_the_ledger_is_opened(ledger: Ledger, tmp_path: Path) -> None:
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        database.execute("UPDATE charged SET bytes = 0")
    assert Ledger(tmp_path / "ledger.sqlite", "boot-1").reserved()["fast", 0] == MANY * PAGE


def test_a_domain_with_and_one_without_extents_are_read_alike(ledger: Ledger) -> None:
    found = ledger.find_named("guest3")
    assert found is not None
    assert found in ledger.reservations()
    ledger.quarantine(found.extents[0])
    ledger.forget_extent(found.extents[1])
    bare = ledger.find_named("guest3")
    assert bare is not None
    assert bare.extents == ()
    assert bare in ledger.reservations()
    assert [extent.state for extent in ledger.quarantined()] == [ExtentState.QUARANTINED]
    assert ledger.quarantined()[0].shares == found.extents[0].shares


def test_of_steps_only_the_newest_are_kept(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virt_dmem.allocation.ledger._KEPT_STEPS", 10)
    for number in range(100):
        ledger.add_steps(f"uuid-{number}", [TimedStep("release", float(number), 0.1)])
    assert set(ledger.last_steps()) == {f"uuid-{number}" for number in range(90, 100)}
