# SPDX-License-Identifier: GPL-2.0-or-later
"""The original dmemfs (LKML, October 2020), where a kernel was built with it, and what it takes to use it.

Against our module it lacks: zeroing, so we zero what is given out; ``fallocate`` and ``lseek(SEEK_DATA)``, so the
helper touches every page; a capacity in ``statfs``, which only its debugfs tells; ranges of one's own, so there can
be one pool of it. And QEMU maps its files at any multiple of 4 KiB, as ``f_type`` is its own: where it does not let
itself be mapped so, only pages of 4 KiB are served.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from virt_dmem.errors import PoolError
from virt_dmem.host.ranges import Range
from virt_dmem.pools.backends.base import BASE_PAGE
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size

__all__ = ["free", "is_original", "maps_anywhere", "registered", "require_usable"]

_DEBUGFS = "sys/kernel/debug/dmem"
_MAP_FIXED = 0x10  # not in Python's mmap


def is_original(root: Path) -> bool:
    """Tell whether the kernel's dmemfs is the original one: ours has a directory in /sys/fs, loaded or built in."""
    try:
        known = (root / "proc/filesystems").read_text().split()
    except FileNotFoundError:
        return False
    return "dmemfs" in known and not (root / "sys/fs/dmemfs").is_dir()


def registered(root: Path) -> dict[int, int]:
    """Return the bytes that it has of each node, from its debugfs.

    :raise PoolError: When that is not to be read.
    """
    base = root / _DEBUGFS
    found = {}
    try:
        for path in sorted(base.glob("node[0-9]*")):
            node = int(path.name.removeprefix("node"))
            found[node] = int((path / "registered_pages").read_text(), 0) * BASE_PAGE
        if not found:
            found[0] = int((base / "registered_pages").read_text(), 0) * BASE_PAGE
    except (OSError, ValueError) as error:
        raise PoolError(
            f"How much memory the original dmemfs has cannot be read below /{_DEBUGFS}: {error}.",
            hint="Mount debugfs: mount -t debugfs none /sys/kernel/debug",
        ) from error
    return {node: size for node, size in found.items() if size}


def free(others: Sequence[PoolRecord], root: Path) -> dict[int, tuple[Range, ...]]:
    """Return what no other pool has: one has it all. The addresses stand for sizes only, it shows none."""
    if any(other.original for other in others):
        return {}
    return {node: (Range(0, size),) for node, size in registered(root).items()}


def require_usable(record: PoolRecord) -> None:
    """Refuse a mounted pool whose files QEMU could not map.

    :raise PoolError: When they can be mapped at multiples of the page size only.
    """
    if record.page_size > BASE_PAGE and not maps_anywhere(Path(record.mount), record.page_size):
        raise PoolError(
            f"The original dmemfs maps files at multiples of {format_size(record.page_size)} only, and QEMU maps"
            f" them at any multiple of {format_size(BASE_PAGE)}.",
            hint="Make the pool with --page-size 4K, or use the dmemfs module that comes with virt-dmem.",
        )


def maps_anywhere(directory: Path, page_size: int) -> bool:
    """Tell whether a file in ``directory`` can be mapped at an address that is no multiple of ``page_size``.

    Nothing of it is touched.
    """
    probe = directory / f".probe-{os.getpid()}"
    fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, page_size)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        failed = ctypes.c_void_p(-1).value
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        room = libc.mmap(None, 3 * page_size, 0, anonymous, -1, 0)
        if room == failed:
            return False
        at = -(-room // page_size) * page_size + BASE_PAGE
        got = libc.mmap(at, page_size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd, 0)
        libc.munmap(room, 3 * page_size)
        return bool(got != failed)
    finally:
        os.close(fd)
        probe.unlink()
