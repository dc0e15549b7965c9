# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a pool: made, handed to QEMU, taken back, removed.

A domain's extents stand in ``<pool>/libvirt-<uuid>/<alias>``. That directory name is also the name of the
domain's AppArmor profile, so one rule lets each QEMU reach its own memory only. Files are 0600 and belong to
root except from ``start`` to ``started``, when QEMU opens them as its own user.

Functions here act on files and know nothing of the ledger; each may be repeated after a crash.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.errors import ExtentError, NotMapped
from virt_dmem.host import mappings
from virt_dmem.units import format_size

__all__ = [
    "FileId",
    "check_mapped",
    "check_visible",
    "close_socket",
    "create",
    "file_id",
    "hand_over",
    "in_use",
    "link",
    "move_in",
    "path_of",
    "remove",
    "take_back",
]


@dataclass(frozen=True)
class FileId:
    """What a file is, whatever its path: paths differ between mount namespaces."""

    device: int
    inode: int


def path_of(mount: Path, uuid: str, alias: str) -> Path:
    """Return where the extent of a domain's memory backend stands.

    ``alias`` comes from our own reading of the XML, and is checked all the same: it becomes a file name.

    :raise ExtentError: When the alias is no plain file name.
    """
    if not alias or alias.startswith(".") or "/" in alias or "\0" in alias:
        raise ExtentError(
            f"{alias!r} cannot be the alias of a memory backend.", hint="Use letters, digits, - and _."
        )
    return mount / f"libvirt-{uuid}" / alias


