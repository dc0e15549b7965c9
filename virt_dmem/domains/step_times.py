# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the steps of hook operations, for ``virt-dmem show`` and the metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import TimedStep
from virt_dmem.errors import LedgerError

__all__ = ["StepTimes"]

log = logging.getLogger(__name__)

_LONGEST_HOOK_SECONDS = 3600.0
"""A start time of the hook longer ago than this is not believed."""


class StepTimes:
    """Record the duration of each step in the ledger: those of one operation in one transaction, at its end."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending: dict[str, list[TimedStep]] = {}
        """Steps of the operation in progress, by the domain's UUID."""

    @contextmanager
    def operation(self, uuid: str, name: str, began: float | None = None) -> Iterator[None]:
        """Measure a hook operation in this context, and write its steps at the end unless it fails.

        ``began``: when the hook process started, in seconds since the epoch.
        """
        self._pending[uuid] = []
        try:
            now = time.time()
            if began and 0 <= now - began < _LONGEST_HOOK_SECONDS:  # else the clock was set in between
                self._pending[uuid].append(TimedStep(f"{name}: hook", now, now - began))
            with self.step(uuid, name):
                yield
        finally:
            steps = self._pending.pop(uuid)
        self._write(uuid, steps)

    @contextmanager
    def step(self, uuid: str, name: str) -> Iterator[None]:
        """Measure one step in this context; outside an operation it is written at once."""
        began = time.monotonic()
        yield
        took = TimedStep(name, time.time(), time.monotonic() - began)
        if uuid in self._pending:
            self._pending[uuid].append(took)
        else:
            self._write(uuid, [took])

    def _write(self, uuid: str, steps: Sequence[TimedStep]) -> None:
        """Write steps to the ledger; what was done is not undone because this fails."""
        try:
            self._ledger.add_steps(uuid, steps)
        except LedgerError as error:
            log.warning("domain %s: its times are not recorded: %s", uuid, error)
