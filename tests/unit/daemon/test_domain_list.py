# SPDX-License-Identifier: GPL-2.0-or-later
"""The cached list of domains is that of the ledger, whatever was written, and queries only what changed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rig.plans import PAGE, make_plan, paths_of
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import ExtentState, Phase
from virt_dmem.daemon.domain_list import AT_ONCE, DomainList
from virt_dmem.daemon.views import domain_json

CAPACITY = {("fast", node): 10_000 * PAGE for node in range(2)}


def listed(listing: DomainList) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(asyncio.run(listing.json()))
    return found


def all_of(ledger: Ledger) -> list[Any]:
    return [json.loads(domain_json(held)) for held in ledger.reservations()]


def reserve(ledger: Ledger, number: int) -> None:
    plan = make_plan(number, (0, 1), (1, 2))
    ledger.reserve(plan, paths_of(plan), CAPACITY)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from(["reserve", "phase", "ready", "recharge", "quarantine", "forget", "list"]),
        ),
        max_size=30,
    )
)
def test_it_is_what_the_ledger_holds_after_whatever_was_written(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]]
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite", "boot-1")
    reserve(ledger, 0)
    listing = DomainList(ledger, domain_json)
    for number, step in steps:
        held = ledger.find(f"uuid-{number}")
        if step == "list":
            assert listed(listing) == all_of(ledger)
        elif held is None:
            reserve(ledger, number)
        elif step == "phase":
            ledger.set_phase(held.uuid, Phase.RUNNING)
        elif step == "ready":
            ledger.set_populated(held.extents)
        elif step == "recharge":
            for extent in held.extents:
                ledger.recharge(extent, {0: PAGE})
        elif step == "quarantine":
            for extent in held.extents[:1]:
                ledger.set_state(extent, ExtentState.DETACHING)
        elif step == "forget":
            for extent in held.extents:
                ledger.forget_extent(extent)
            ledger.forget(held.uuid)
    assert listed(listing) == all_of(ledger)
    ledger.close()


def test_a_domain_that_was_rolled_back_is_not_shown_and_a_change_asks_for_one_domain(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", "boot-1")
    for number in range(3 * AT_ONCE):
        reserve(ledger, number)
    listing = DomainList(ledger, domain_json)
    assert listed(listing) == all_of(ledger)
    asked: list[str] = []
    ledger._db.set_trace_callback(asked.append)
    before = asyncio.run(listing.json())
    assert len(asked) == 1, "whether there is anything new"
    ledger.set_phase(ledger.find("uuid-1").uuid, Phase.STOPPED)  # type: ignore[union-attr]
    asked.clear()
    assert asyncio.run(listing.json()) != before
    assert len([text for text in asked if "FROM extent" in text or "JOIN extent" in text]) == 1
    ledger.close()


def test_making_the_whole_list_leaves_the_event_loop_to_others(tmp_path: Path) -> None:
    """The passes of the event loop are counted."""
    ledger = Ledger(tmp_path / "ledger.sqlite", "boot-1")
    for number in range(5 * AT_ONCE):
        reserve(ledger, number)

    async def story() -> int:
        passes = 0
        making = asyncio.create_task(DomainList(ledger, domain_json).json())
        while not making.done():
            await asyncio.sleep(0)
            passes += 1
        return passes

    assert asyncio.run(story()) >= 5
    ledger.close()
