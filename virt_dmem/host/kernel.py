# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the state of the running kernel: its memory, its release, this boot.

Every function takes ``root``, the directory that stands for ``/``, so that a tree copied from another machine can
be read as well. Sizes are bytes.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ROOT",
    "Memory",
    "memory",
    "pressure",
    "cma_bytes",
    "struct_page_bytes",
    "bad_pages_met",
    "nested_guests_need_struct_pages",
    "release",
    "version",
    "architecture",
    "uptime",
    "boot_id",
    "parse_meminfo",
]

ROOT = Path("/")
_TAINT_BAD_PAGE = 1 << 5  # Documentation/admin-guide/tainted-kernels.rst


@dataclass(frozen=True)
class Memory:
    """Memory of the host or of one node; ``available_bytes`` can be allocated without swapping."""

    total_bytes: int
    free_bytes: int
    available_bytes: int


def memory(*, root: Path = ROOT) -> Memory:
    """Return the memory of the host, from ``/proc/meminfo``."""
    found = parse_meminfo(root / "proc/meminfo")
    return Memory(found["MemTotal"], found["MemFree"], found["MemAvailable"])


def pressure(of: str, *, root: Path = ROOT) -> float:
    """Return the percentage of the last 10 s in which some task waited for ``cpu``, ``memory`` or ``io``.

    0 where the kernel does not report it (``/proc/pressure``, Documentation/accounting/psi.rst).
    """
    try:
        some = (root / "proc/pressure" / of).read_text("ascii")
    except OSError:
        return 0.0
    found = re.match(r"some avg10=([\d.]+) ", some)
    return float(found[1]) if found else 0.0


def parse_meminfo(path: Path) -> dict[str, int]:
    """Return the sizes in a ``meminfo`` of the host or of a node, in bytes by key."""
    # "MemFree:  1234 kB", and on a node "Node 0 MemFree:  1234 kB"; lines without kB count pages
    lines = re.findall(r"(\S+):\s+(\d+) kB", path.read_text())
    return {key: int(value) * 1024 for key, value in lines}


def cma_bytes(*, root: Path = ROOT) -> int | None:
    """Return the size of the kernel's contiguous memory area; ``None`` without CONFIG_CMA."""
    return parse_meminfo(root / "proc/meminfo").get("CmaTotal")


def struct_page_bytes(*, root: Path = ROOT) -> int | None:
    """Return the bytes of all ``struct page``; ``None`` on kernels that do not count them (before 6.11).

    ``nr_memmap_pages`` and ``nr_memmap_boot_pages`` of ``/proc/vmstat``, which count base pages.
    """
    found = dict(re.findall(r"^(nr_memmap\w*_pages) (\d+)$", (root / "proc/vmstat").read_text(), re.MULTILINE))
    if "nr_memmap_pages" not in found:
        return None
    return sum(map(int, found.values())) * os.sysconf("SC_PAGESIZE")


def bad_pages_met(*, root: Path = ROOT) -> bool:
    """Return whether the kernel has found a page in a bad state, which it then does not use, since it booted."""
    try:
        return bool(int((root / "proc/sys/kernel/tainted").read_text()) & _TAINT_BAD_PAGE)
    except FileNotFoundError:
        return False


def nested_guests_need_struct_pages(*, root: Path = ROOT) -> bool:
    """Return whether a guest on memory without struct pages fails when it runs guests of its own.

    KVM pins the pages that describe these (``__kvm_vcpu_map``, since Linux 6.13) unless its parameter
    ``allow_unsafe_mappings`` allows others; kernels without the parameter map them without pinning.
    """
    allowed = root / "sys/module/kvm/parameters/allow_unsafe_mappings"
    nested = [root / f"sys/module/{module}/parameters/nested" for module in ("kvm_intel", "kvm_amd")]
    try:
        offered = any(path.read_text().strip() in ("Y", "1") for path in nested if path.exists())
        return offered and allowed.read_text().strip() in ("N", "0")
    except OSError:
        return False


def release(*, root: Path = ROOT) -> str:
    """Return the running kernel's release, as ``uname -r`` prints it."""
    return (root / "proc/sys/kernel/osrelease").read_text().strip()


def version(*, root: Path = ROOT) -> tuple[int, int]:
    """Return the first two numbers of the running kernel's release; ``(0, 0)`` where it begins with none."""
    found = re.match(r"(\d+)\.(\d+)", release(root=root))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def architecture(*, root: Path = ROOT) -> str:
    """Return the running kernel's architecture as ``uname -m`` prints it: ``x86_64``, ``aarch64``.

    From ``kernel.arch``, which ``setarch`` does not change; kernels before 6.1 do not have it.
    """
    try:
        return (root / "proc/sys/kernel/arch").read_text().strip()
    except FileNotFoundError:
        return os.uname().machine


def uptime() -> float:
    """Return the seconds since this boot, including suspend: a clock that cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id(*, root: Path = ROOT) -> str:
    """Return the identity of this boot; memory taken from the host under another one is gone."""
    return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
