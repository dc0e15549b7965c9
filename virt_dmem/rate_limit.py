# SPDX-License-Identifier: GPL-2.0-or-later
"""Log lines that others cause: some of each cause, and then how many were left out. Nobody fills the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["RateLimitedLog"]

BURST = 5
"""So many lines of one cause in a period."""
PERIOD_SECONDS = 60.0
CAUSES = 10_000
"""So many causes at most are told apart; then all is forgotten, and begins anew."""


class RateLimitedLog:
    """Writes to a log what is caused by others (a user, a domain), each of them seldom."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._said: dict[object, tuple[float, int]] = {}
        """When the period of a cause began, and how many lines it had."""

    def __call__(self, level: int, cause: object, message: str, *values: object) -> None:
        """Write a line that is due to ``cause``, unless there were too many; the next period says how many."""
        now = self._clock()
        began, lines = self._said.get(cause, (now, 0))
        if now - began >= PERIOD_SECONDS:
            if lines > BURST:
                self._log.log(level, "%d more of the following were left out", lines - BURST)
            began, lines = now, 0
        if len(self._said) >= CAUSES and cause not in self._said:
            self._said.clear()
        self._said[cause] = began, lines + 1
        if lines < BURST:
            self._log.log(level, message, *values)
