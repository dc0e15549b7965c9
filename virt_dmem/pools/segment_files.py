# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a segment as the kernel has them: what each holds, and what none holds and is not free either.

A page that was given back while somebody pins it (io_uring's fixed buffers, vmsplice, direct I/O or RDMA under way)
is in no file any more, and cannot be had: hugetlbfs counts it as used until the pin is gone (``free_huge_folio()``
in ``mm/hugetlb.c`` is what gives it back to the mount). No lease and no process's maps tell of it. A file that was
unlinked while somebody has it open is no different, nor is one that somebody else made in the pool.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from virt_dmem.pools import ballast, prezeroed_files

__all__ = ["FileUse", "SegmentUse", "cut_surplus", "empty", "look", "use_of"]

_OURS = ("libvirt-", ballast.DIRECTORY, prezeroed_files.DIRECTORY)
_BLOCK = 512  # the unit of st_blocks, whatever the file system


class FileUse(NamedTuple):
    """Size and memory of a file, in bytes; a file may have memory beyond its end (``FALLOC_FL_KEEP_SIZE``)."""

    size_bytes: int
    held_bytes: int


@dataclass(frozen=True)
class SegmentUse:
    """What the files of domains and our own hold in a segment, and what the file system says of it."""

    files: dict[str, FileUse]
    """By path."""
    used_bytes: int

    @property
    def missing_bytes(self) -> int:
        """What is used and in none of them; too much while they grow or shrink, for then nothing stands still."""
        return max(0, self.used_bytes - sum(file.held_bytes for file in self.files.values()))


def look(mount: str) -> SegmentUse:
    """Return what files below a mount hold; what is not ours or cannot be looked at is left out, and so is missing.

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

    :raise OSError: When it is not there.
    """
    found = path.lstat()
    return FileUse(found.st_size, found.st_blocks * _BLOCK)


def empty(path: Path) -> int:
    """Give all memory of a file that nobody has open back to the kernel; return how much of it surely came back.

    Surely: the file system has so much more free than before. While others take memory of the same segment that is
    less than what came back. To be called from a worker thread: many pages take long.

    :raise OSError: When it cannot be opened, or somebody has it after all.
    """
    fd = _opened(path)
    try:
        held = os.fstat(fd).st_blocks * _BLOCK
        before = _used(fd)
        os.ftruncate(fd, 0)
        return min(held, max(0, before - _used(fd)))
    finally:
        os.close(fd)


def cut_surplus(path: Path, size_bytes: int) -> None:
    """Cut a file to a size, and what it holds beyond that: who has it open may have made it larger.

    :raise OSError: When it cannot be opened.
    """
    fd = _opened(path)
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


def _opened(path: Path) -> int:
    """Open a file that others may hold a lease on: that must not be waited for."""
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
