# SPDX-License-Identifier: GPL-2.0-or-later
"""Events are told once, in order, and what was forgotten is said."""

from __future__ import annotations

import pytest

from tests.rig.plans import PAGE, make_plan, paths_of
from virt_dmem.allocation.models import Phase
from virt_dmem.daemon import events as module
from virt_dmem.daemon.events import Event, Events
from virt_dmem.daemon.wiring import Components

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


def told(events: list[Event]) -> list[tuple[str, str, str]]:
    return [(event.kind, event.name or event.subject, event.state) for event in events]


def test_what_the_ledger_records_is_told_with_the_name_also_when_the_domain_is_gone(parts: Components) -> None:
    service, ledger = parts.service, parts.ledger
    start = service.events.since(-1)
    assert (start.events, start.missed) == ([], False)
    plan = make_plan(1, (0, 1), (1, 2))
    ledger.reserve(plan, paths_of(plan), {("fast", node): 1000 * PAGE for node in range(2)})
    ledger.set_phase(plan.uuid, Phase.RUNNING)
    first = service.events.since(start.next)
    assert told(first.events) == [("domain", plan.name, "reserved"), ("domain", plan.name, "running")]
    assert service.events.since(first.next).events == [], "once"
    held = ledger.find(plan.uuid)
    assert held
    for extent in held.extents:
        ledger.forget_extent(extent)
    ledger.forget(plan.uuid)
    rest = told(service.events.since(first.next).events)
    assert rest[-1] == ("domain", plan.name, "released")
    assert set(rest[:-1]) == {("device", plan.name, "freed")}


def test_pools_are_told_of_as_they_differ_from_before() -> None:
    events = Events(lambda _: "", {})
    events.pools_seen({"a": ("ready", 1024), "b": ("ready", 1024)})
    assert events.since(0).events == []
    events.pools_seen({"b": ("draining", 1024), "c": ("ready", 2048)})
    news = events.since(0)
    assert told(news.events) == [("pool", "a", "destroyed"), ("pool", "b", "draining"), ("pool", "c", "ready")]
    assert news.events[-1].message == "2 KiB"


def test_what_is_forgotten_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_AT_ONCE", 2)
    events = Events(lambda _: "vm", {})
    began = events.since(-1).next
    for _ in range(3):
        events.phase_changed(UUID, Phase.RUNNING)
    first = events.since(began)
    assert (len(first.events), first.missed) == (2, False)
    assert len(events.since(first.next).events) == 1
    for _ in range(module.MOST):
        events.phase_changed(UUID, Phase.STOPPED)
    assert events.since(began).missed
    assert Events(lambda _: "", {}).since(began).missed, "of a daemon that was restarted"


def test_a_number_of_a_clock_that_was_ahead_hides_no_event() -> None:
    """A daemon that is restarted numbers its events by the clock, which may have been set back since."""
    events = Events(lambda _: "vm", {})
    ahead = events.since(-1).next + 10**9
    news = events.since(ahead)
    assert (news.events, news.missed) == ([], True)
    events.phase_changed(UUID, Phase.RUNNING)
    assert told(events.since(news.next).events) == [("domain", "vm", "running")]
