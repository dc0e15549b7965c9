# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare the mount of a segment with how it was mounted: others may unmount, remount or cover it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from virt_dmem.host import kernel, mounts
from virt_dmem.host.mounts import Mount
from virt_dmem.pools.backends.base import MOUNT_FLAGS
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size

__all__ = ["MountFault", "faults", "obstacle"]

_MODE = 0o711


@dataclass(frozen=True)
class MountFault:
    """What is wrong with the mount of a segment, and how to fix it: both complete a sentence about the segment."""

    what: str
    fix: str
    repair: Callable[[], None] | None = None
    """Fixes it, where that needs no mount."""


def faults(record: PoolRecord, *, root: Path = kernel.ROOT) -> Iterator[MountFault]:
    """Yield what others changed about the mount of a complete segment."""
    if fault := obstacle(record, root=root):
        yield fault
    elif own := backend(record.backend).mounted(record, root=root):
        yield from _changed(record, own)


def obstacle(record: PoolRecord, *, root: Path = kernel.ROOT) -> MountFault | None:
    """Return why the files of a segment cannot be reached, or not be written, at its mount point."""
    kind, path, table = backend(record.backend), record.mount, mounts.mounts(root=root)
    again = f"run 'virt-dmem pool mount {record.pool}' once no domain holds memory of it"
    at = [number for number, mount in enumerate(table) if mount.path == path]
    own = [
        number
        for number in at
        if (table[number].fstype, table[number].source) == (kind.fstype, kind.source(record))
    ]
    if not own and not at:
        return MountFault("is not mounted any more", again)
    if not own:
        there = table[at[-1]]
        return MountFault(f"is replaced by {there.source} ({there.fstype})", f"'umount {path}', then {again}")
    # a later mount at the same path, or above it, hides it; no file is looked at, which could block
    if covers := [mount for mount in table[own[-1] + 1 :] if Path(path).is_relative_to(mount.path)]:
        cover = covers[-1]
        return MountFault(
            f"is covered by {cover.source} ({cover.fstype}) at {cover.path}", f"'umount {cover.path}'"
        )
    mount = table[own[-1]]
    if "ro" in mount.flags.split(",") or "ro" in mount.options.split(","):
        return MountFault("was remounted read-only", f"'mount -o remount,rw {path}'")
    return _out_of_reach(Path(path))


def _out_of_reach(mount: Path) -> MountFault | None:
    """Return that QEMU's user may not pass one of virt-dmem's own two directories above a mount point."""
    for directory in (mount.parents[1], mount.parent):
        try:
            mode = stat.S_IMODE(directory.stat().st_mode)
        except OSError:  # that of another root directory
            continue
        if not mode & stat.S_IXOTH:
            return MountFault(
                f"cannot be reached by QEMU's user, as {directory} has mode {mode:04o}",
                f"'chmod o+x {directory}'",
                repair=partial(_let_pass, directory),
            )
    return None


def _changed(record: PoolRecord, own: Mount) -> Iterator[MountFault]:
    """Yield what is wrong with a segment's own mount, the only one there."""
    path = record.mount
    if missing := [flag for flag in MOUNT_FLAGS if flag not in own.flags.split(",")]:
        options = ",".join(missing)
        yield MountFault(f"was remounted without {options}", f"'mount -o remount,bind,{options} {path}'")
    try:
        found, size = Path(path).stat(), os.statvfs(path)
    except OSError:  # unmounted in just this moment
        return
    has, took = size.f_blocks * size.f_frsize, record.got_bytes
    if backend(record.backend).resizes_in_place and has < took and not record.resizing:
        yield MountFault(
            f"was remounted with {format_size(has)} instead of {format_size(took)}",
            f"'mount -o remount,size={took} {path}'",
        )
    if size.f_files and not size.f_favail:
        again = f"'mount -o remount,nr_inodes=0 {path}'"
        yield MountFault("has no inodes left, so that no file can be created", again)
    mode = stat.S_IMODE(found.st_mode)
    if (found.st_uid, found.st_gid, mode) != (0, 0, _MODE):
        yield MountFault(
            f"belongs to {found.st_uid}:{found.st_gid} with mode {mode:04o}, not to 0:0 with mode {_MODE:04o}",
            f"'chown 0:0 {path}' and 'chmod {_MODE:04o} {path}'",
            repair=partial(_restore_mode, Path(path)),
        )


def _let_pass(directory: Path) -> None:
    directory.chmod(stat.S_IMODE(directory.stat().st_mode) | stat.S_IXOTH)


def _restore_mode(path: Path) -> None:
    os.chown(path, 0, 0)
    path.chmod(_MODE)
