# SPDX-License-Identifier: GPL-2.0-or-later
"""Limit repairs: no fight with somebody who changes the same thing again and again."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["MOST", "PERIOD_SECONDS", "RepairLimit"]

MOST = 5
"""Repairs of one thing within the period; afterwards it is left to the operator."""
PERIOD_SECONDS = 600.0


class RepairLimit:
    """Decide when one thing may be repaired: at once, later after 1, 2, 4 and 8 s, and at last not any more."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._repaired: list[float] = []
        self._given_up = False

    @property
    def recent(self) -> int:
        """Number of repairs in the period that ends now."""
        self._forget()
        return len(self._repaired)

    @property
    def given_up(self) -> bool:
        """It was changed too often, and has not been right since."""
        return self._given_up

    def may_repair(self) -> bool:
        """Return whether to repair it now."""
        self._forget()
        if self._given_up or len(self._repaired) >= MOST:
            self._given_up = True
            return False
        if not self._repaired:
            return True
        return bool(self._clock() >= self._repaired[-1] + 2 ** (len(self._repaired) - 1))

    def note_repair(self) -> None:
        """Note that it is repaired now, with or without success."""
        self._repaired.append(self._clock())

    def note_right(self) -> None:
        """Note that it is right: if the operator did that, it will be repaired again."""
        if self._given_up:
            self._given_up = False
            self._repaired.clear()

    def _forget(self) -> None:
        since = self._clock() - PERIOD_SECONDS
        self._repaired = [at for at in self._repaired if at > since]
