# SPDX-License-Identifier: GPL-2.0-or-later
"""Limit the rate of log messages that users or guests can trigger, so that none of them fills the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["RateLimitedLog"]

BURST = 5
"""Messages of one cause in a period."""
PERIOD_SECONDS = 60.0
CAUSES = 10_000
"""Causes that are told apart at most; beyond that, all counts are reset."""


class RateLimitedLog:
    """Log messages with a rate limit for each cause (a user, a domain)."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._said: dict[object, tuple[float, int]] = {}
        """By cause: when its period began, and how many messages it had."""

    def __call__(self, level: int, cause: object, message: str, *values: object) -> None:
        """Log a message due to ``cause``, unless there were too many; count those in the next period."""
        now = self._clock()
        began, lines = self._said.get(cause, (now, 0))
        if now - began >= PERIOD_SECONDS:
            if lines > BURST:
                self._log.log(level, "%d similar messages were suppressed before the following one", lines - BURST)
            began, lines = now, 0
        if len(self._said) >= CAUSES and cause not in self._said:
            self._said.clear()
        self._said[cause] = began, lines + 1
        if lines < BURST:
            self._log.log(level, message, *values)
