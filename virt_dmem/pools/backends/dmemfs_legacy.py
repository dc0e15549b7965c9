# SPDX-License-Identifier: GPL-2.0-or-later
"""Support the original dmemfs (LKML, October 2020) on kernels that were built with it.

Compared to virt-dmem's module it lacks: zeroing, so virt-dmem zeroes memory before it is used; ``fallocate`` and
``lseek(SEEK_DATA)``, so the helper touches every page; a capacity in ``statfs``, which only its debugfs shows; a
choice of ranges, so there can be one pool of it. And as its ``f_type`` is its own, QEMU maps its files at any
multiple of 4 KiB: where it does not support that, only pages of 4 KiB can be used.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from virt_dmem.errors import PoolError
from virt_dmem.host.ram.ranges import Range
from virt_dmem.pools.backends.struct_pages import BASE_PAGE
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size

__all__ = ["free", "is_original", "maps_anywhere", "registered", "require_usable"]

_DEBUGFS = "sys/kernel/debug/dmem"
_MAP_FIXED = 0x10  # not in Python's mmap


def is_original(root: Path) -> bool:
    """Return whether the kernel's dmemfs is the original: virt-dmem's has a directory in /sys/fs."""
    try:
        known = (root / "proc/filesystems").read_text().split()
    except FileNotFoundError:
        return False
    return "dmemfs" in known and not (root / "sys/fs/dmemfs").is_dir()


def registered(root: Path) -> dict[int, int]:
    """Return its bytes of each node, from its debugfs.

    :raise PoolError: When debugfs cannot be read.
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
            f"The size of the original dmemfs cannot be read below /{_DEBUGFS}: {error}.",
            hint="Mount debugfs: mount -t debugfs none /sys/kernel/debug",
        ) from error
    return {node: size for node, size in found.items() if size}


def free(root: Path, *, taken: bool) -> dict[int, tuple[Range, ...]]:
    """Return its free memory by node: all or, where a pool has ``taken`` it, nothing.

    Addresses are not known: the ranges start at 0 and only carry sizes.
    """
    if taken:
        return {}
    return {node: (Range(0, size),) for node, size in registered(root).items()}


def require_usable(record: PoolRecord) -> None:
    """Reject a mounted pool whose files QEMU could not map.

    :raise PoolError: When they can be mapped at multiples of the page size only.
    """
    if record.page_size > BASE_PAGE and not maps_anywhere(Path(record.mount), record.page_size):
        raise PoolError(
            f"The original dmemfs maps files at multiples of {format_size(record.page_size)} only, but QEMU maps"
            f" them at any multiple of {format_size(BASE_PAGE)}.",
            hint="Create the pool with --page-size 4K, or use the dmemfs module that comes with virt-dmem.",
        )


def maps_anywhere(directory: Path, page_size: int) -> bool:
    """Return whether a file in ``directory`` can be mapped at an address that is not a multiple of ``page_size``.

    No page of it is touched.
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
