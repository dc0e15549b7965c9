# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger never promises more than there is, and survives what it is killed by."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import ExtentState, Phase, Step
from virt_dmem.allocation.plan import ExtentPlan, Plan
from virt_dmem.errors import LedgerError, NotEnoughMemory

PAGE = 2 << 20


def make_plan(number: int, *pages: tuple[int, int]) -> Plan:
    """A plan with one extent for each (node, pages)."""
    extents = tuple(
        ExtentPlan(f"ram-node{index}", "fast", count * PAGE, PAGE, "bind", ((node, count * PAGE),))
        for index, (node, count) in enumerate(pages)
    )
    return Plan(uuid=f"uuid-{number}", name=f"guest{number}", extents=extents)


def paths_of(plan: Plan) -> dict[str, Path]:
    return {
        extent.alias: Path("/pools", extent.pool, f"libvirt-{plan.uuid}", extent.alias) for extent in plan.extents
    }


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", "boot-1")


def test_a_reservation_is_read_back_as_it_was_written(ledger: Ledger) -> None:
    plan = make_plan(1, (0, 3), (1, 2))
    ledger.reserve(plan, paths_of(plan), {("fast", 0): 3 * PAGE, ("fast", 1): 2 * PAGE})
    found = ledger.find_named("guest1")
    assert found is not None
    assert found == ledger.find("uuid-1")
    assert (found.phase, found.boot_id, found.size_bytes) == (Phase.RESERVED, "boot-1", 5 * PAGE)
    assert [(extent.alias, extent.nodes, extent.state) for extent in found.extents] == [
        ("ram-node0", (0,), ExtentState.PLANNED),
        ("ram-node1", (1,), ExtentState.PLANNED),
    ]


def test_a_reservation_that_does_not_fit_on_one_node_leaves_nothing_behind(ledger: Ledger) -> None:
    plan = make_plan(1, (0, 3), (1, 3))
    with pytest.raises(NotEnoughMemory, match="node 1"):
        ledger.reserve(plan, paths_of(plan), {("fast", 0): 3 * PAGE, ("fast", 1): 2 * PAGE})
    assert list(ledger.reservations()) == []
    assert ledger.reserved() == {}
    assert ledger.extents_in("fast") == []


@settings(max_examples=50)
@given(
    capacity=st.integers(0, 20),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(1, 9)), max_size=20),
)
def test_reservations_never_exceed_capacity_whatever_comes_and_goes(
    tmp_path_factory: pytest.TempPathFactory, capacity: int, steps: list[tuple[bool, int, int]]
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite", "boot-1")
    for take, number, pages in steps:
        held = ledger.find(f"uuid-{number}")
        if take and held is None:
            plan = make_plan(number, (0, pages))
            fits = ledger.reserved().get(("fast", 0), 0) + pages * PAGE <= capacity * PAGE
            try:
                ledger.reserve(plan, paths_of(plan), {("fast", 0): capacity * PAGE})
                assert fits
            except NotEnoughMemory:
                assert not fits
        elif not take and held is not None:
            for extent in held.extents:
                ledger.forget_extent(extent)
            ledger.forget(held.uuid)
        assert ledger.reserved().get(("fast", 0), 0) <= capacity * PAGE
        standings = {uuid: standing[:3] for uuid, standing in ledger.standings().items()}
        assert standings == {held.uuid: (held.phase, held.since, held.moment) for held in ledger.reservations()}
    ledger.close()


def test_a_quarantined_extent_stays_charged_after_its_domain_is_forgotten(ledger: Ledger) -> None:
    plan = make_plan(1, (0, 3))
    ledger.reserve(plan, paths_of(plan), {("fast", 0): 9 * PAGE})
    held = ledger.find("uuid-1")
    assert held is not None
    ledger.quarantine(held.extents[0])
    ledger.forget("uuid-1")
    assert ledger.find("uuid-1") is None
    assert ledger.standings() == {}
    assert ledger.reserved() == {("fast", 0): 3 * PAGE}
    assert [extent.state for extent in ledger.quarantined()] == [ExtentState.QUARANTINED]
    # and the domain may start again beside it, at another path
    ledger.reserve(plan, {"ram-node0": Path("/pool/other")}, {("fast", 0): 9 * PAGE})
    assert ledger.reserved() == {("fast", 0): 6 * PAGE}


def test_what_was_committed_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    program = f"""
        import os, signal
        from pathlib import Path
        from virt_dmem.allocation.ledger import Ledger
        from virt_dmem.allocation.models import Phase
        from virt_dmem.allocation.plan import ExtentPlan, Plan
        ledger = Ledger(Path({str(path)!r}), "boot-1")
        path = Path("/pools/fast/libvirt-uuid-1/pc.ram")
        extent = ExtentPlan("pc.ram", "fast", {PAGE}, {PAGE}, "bind", ((0, {PAGE}),))
        ledger.reserve(Plan("uuid-1", "guest1", (extent,)), {{"pc.ram": path}}, {{("fast", 0): {PAGE}}})
        ledger.set_phase("uuid-1", Phase.PREPARED)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    again = Ledger(path, "boot-1")
    found = again.find("uuid-1")
    assert found is not None
    assert found.phase is Phase.PREPARED
    assert {uuid: standing[:2] for uuid, standing in again.standings().items()} == {
        "uuid-1": (Phase.PREPARED, found.since)
    }


def test_steps_are_kept_in_order_and_forgotten_at_the_next_reservation(ledger: Ledger) -> None:
    plan = make_plan(1, (0, 1))
    ledger.reserve(plan, paths_of(plan), {("fast", 0): PAGE})
    ledger.add_steps("uuid-1", [Step("prepare", 10.0, 1.5), Step("start", 11.0, 0.5)])
    assert [(step.step, step.seconds) for step in ledger.steps("uuid-1")] == [("prepare", 1.5), ("start", 0.5)]
    held = ledger.find("uuid-1")
    assert held is not None
    ledger.forget_extent(held.extents[0])
    ledger.forget("uuid-1")
    ledger.reserve(plan, paths_of(plan), {("fast", 0): PAGE})
    assert ledger.steps("uuid-1") == []


def test_a_file_that_is_no_ledger_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content := os.urandom(8192))
    ledger = Ledger(path, "boot-1")
    assert list(ledger.reservations()) == []
    assert Path(ledger.set_aside()).read_bytes() == content


def test_a_ledger_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="version 99"):
        Ledger(path, "boot-1")
