# SPDX-License-Identifier: GPL-2.0-or-later
"""Start QEMU without libvirt and without a machine, and measure the time to its greeting on the monitor."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.processes import RigError

__all__ = ["page_table_bytes", "seconds_to_greeting"]


@contextmanager
def _greeted(memory_backend: str) -> Iterator[tuple[int, float]]:
    """Start QEMU and wait for its greeting; yield its process id and the seconds that this took."""
    command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, "-object", memory_backend], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            if not process.stdout.readline():
                raise RigError(f"QEMU with {memory_backend}: {process.stderr.read().decode().strip()}")
            yield process.pid, time.perf_counter() - began
        finally:
            process.kill()


def seconds_to_greeting(memory_backend: str) -> float:
    """Start QEMU with a memory backend (the value of ``-object``); return the seconds until its greeting.

    The backend is complete by then, with all its memory preallocated if requested.

    :raise RigError: When QEMU ends before.
    """
    with _greeted(memory_backend) as (_, seconds):
        return seconds


def page_table_bytes(memory_backend: str) -> int:
    """Return the size of the page tables of a QEMU with a memory backend: VmPTE in proc(5)'s status.

    :raise RigError: When QEMU ends before.
    """
    with _greeted(memory_backend) as (pid, _):
        found = re.search(r"^VmPTE:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
