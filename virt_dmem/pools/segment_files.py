# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the files of a segment: the memory of each, and used memory that belongs to none of them.

A page that was freed while it is pinned (io_uring's fixed buffers, vmsplice, direct I/O or RDMA in flight) is in no
file any more, and not available: hugetlbfs counts it as used until it is unpinned (``free_huge_folio()`` in
``mm/hugetlb.c`` returns it to the mount). Neither a lease nor a process's maps show it. The same holds for an
unlinked file that a process has open, and for a file that another program created in the pool.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from virt_dmem.pools import ballast, prezeroed_files

__all__ = ["SegmentUse", "FileUse", "scan", "use_of", "empty", "truncate"]

_OURS = ("libvirt-", ballast.DIRECTORY, prezeroed_files.DIRECTORY)
_BLOCK = 512  # the unit of st_blocks, whatever the file system


class FileUse(NamedTuple):
    """Hold size and memory of a file, in bytes; it may have memory beyond its end (``FALLOC_FL_KEEP_SIZE``)."""

    size_bytes: int
    held_bytes: int


@dataclass(frozen=True)
class SegmentUse:
    """Hold the use of a segment by files of domains and of ours, and as its file system counts it."""

    files: dict[str, FileUse]
    """By path."""
    used_bytes: int

    @property
    def missing_bytes(self) -> int:
        """Return the bytes used in none of the files; too many while these grow or shrink."""
        return max(0, self.used_bytes - sum(file.held_bytes for file in self.files.values()))


def scan(mount: str) -> SegmentUse:
    """Return the use of files below a mount; files not ours or not accessible are left out, and so missing.

    :raise OSError: When there is no such mount.
    """
    before = _used(mount)
    files: dict[str, FileUse] = {}
    with os.scandir(mount) as entries:
        for directory in entries:
            if directory.name.startswith(_OURS) and directory.is_dir(follow_symlinks=False):
                files.update(_files_of(directory.path))
    return SegmentUse(files, max(before, _used(mount)))


def _used(path: str | int) -> int:
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _files_of(directory: str) -> dict[str, FileUse]:
    files = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:  # gone by now
                    continue
                files[entry.path] = FileUse(found.st_size, found.st_blocks * _BLOCK)
    except OSError:
        pass
    return files


def use_of(path: Path) -> FileUse:
    """Return size and memory of one file.

    :raise OSError: When there is no such file.
    """
    found = path.lstat()
    return FileUse(found.st_size, found.st_blocks * _BLOCK)


def empty(path: Path) -> int:
    """Free all memory of a file that no process has open; return the bytes that are known to be free again.

    That is by how much the free space of the file system grew: less than was freed while others allocate from the
    same segment. For worker threads: many pages take long.

    :raise OSError: When it cannot be opened, or a process has it open after all.
    """
    fd = _opened(path)
    try:
        held = os.fstat(fd).st_blocks * _BLOCK
        before = _used(fd)
        os.ftruncate(fd, 0)
        return min(held, max(0, before - _used(fd)))
    finally:
        os.close(fd)


def truncate(path: Path, size_bytes: int) -> None:
    """Truncate a file that a process may have enlarged, also of memory beyond its end.

    :raise OSError: When it cannot be opened.
    """
    fd = _opened(path)
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


def _opened(path: Path) -> int:
    """Open a file without waiting for a lease on it."""
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
