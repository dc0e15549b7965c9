# SPDX-License-Identifier: GPL-2.0-or-later
"""Define what is looked at, the host, and what is found: a deviation from what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.host import kernel
from virt_dmem.pools.record import PoolRecord

__all__ = ["Deviation", "Look", "Sight", "Watch"]


@dataclass(frozen=True)
class Sight:
    """What a watch compares: the host, and what is recorded of it."""

    config: Config
    records: Sequence[PoolRecord]
    """Of complete segments."""
    root: Path = kernel.ROOT
    in_use: bool = False
    """Domains hold memory."""
    hotplugs: int = 0
    """Grows each time when processors or memory of the host came or went."""


@dataclass(frozen=True)
class Deviation:
    """Something on the host that is not as recorded, with how to fix it."""

    code: str
    """Of the alert."""
    subject: str
    """Identifies it, together with ``code``."""
    message: str
    hint: str
    repair: Callable[[], object] | None = None
    """Puts it right, in a worker thread, unless it is right by then. ``None``: only the operator can."""


Look = Callable[[Sight], Iterable[Deviation]]
"""Compares one kind of thing, every second: reads a few small files at most, and no process can delay it."""


@dataclass(frozen=True)
class Watch:
    """One kind of thing that others can change."""

    subject: str
    """For messages."""
    new: Callable[[], Look]
    """Returns a ``Look`` that has seen nothing yet."""
    recorded: bool = True
    """There is a record to compare with; else only with what was seen before."""

    @classmethod
    def of(cls, subject: str, look: Look) -> Watch:
        """Return a watch that needs nothing but the records."""
        return cls(subject, lambda: look)
