# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger never charges more than there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rig.plans import PAGE, make_plan, paths_of
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import ExtentState, Phase, TimedStep
from virt_dmem.errors import NotEnoughMemory


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
        phases = {uuid: change[:3] for uuid, change in ledger.phases().items()}
        assert phases == {held.uuid: (held.phase, held.since, held.sequence) for held in ledger.reservations()}
    ledger.close()


def test_a_quarantined_extent_stays_charged_after_its_domain_is_forgotten(ledger: Ledger) -> None:
    plan = make_plan(1, (0, 3))
    ledger.reserve(plan, paths_of(plan), {("fast", 0): 9 * PAGE})
    held = ledger.find("uuid-1")
    assert held is not None
    ledger.quarantine(held.extents[0])
    ledger.forget("uuid-1")
    assert ledger.find("uuid-1") is None
    assert ledger.phases() == {}
    assert ledger.reserved() == {("fast", 0): 3 * PAGE}
    assert [extent.state for extent in ledger.quarantined()] == [ExtentState.QUARANTINED]
    # and the domain may start again beside it, at another path
    ledger.reserve(plan, {"ram-node0": Path("/pool/other")}, {("fast", 0): 9 * PAGE})
    assert ledger.reserved() == {("fast", 0): 6 * PAGE}


def test_steps_are_kept_in_order_and_forgotten_at_the_next_reservation(ledger: Ledger) -> None:
    plan = make_plan(1, (0, 1))
    ledger.reserve(plan, paths_of(plan), {("fast", 0): PAGE})
    ledger.add_steps("uuid-1", [TimedStep("prepare", 10.0, 1.5), TimedStep("start", 11.0, 0.5)])
    assert [(step.step, step.seconds) for step in ledger.steps("uuid-1")] == [("prepare", 1.5), ("start", 0.5)]
    held = ledger.find("uuid-1")
    assert held is not None
    ledger.forget_extent(held.extents[0])
    ledger.forget("uuid-1")
    ledger.reserve(plan, paths_of(plan), {("fast", 0): PAGE})
    assert ledger.steps("uuid-1") == []
