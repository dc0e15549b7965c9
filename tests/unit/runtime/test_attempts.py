# SPDX-License-Identifier: GPL-2.0-or-later
"""One failed item stops no other, and is logged when it is new and when it is over."""

from __future__ import annotations

import logging

import pytest

from virt_dmem.errors import ExtentError
from virt_dmem.runtime.attempts import Attempts


def run(attempts: Attempts, items: dict[str, Exception | None]) -> list[str]:
    """Try all items in one round; return those whose work was done to its end."""
    done = []
    with attempts.round("work") as now:
        for item, error in items.items():
            with now.trying(item):
                if error is not None:
                    raise error
                done.append(item)
    return done


def test_a_failure_stops_no_other_item_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    attempts, full = Attempts(), ExtentError("disk full", hint="")
    assert run(attempts, {"a": full, "b": None}) == ["b"]
    assert run(attempts, {"a": full, "b": None}) == ["b"]
    assert attempts.failed() == {"a": full.message}
    assert caplog.messages == [f"a: {full}"]
    assert run(attempts, {"a": None}) == ["a"]
    assert attempts.failed() == {}
    assert caplog.messages[1:] == ["a: succeeded, or no longer needed"]


def test_another_reason_is_logged_again_and_a_bug_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    attempts = Attempts()
    run(attempts, {"a": OSError("one reason")})
    run(attempts, {"a": OSError("another")})
    run(attempts, {"a": ZeroDivisionError()})
    assert caplog.messages == ["a: one reason", "a: another", "a: ZeroDivisionError"]
    assert [bool(record.exc_info) for record in caplog.records] == [False, False, True]


def test_each_kind_of_work_keeps_its_own_failures() -> None:
    attempts = Attempts()
    run(attempts, {"a": OSError("no")})
    with attempts.round("other work"):
        pass
    assert attempts.failed() == {"a": "no"}


def test_a_round_that_ends_early_keeps_what_failed_until_then() -> None:
    attempts = Attempts()
    with pytest.raises(KeyboardInterrupt), attempts.round("work") as now:
        with now.trying("a"):
            raise OSError("no")
        raise KeyboardInterrupt
    assert attempts.failed() == {"a": "no"}


def test_a_round_of_some_items_keeps_the_failures_of_the_others_that_are_due() -> None:
    attempts, no = Attempts(), OSError("no")
    run(attempts, {"a": no, "b": no, "c": no})
    with attempts.round("work", due={"a", "b"}) as now, now.trying("a"):
        pass
    assert attempts.failed_in("work") == {"b": "no"}, "a succeeded, and c is not due any more"
