# SPDX-License-Identifier: GPL-2.0-or-later
"""Read what processes map and keep open.

A process can block reads of its ``maps`` and ``numa_maps`` indefinitely. Functions that look at all processes leave
such a process out; those that look at one are for worker threads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.host.kernel import ROOT
from virt_dmem.runtime.stuck_threads import each

__all__ = [
    "Mapping",
    "processes",
    "process_name",
    "start_ticks",
    "started_at",
    "CLOCK_TICKS",
    "mappings",
    "processes_holding",
    "processes_mapping",
    "processes_using",
    "bytes_by_node",
    "GONE",
]

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
"""Errors of reading below ``/proc/PID`` when the process is gone, or is a kernel thread."""


@dataclass(frozen=True)
class Mapping:
    """One line of ``/proc/PID/maps``: addresses and offset in bytes, the file by device and inode."""

    start: int
    end: int
    perms: str
    offset: int
    device: int
    inode: int


def processes(*, root: Path = ROOT) -> tuple[int, ...]:
    """Return the PIDs of all processes, lowest first."""
    return tuple(sorted(int(path.name) for path in (root / "proc").iterdir() if path.name.isdecimal()))


def process_name(pid: int, *, root: Path = ROOT) -> str:
    """Return the command name of a process, ``""`` when it has ended."""
    try:
        return (root / f"proc/{pid}/comm").read_text("utf-8", "replace").rstrip("\n")
    except GONE:
        return ""


def start_ticks(pid: int, *, root: Path = ROOT) -> int | None:
    """Return when a process started, in clock ticks since the boot; ``None`` when it has ended.

    Together with the PID it identifies the process: PIDs are reused.
    """
    try:
        stat = (root / f"proc/{pid}/stat").read_text("utf-8", "replace")
    except GONE:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # the name in parentheses may hold spaces; proc_pid_stat(5)


def started_at(ticks: int, *, root: Path = ROOT) -> float:
    """Return clock ticks since the boot in seconds since the epoch, which may be off by two seconds.

    ``btime`` of /proc/stat has whole seconds, and may step by one.
    """
    boot = re.search(r"^btime (\d+)$", (root / "proc/stat").read_text(), re.MULTILINE)
    return (int(boot[1]) if boot else 0) + ticks / CLOCK_TICKS


def mappings(pid: int, *, of: Collection[tuple[int, int]] | None = None, root: Path = ROOT) -> Iterator[Mapping]:
    """Yield the mappings of a process; none when it has ended or is a kernel thread.

    :param of: Files (device, inode): only their lines are parsed of the hundreds that a QEMU has.
    """
    try:
        content = (root / f"proc/{pid}/maps").read_bytes()
    except GONE:
        return
    if of is None:
        yield from _parse(filter(None, content.split(b"\n")))
        return
    # as show_vma_header_prefix() in fs/proc/task_mmu.c writes them; the name of a file may contain the same
    marks = [f" {os.major(device):02x}:{os.minor(device):02x} {inode}".encode() for device, inode in of]
    if not any(mark in content for mark in marks):  # as in almost all of many processes
        return
    lines = content.split(b"\n")
    for area in _parse(line for line in lines if any(mark in line for mark in marks)):
        if (area.device, area.inode) in of:
            yield area


def _parse(lines: Iterable[bytes]) -> Iterator[Mapping]:
    for line in lines:
        addresses, perms, offset, device, inode = line.split(None, 5)[:5]
        start, end = addresses.split(b"-")
        major, minor = device.split(b":")
        number = os.makedev(int(major, 16), int(minor, 16))
        yield Mapping(int(start, 16), int(end, 16), perms.decode(), int(offset, 16), number, int(inode))


def processes_mapping(device: int, inode: int, *, root: Path = ROOT) -> tuple[int, ...]:
    """Return the PIDs of the processes that map a file, in whatever mount namespace and under whatever path."""

    def maps(pid: int) -> bool:
        return any(mappings(pid, of={(device, inode)}, root=root))

    return tuple(pid for pid, found in each(maps, processes(root=root)) if found)


def processes_holding(device: int, inode: int, *, root: Path = ROOT) -> tuple[int, ...]:
    """Return the PIDs of the processes that map a file or have it open."""

    def holds(pid: int) -> bool:
        return any(mappings(pid, of={(device, inode)}, root=root)) or any(
            found.st_dev == device and found.st_ino == inode for found in _open_files(pid, root)
        )

    return tuple(pid for pid, found in each(holds, processes(root=root)) if found)


def processes_using(device: int, *, root: Path = ROOT) -> tuple[int, ...]:
    """Return the PIDs of the processes that keep a file system busy: by a mapping, an open file or their cwd."""

    def uses(pid: int) -> bool:
        return _opens_on(pid, device, root) or any(area.device == device for area in mappings(pid, root=root))

    return tuple(pid for pid, found in each(uses, processes(root=root)) if found)


def _opens_on(pid: int, device: int, root: Path) -> bool:
    return any(found.st_dev == device for found in _open_files(pid, root))


def _open_files(pid: int, root: Path) -> Iterator[os.stat_result]:
    """Yield the status of what a process has open, its cwd and root included."""
    base = f"{root}/proc/{pid}"
    try:
        opened = os.listdir(f"{base}/fd")  # noqa: PTH208 -- there may be a million of them
        names = [f"{base}/cwd", f"{base}/root", *(f"{base}/fd/{name}" for name in opened)]
    except GONE:
        return
    for name in names:
        with suppress(OSError):  # closed meanwhile, or a file that cannot be read (a kernel thread's cwd)
            yield os.stat(name)  # noqa: PTH116 -- likewise


def bytes_by_node(pid: int, device: int, inode: int, *, root: Path = ROOT) -> dict[int, int]:
    """Return the present bytes of a file that a process maps, by node, from ``/proc/PID/numa_maps``."""
    starts = {area.start for area in mappings(pid, of={(device, inode)}, root=root)}
    found: dict[int, int] = {}
    try:
        lines = (root / f"proc/{pid}/numa_maps").read_text("utf-8", "replace").splitlines()
    except GONE:
        return found
    for line in lines:
        page_size = re.search(r" kernelpagesize_kB=(\d+)", line)
        if page_size is None or int(line.split(" ", 1)[0], 16) not in starts:
            continue
        for node, pages in re.findall(r" N(\d+)=(\d+)", line):
            found[int(node)] = found.get(int(node), 0) + int(pages) * int(page_size[1]) * 1024
    return found
