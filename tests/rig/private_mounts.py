# SPDX-License-Identifier: GPL-2.0-or-later
"""Leave the host's mount namespace, also from a plain chroot, where builders run tests.

There ``/`` is a directory of a mount and no mount point: its propagation cannot be changed, and libvirtd gives no
QEMU a mount namespace. So it is made a mount point, in the new namespace only.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["leave_mount_namespace"]

_CLONE_NEWNS = 0x00020000  # linux/sched.h
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18  # linux/mount.h

_libc = ctypes.CDLL(None, use_errno=True)


def leave_mount_namespace() -> None:
    """Move this process into a mount namespace of its own, from which nothing propagates.

    :raise OSError: When it is not root, or has threads.
    """
    _call("unshare", _CLONE_NEWNS)
    try:
        _make_private()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _make_root_a_mount()


def _make_private() -> None:
    _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)


def _make_root_a_mount() -> None:
    """Mount the root directory on itself: from the namespace's own root, where setns(2) leads out of a chroot."""
    working = Path.cwd()
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        _call("setns", namespace, _CLONE_NEWNS)
        _make_private()
        where = Path(f"/proc/self/fd/{root}").readlink()
    finally:
        os.close(namespace)
        os.close(root)
    _call("mount", bytes(where), bytes(where), None, _MS_BIND | _MS_REC, None)
    os.chroot(where)
    os.chdir(working)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
