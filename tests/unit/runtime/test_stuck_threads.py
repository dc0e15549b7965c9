# SPDX-License-Identifier: GPL-2.0-or-later
"""Limit the threads that wait for what others delay: by subject, by owner and in all."""

from __future__ import annotations

import threading

import pytest

from virt_dmem.runtime.stuck_threads import StuckThreads, each


def test_a_subject_is_forbidden_for_as_long_as_its_thread_waits() -> None:
    waiting = threading.Event()
    stuck = StuckThreads(most=10, most_of_one=10)
    stuck.add("a file", lambda: not waiting.is_set())
    assert stuck.forbids("a file")
    assert not stuck.forbids("another file")
    waiting.set()
    assert not stuck.forbids("a file")


def test_one_owner_cannot_use_up_the_limit_of_all() -> None:
    stuck = StuckThreads(most=3, most_of_one=2)
    for subject in ("one", "two"):
        stuck.add(subject, lambda: True, of="guest")
    assert stuck.forbids("three", of="guest")
    assert not stuck.forbids("three", of="another guest")
    assert not stuck.forbids("three")
    stuck.add("three", lambda: True)
    assert stuck.forbids("four", of="another guest"), "the limit in all"


def test_each_leaves_out_what_takes_too_long_and_passes_errors_on() -> None:
    released = threading.Event()

    def double(item: int) -> int:
        if item == 2:
            released.wait(60)
        return 2 * item

    try:
        assert dict(each(double, [1, 2, 3], seconds=0.2)) == {1: 2, 3: 6}
    finally:
        released.set()
    with pytest.raises(ZeroDivisionError):
        list(each(lambda item: 1 // item, [0]))
