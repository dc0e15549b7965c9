# SPDX-License-Identifier: GPL-2.0-or-later
"""Define what a check of ``virt-dmem check`` returns, and how a backend declares the checks of its own."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BackendCheck", "Result", "Status", "failed", "passed", "warned"]


class Status(enum.Enum):
    """Outcome of one check."""

    PASS = "PASS"  # noqa: S105 -- no password
    WARN = "WARN"
    """It works with restrictions, or cannot be verified."""
    FAIL = "FAIL"
    """Domains with pool memory will not start, or not with the memory they ask for."""


@dataclass(frozen=True)
class Result:
    """Outcome of one check, with the finding and how to fix it."""

    status: Status
    message: str
    hint: str = ""
    cause: str = ""
    """Name of the check whose finding is the reason; empty: none is."""


@dataclass(frozen=True)
class BackendCheck:
    """A check that belongs to one backend."""

    name: str
    """Stable: scripts go by it."""
    run: Callable[[Sequence[Any], Path], Result]
    """Called with the records of this backend's segments, and the root of the host's file system."""


def passed(message: str) -> Result:
    """Return the result of a check that found nothing wrong."""
    return Result(Status.PASS, message)


def warned(message: str, hint: str, *, cause: str = "") -> Result:
    """Return the result of a check that found a restriction, or could not verify; ``cause``: see ``Result``."""
    return Result(Status.WARN, message, hint, cause)


def failed(message: str, hint: str) -> Result:
    """Return the result of a check that found a fault."""
    return Result(Status.FAIL, message, hint)
