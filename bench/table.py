# SPDX-License-Identifier: GPL-2.0-or-later
"""Format results as Markdown."""

from __future__ import annotations

from bench.results import Goal, Results, Series
from virt_dmem.units import format_size

__all__ = ["table"]

_VERDICTS = {True: "met", False: "**not met**", None: "not judged"}


def table(results: Results) -> str:
    """Return goals, machine, notes, and every series with its median and spread."""
    lines = ["# Benchmark results", ""]
    lines += [f"* {name}: {fact}" for name, fact in results.machine.items()]
    lines += [f"* {note}" for note in results.notes]
    if results.goals:
        lines += ["", "| goal | measured | |", "|---|---|---|", *map(_goal, results.goals)]
    for benchmark, what in dict.fromkeys((one.benchmark, one.what) for one in results.series):
        series = [one for one in results.series if (one.benchmark, one.what) == (benchmark, what)]
        lines += ["", f"## {benchmark}: {what}", "", "| case | memory | threads | median | spread | rounds |"]
        lines += ["|---|---|---|---|---|---|", *map(_row, series)]
    return "\n".join(lines)


def _goal(goal: Goal) -> str:
    measured = "-" if goal.value is None else f"{goal.value:.2f} ± {goal.spread:.2f}"
    return f"| {goal.text} | {measured} | {_VERDICTS[goal.met]} |"


def _row(series: Series) -> str:
    size = format_size(series.size_bytes) if series.size_bytes else ""
    scale, unit = (1000, "ms") if series.unit == "s" and series.median < 1 else (1, series.unit)
    median, distance = series.median * scale, series.spread * scale
    figures = (
        f"{median:.3g} {unit} | {distance:.2g}" if abs(median) < 1000 else f"{median:.0f} {unit} | {distance:.0f}"
    )
    return f"| {series.case} | {size} | {series.threads or ''} | {figures} | {len(series.rounds)} |"
