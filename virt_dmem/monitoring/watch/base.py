# SPDX-License-Identifier: GPL-2.0-or-later
"""Define what is looked at, the host, and what is found: a deviation from what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.host import kernel
from virt_dmem.pools.record import PoolRecord

__all__ = ["Deviation", "Sight", "Watch"]


@dataclass(frozen=True)
class Sight:
    """What a watch compares: the host, and the records of complete segments."""

    config: Config
    records: Sequence[PoolRecord]
    root: Path = kernel.ROOT


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


@dataclass(frozen=True)
class Watch:
    """One kind of thing that others can change."""

    subject: str
    """In the plural, for messages."""
    deviations: Callable[[Sight], Iterable[Deviation]]
    """Reads a few small files at most: it is called every second."""
