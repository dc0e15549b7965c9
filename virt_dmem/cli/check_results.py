# SPDX-License-Identifier: GPL-2.0-or-later
"""Show what checks found: what has one cause together, with one hint. Pure, but for the screen's width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from virt_dmem.cli.terminal.screen import Screen
from virt_dmem.pools.backends.checks import Result, Status
from virt_dmem.text import counted

__all__ = ["Problem", "lines", "passed", "problems", "rows", "summary"]

_COLORS = {Status.FAIL: "red", Status.WARN: "yellow", Status.PASS: "green"}
_INDENT = " " * 6
"""As wide as a status and the space behind it."""

Found = Sequence[tuple[str, Result]]
"""Results with the names of their checks, in the order in which they ran."""


@dataclass(frozen=True)
class Problem:
    """One cause, and all checks that did not pass because of it."""

    status: Status
    """FAIL if one of them failed."""
    findings: tuple[tuple[str, str], ...]
    """The names of checks with the same message, and that message."""
    hint: str


def problems(found: Found) -> list[Problem]:
    """Return what did not pass; checks with the same hint, or with another check as their cause, are together."""
    wrong = {name: result for name, result in found if result.status is not Status.PASS}
    together: dict[str, list[str]] = {}
    for name, result in wrong.items():
        first = wrong.get(result.cause, result)
        together.setdefault(first.hint or name, []).append(name)
    return [_problem([(name, wrong[name]) for name in names]) for names in together.values()]


def _problem(found: Found) -> Problem:
    by_message: dict[str, list[str]] = {}
    for name, result in found:
        by_message.setdefault(result.message, []).append(name)
    failed = any(result.status is Status.FAIL for _, result in found)
    return Problem(
        Status.FAIL if failed else Status.WARN,
        tuple((", ".join(names), message) for message, names in by_message.items()),
        found[0][1].hint,
    )


def lines(problem: Problem, screen: Screen, indent: str = "") -> Iterator[str]:
    """Yield the lines of a problem: its findings, and the hint below them."""
    below = f"{indent}{_INDENT}"
    status = f"{indent}{screen.paint(problem.status.value, _COLORS[problem.status])}  "
    for at, (names, message) in enumerate(problem.findings):
        text = screen.wrapped(f"{names}: {message}", below)
        yield text if at else f"{status}{text[len(below) :]}"
    if problem.hint:
        yield screen.wrapped(problem.hint, below)


def passed(name: str, result: Result, screen: Screen) -> Iterator[str]:
    """Yield the line of a check that passed."""
    return lines(Problem(result.status, ((name, result.message),), ""), screen)


def summary(found: Found) -> str:
    """Return how many checks passed and did not."""
    count = {status: sum(result.status is status for _, result in found) for status in Status}
    return (
        f"{counted(len(found), 'check')}: {count[Status.PASS]} passed,"
        f" {counted(count[Status.WARN], 'warning')}, {count[Status.FAIL]} failed."
    )


def rows(found: Iterable[tuple[str, Result]]) -> list[dict[str, str]]:
    """Return results in the form of the JSON output."""
    return [
        {"name": name, "status": result.status.value, "message": result.message, "hint": result.hint}
        for name, result in found
    ]
