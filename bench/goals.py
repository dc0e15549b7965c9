# SPDX-License-Identifier: GPL-2.0-or-later
"""Judge a ratio against what was to be reached."""

from __future__ import annotations

import statistics

from bench.results import Goal, Results, Series, ratios, spread

__all__ = ["at_least", "at_most"]


def at_most(results: Results, text: str, limit: float, ours: Series | None, theirs: Series | None) -> None:
    """Add the goal that ours is at most ``limit`` times theirs: the median of the rounds' ratios."""
    _judge(results, f"{text}: at most {limit:g} x", limit, ours, theirs, at_most=True)


def at_least(results: Results, text: str, limit: float, ours: Series | None, theirs: Series | None) -> None:
    """Add the goal that ours is at least ``limit`` times theirs: the median of the rounds' ratios."""
    _judge(results, f"{text}: at least {limit:g} x", limit, ours, theirs, at_most=False)


def _judge(
    results: Results, text: str, limit: float, ours: Series | None, theirs: Series | None, *, at_most: bool
) -> None:
    found = ratios(ours, theirs) if ours and theirs else []
    if not found:
        results.goals.append(Goal(text, limit, None, None))
        return
    value = statistics.median(found)
    met = value <= limit if at_most else value >= limit
    results.goals.append(Goal(text, limit, value, met, spread(found)))
