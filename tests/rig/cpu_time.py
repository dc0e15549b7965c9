# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure work by the CPU time that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["seconds"]


def seconds(work: Callable[[], object]) -> float:
    """Return for how long a CPU was busy with ``work``, however busy the machine is."""
    began = time.process_time()
    work()
    return time.process_time() - began
