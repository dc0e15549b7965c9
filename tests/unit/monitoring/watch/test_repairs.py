# SPDX-License-Identifier: GPL-2.0-or-later
"""Repairs of one thing are limited."""

from __future__ import annotations

import pytest

from virt_dmem.monitoring.watch.repairs import MOST, PERIOD_SECONDS, RepairLimit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def repaired_until_given_up(limit: RepairLimit, clock: Clock) -> list[float]:
    """Return when a thing that is always wrong is repaired, after the first time."""
    began, at = clock.now, []
    for _ in range(1000):
        if limit.may_repair():
            at.append(clock.now - began)
            limit.note_repair()
        clock.now += 0.5
    return at


def test_a_thing_that_is_changed_again_and_again_is_repaired_ever_later_and_then_left_alone(clock: Clock) -> None:
    limit = RepairLimit(clock)
    assert repaired_until_given_up(limit, clock) == [0, 1, 3, 7, 15]
    assert limit.given_up
    clock.now += 10 * PERIOD_SECONDS
    assert not limit.may_repair()


def test_it_is_repaired_again_once_the_operator_has_put_it_right(clock: Clock) -> None:
    limit = RepairLimit(clock)
    repaired_until_given_up(limit, clock)
    limit.note_right()
    assert not limit.given_up
    assert limit.may_repair()


def test_a_thing_that_is_right_after_a_repair_is_still_counted(clock: Clock) -> None:
    limit = RepairLimit(clock)
    for _ in range(MOST):
        clock.now += 60
        assert limit.may_repair()
        limit.note_repair()
        limit.note_right()
    clock.now += 60
    assert not limit.may_repair()


def test_what_was_long_ago_does_not_count(clock: Clock) -> None:
    limit = RepairLimit(clock)
    for _ in range(3 * MOST):
        clock.now += PERIOD_SECONDS / (MOST - 1)
        assert limit.may_repair()
        limit.note_repair()
    assert limit.recent == MOST - 1