def create(path: Path, size_bytes: int) -> FileId:
    """Make an extent with holes for pages, root's own; one left by an interrupted try is replaced.

    :raise ExtentError: When the pool does not take it.
    """
    try:
        _passable(path.parent)
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, size_bytes)
            found = os.fstat(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _not_made(path, size_bytes, error) from error
    return FileId(found.st_dev, found.st_ino)


def move_in(source: Path, path: Path, size_bytes: int) -> None:
    """Let a file of the same pool, root's own, be the extent; one left by an interrupted try is replaced.

    :raise FileNotFoundError: When there is no such file.
    :raise ExtentError: When it cannot be done.
    """
    try:
        _passable(path.parent)
        source.rename(path)
        os.truncate(path, size_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _not_made(path, size_bytes, error) from error


def _passable(directory: Path) -> None:
    """Make the directory of a domain, through which its QEMU can pass whatever the umask."""
    directory.mkdir(mode=0o711, exist_ok=True)
    directory.chmod(0o711)


def _not_made(path: Path, size_bytes: int, error: OSError) -> ExtentError:
    return ExtentError(
        f"The extent {path} of {format_size(size_bytes)} could not be made: {os.strerror(error.errno or 0)}.",
        hint="Look with 'virt-dmem pool show' whether the pool is mounted as recorded.",
    )


def file_id(path: Path) -> FileId:
    """Return device and inode of an extent.

    :raise ExtentError: When it is missing, or no regular file.
    """
    try:
        found = path.lstat()
    except OSError as error:
        raise ExtentError(
            f"The extent {path} is not there: {os.strerror(error.errno or 0)}.",
            hint="Run 'virt-dmem reconcile' and start the domain again.",
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise ExtentError(f"{path} is not a regular file.", hint="Nothing but virt-dmemd may write in a pool.")
    return FileId(found.st_dev, found.st_ino)


def hand_over(path: Path, uid: int, gid: int) -> None:
    """Give an extent to QEMU's user, for QEMU alone.

    :raise ExtentError: When it cannot be done.
    """
    _own(path, uid, gid)


def take_back(path: Path) -> None:
    """Give an extent to root again: whoever has it open keeps it, nobody else reaches it.

    :raise ExtentError: When it cannot be done.
    """
    _own(path, 0, 0)


def _own(path: Path, uid: int, gid: int) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(fd, uid, gid)
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    except OSError as error:
        raise ExtentError(
            f"The extent {path} could not be given to user {uid}: {os.strerror(error.errno or 0)}.",
            hint="virt-dmemd needs CAP_CHOWN and a pool that is mounted read-write.",
        ) from error


def close_socket(path: Path) -> None:
    """Let nobody but root connect to a monitor any more: all QEMUs may share its owner. Missing is fine."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            os.chown(path, 0, 0, follow_symlinks=False)


def link(target: Path, name: Path) -> None:
    """Make ``name`` a symbolic link to an extent; an older link of that name is replaced, nothing else is.

    :raise ExtentError: When something that is no link stands there, or the directory is not writable.
    """
    try:
        if name.is_symlink():
            name.unlink()
        name.symlink_to(target)
    except OSError as error:
        raise ExtentError(
            f"The link {name} could not be made: {os.strerror(error.errno or 0)}.",
            hint="libvirt makes that directory before it calls the hook; look at memory_backing_dir in qemu.conf.",
        ) from error


def in_use(path: Path) -> bool:
    """Tell whether any process but us has an extent open or mapped.

    A write lease is refused as long as another open file refers to the inode, and a mapping is one
    (``fs/locks.c``, ``check_conflicting_open``).
    """
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EBUSY):
            return True
        raise
    finally:
        os.close(fd)
    return False


def remove(path: Path) -> None:
    """Remove an extent and, when it was the domain's last in this pool, its directory; missing is fine.

    :raise ExtentError: When it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
        if path.parent.name.startswith("libvirt-"):
            path.parent.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise ExtentError(
                f"The extent {path} could not be removed: {os.strerror(error.errno or 0)}.",
                hint="Run 'virt-dmem reconcile' once the pool is writable again.",
            ) from error


def check_visible(pid: int, path: Path) -> None:
    """Check that a QEMU that runs finds an extent at its path, in its own mount namespace.

    It would follow a link that leads to nothing for ever, with the domain locked.

    :raise ExtentError: When it finds nothing there, or another file.
    """
    wanted = file_id(path)
    try:
        seen = Path(f"/proc/{pid}/root{path}").stat()
    except OSError as error:
        raise ExtentError(
            f"QEMU {pid} does not see the extent {path}: {os.strerror(error.errno or 0)}.",
            hint="The pool was mounted after the domain's mount namespace was made; start the domain again.",
        ) from error
    if (seen.st_dev, seen.st_ino) != (wanted.device, wanted.inode):
        raise ExtentError(f"QEMU {pid} sees another file at {path}.", hint="Start the domain again.")


def check_mapped(pid: int, expected: Iterable[tuple[str, Path, int]]) -> None:
    """Check that a QEMU maps every extent (alias, path, size in bytes), whole and shared.

    Compared by device and inode in ``/proc/PID/maps``; what the path says there does not count.

    :raise NotMapped: Names the first backend that is elsewhere, private or not whole.
    """
    areas = sorted(mappings(pid), key=lambda area: area.offset)
    for alias, path, size_bytes in expected:
        wanted = file_id(path)
        ours = [area for area in areas if (area.device, area.inode) == (wanted.device, wanted.inode)]
        if any("s" not in area.perms for area in ours):
            raise NotMapped(
                f"QEMU {pid} maps memory backend {alias} privately, so the guest's writes are not in {path}.",
                hint="Apply the domain again with 'virt-dmem apply'.",
            )
        mapped_bytes = 0
        for area in ours:  # one mapping may stand in several lines, split where its flags differ
            if area.offset <= mapped_bytes:
                mapped_bytes = max(mapped_bytes, area.offset + area.end - area.start)
        if mapped_bytes < size_bytes:
            raise NotMapped(
                f"QEMU {pid} maps {format_size(mapped_bytes)} of the {format_size(size_bytes)} of memory backend"
                f" {alias} at {path}.",
                hint="Apply the domain again with 'virt-dmem apply', and look at its <memoryBacking>.",
            )
