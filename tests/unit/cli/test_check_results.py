# SPDX-License-Identifier: GPL-2.0-or-later
"""What did not pass for one cause is one problem, with one hint."""

from __future__ import annotations

from virt_dmem.cli.check_results import lines, problems, summary
from virt_dmem.cli.terminal.screen import Screen
from virt_dmem.pools.backends.checks import Result, failed, passed, warned


def shown(*found: tuple[str, Result]) -> list[str]:
    return [line for problem in problems(found) for line in lines(problem, Screen("never"))]


def test_checks_that_say_the_same_share_a_line() -> None:
    denied = warned("Permission denied: /x.", "Run the check as root.")
    other = warned("Permission denied: /y.", "Run the check as root.")
    assert shown(("a", denied), ("b", passed("Well.")), ("c", denied), ("d", other)) == [
        "WARN  a, c: Permission denied: /x.",
        "      d: Permission denied: /y.",
        "      Run the check as root.",
    ]


def test_what_another_check_caused_is_below_that_one_with_its_hint() -> None:
    first = ("hook", failed("It is missing.", "Install it."))
    assert shown(first, ("dir", warned("It is on ext4.", "Fix the 'hook' check first.", cause="hook"))) == [
        "FAIL  hook: It is missing.",
        "      dir: It is on ext4.",
        "      Install it.",
    ]


def test_without_its_cause_among_the_results_a_check_keeps_its_own_hint() -> None:
    assert shown(("dir", warned("It is on ext4.", "Fix the 'hook' check first.", cause="hook"))) == [
        "WARN  dir: It is on ext4.",
        "      Fix the 'hook' check first.",
    ]


def test_the_summary_counts() -> None:
    found = [("a", passed("Well.")), ("b", warned("Hm.", "Look.")), ("c", failed("No.", "Fix it."))]
    assert summary(found) == "3 checks: 1 passed, 1 warning, 1 failed."
    assert summary([]) == "0 checks: 0 passed, 0 warnings, 0 failed."
