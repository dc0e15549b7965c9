# SPDX-License-Identifier: GPL-2.0-or-later
"""Judge a ratio or a single figure against its goal."""

from __future__ import annotations

import statistics

from bench.results import Goal, Results, Series, ratios, spread

__all__ = ["at_least", "at_most", "within"]


def at_most(results: Results, text: str, limit: float, ours: Series | None, theirs: Series | None) -> None:
    """Add the goal that ``ours`` is at most ``limit`` times ``theirs``: the median of the rounds' ratios."""
    _judge(results, f"{text}: at most {limit:g} x", limit, ours, theirs, at_most=True)


def at_least(results: Results, text: str, limit: float, ours: Series | None, theirs: Series | None) -> None:
    """Add the goal that ``ours`` is at least ``limit`` times ``theirs``: the median of the rounds' ratios."""
    _judge(results, f"{text}: at least {limit:g} x", limit, ours, theirs, at_most=False)


def within(results: Results, text: str, limit: float, ours: Series | None) -> None:
    """Add the goal that ``ours``, in its own unit, is at most ``limit``: the median of the rounds."""
    if ours is None:
        results.goals.append(Goal(text, limit, None, None))
        return
    text = f"{text}: at most {limit:g} {ours.unit}"
    results.goals.append(Goal(text, limit, ours.median, ours.median <= limit, ours.spread))


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
