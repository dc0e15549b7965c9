# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages that users can trigger are logged at a limited rate."""

from __future__ import annotations

import logging

import pytest

from virt_dmem.runtime.rate_limit import BURST, PERIOD_SECONDS, RateLimitedLog


def test_messages_that_others_cause_are_logged_seldom_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    say = RateLimitedLog(logging.getLogger("test"), clock=lambda: now)
    for _ in range(1000):
        say(logging.WARNING, "guest", "it said %s", "something")
    say(logging.WARNING, "another", "it said nothing")
    assert len(caplog.records) == BURST + 1
    now = PERIOD_SECONDS
    say(logging.WARNING, "guest", "it said %s", "something")
    assert [record.getMessage() for record in caplog.records[-2:]] == [
        "995 similar messages were suppressed before the following one",
        "it said something",
    ]
