# SPDX-License-Identifier: GPL-2.0-or-later
"""Serialize tests that count the host's huge pages, which all of them share."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LOCK", "NR_HUGEPAGES", "hugepages_lent", "hugepages_lock"]

LOCK = Path("/dev/shm/virt-dmem-test-hugepages.lock")
"""Not below /run, which is private in each mount namespace of the tests."""
NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")


@contextmanager
def hugepages_lock() -> Iterator[None]:
    """Hold the lock; as a fixture: ``with hugepages_lock(): yield``. Ends with the process, however it ends."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def hugepages_lent() -> Iterator[None]:
    """Hold the lock while others may take huge pages and leave them behind; the host has as many as before then."""
    with hugepages_lock():
        before = NR_HUGEPAGES.read_text()
        try:
            yield
        finally:
            NR_HUGEPAGES.write_text(before)
