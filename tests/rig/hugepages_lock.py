# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's huge pages are one for all: tests that count them take turns."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LOCK", "hugepages_lock"]

LOCK = Path("/dev/shm/virt-dmem-test-hugepages.lock")
"""Not below /run, of which each mount namespace of tests has its own."""


@contextmanager
def hugepages_lock() -> Iterator[None]:
    """Hold the lock; as a fixture: ``with hugepages_lock(): yield``. Ends with the process, however it ends."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
