# SPDX-License-Identifier: GPL-2.0-or-later
"""Allocate huge pages of the host for a measurement."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.processes import RigError
from virt_dmem.units import format_size

__all__ = ["NotEnough", "borrowed", "compact", "mounted", "obtainable"]


class NotEnough(RigError):
    """The host does not have the memory that a measurement needs."""


def compact() -> None:
    """Drop the kernel's caches and compact memory, so that huge pages can be allocated."""
    for name in ("drop_caches", "compact_memory"):
        Path("/proc/sys/vm", name).write_text("1\n")


def _knob(page_size: int) -> Path:
    knob = Path(f"/sys/kernel/mm/hugepages/hugepages-{page_size // 1024}kB/nr_hugepages")
    if not knob.exists():
        raise NotEnough(f"This kernel has no pages of {format_size(page_size)}.")
    return knob


def obtainable(size_bytes: int, page_size: int) -> int:
    """Return how many of ``size_bytes`` the host could allocate now; at least a page, which may be too much."""
    knob = _knob(page_size)
    before = int(knob.read_text())
    knob.write_text(str(before + size_bytes // page_size))
    got = int(knob.read_text()) - before
    knob.write_text(str(before))
    return max(got, 1) * page_size


@contextmanager
def borrowed(size_bytes: int, page_size: int = 2 << 20) -> Iterator[None]:
    """Allocate more huge pages for as long as the context lasts.

    :raise NotEnough: When the host does not have that much.
    """
    knob = _knob(page_size)
    before, count = int(knob.read_text()), size_bytes // page_size
    knob.write_text(str(before + count))
    got = int(knob.read_text()) - before
    try:
        if got < count:
            raise NotEnough(f"The host gave {got} of {count} pages of {format_size(page_size)}.")
        yield
    finally:
        knob.write_text(str(int(knob.read_text()) - got))


@contextmanager
def mounted(fstype: str, options: str) -> Iterator[Path]:
    """Mount a file system in memory; needs ``enter_private_namespace()`` before."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="virt-dmem-bench-") as name:
        subprocess.run(["mount", "-t", fstype, "-o", options, "none", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)
