# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a pool: made, handed to QEMU, taken back, removed.

A domain's extents stand in ``<pool>/libvirt-<uuid>/<alias>``. That directory name is also the name of the
domain's AppArmor profile, so one rule lets each QEMU reach its own memory only. Files are 0600 and belong to
root except from ``start`` to ``started``, when QEMU opens them as its own user.

Functions here act on files and know nothing of the ledger; each may be repeated after a crash. A pool is
root's, and a path in it is as good as a descriptor; in the directories of QEMU's user only descriptors count (see
``virt_dmem.beneath``). A file that QEMU's user owns or has owned is opened so that no lease delays us. From Linux
6.19 on (``F_SETDELEG``) its owner can delay changes of it and of its directory as well, so the event loop leaves
those to ``patience.within``.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from virt_dmem import beneath
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
    "truncate",
    "unlink",
]

log = logging.getLogger(__name__)


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
        truncate(path, size_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _not_made(path, size_bytes, error) from error


def truncate(path: Path, size_bytes: int) -> None:
    """Set the size of a file that a guest may have had, without waiting for leases on it as ``os.truncate`` does.

    :raise OSError: When it cannot be done; BlockingIOError where there is a lease, so somebody has it open.
    """
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


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
        with _seen(path) as (file, found):
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (uid, gid, 0o600):
                return  # who writes to it without end would have us wait
            os.chown(file, uid, gid)
            os.chmod(file, 0o600)  # noqa: PTH101 -- after it is no longer its owner's to change
    except OSError as error:
        raise ExtentError(
            f"The extent {path} could not be given to user {uid}: {error.strerror}.",
            hint="virt-dmemd needs CAP_CHOWN and a pool that is mounted read-write.",
        ) from error


@contextmanager
def _seen(name: Path | str, *, at: int | None = None) -> Iterator[tuple[str, os.stat_result]]:
    """Yield a path that is that very file's, whatever becomes of its name, and what it is (of a link, the link).

    With O_PATH no lease is broken, no FIFO waits. fchown(2) refuses such a descriptor; chown(2) takes the path.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        yield f"/proc/self/fd/{fd}", os.fstat(fd)
    finally:
        os.close(fd)


def close_socket(path: Path) -> None:
    """Let nobody but root connect to a monitor any more: all QEMUs may share its owner. Missing is fine.

    Only a socket that belongs to the owner of its directory, under no other name: a link may have been put there to
    what is somebody else's.
    """
    with suppress(OSError), beneath.opened(path.parent) as at, _seen(path.name, at=at) as (file, found):
        owners = {0, os.geteuid(), os.fstat(at).st_uid}
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in owners or found.st_nlink != 1:
            log.warning("%s is no socket of QEMU's alone, and left as it is", beneath.shown(path))
            return
        os.chown(file, 0, 0)


def link(target: Path, name: Path, *, users: Collection[int] | None = None) -> None:
    """Make ``name`` a symbolic link to an extent; an older link of that name is replaced, nothing else is.

    :param users: Users beside root and QEMU's own to whom its directory may belong; ``None``: anybody.
    :raise ExtentError: When something that is no link stands there, or the directory is not writable or not to be
        trusted.
    """
    try:
        with beneath.opened(name.parent, users=users) as at:
            beneath.remove_link(name.name, at, lambda _: True)
            os.symlink(target, name.name, dir_fd=at)
    except OSError as error:
        raise ExtentError(
            f"The link {beneath.shown(name)} could not be made: {error.strerror}.",
            hint="libvirt makes that directory before it calls the hook; look at memory_backing_dir in qemu.conf.",
        ) from error


def unlink(name: Path, target: Path) -> None:
    """Remove a link to an extent, if that is what stands there; the log says what stays, and nothing is raised.

    A link that stays does no harm: it leads to a file that is root's alone by then, or to nothing.
    """
    try:
        with beneath.opened(name.parent) as at:
            gone = beneath.remove_link(name.name, at, lambda leads_to: leads_to == str(target))
            if not gone and beneath.status(name.name, at) is not None:
                log.warning("%s is no link to %s, and left as it is", beneath.shown(name), target)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("the link %s could not be removed: %s", beneath.shown(name), error.strerror)


def in_use(path: Path) -> bool:
    """Tell whether any process but us has an extent open or mapped, without waiting for any.

    A write lease is refused as long as another open file refers to the inode, and a mapping is one
    (``fs/locks.c``, ``check_conflicting_open``). Who holds a lease itself has it open; a lease stays when the file
    is another's by then.

    :raise OSError: When it is missing, or no regular file.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except BlockingIOError:
        return True
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
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

    It would follow a link that leads to nothing for ever, with the domain locked. Whose namespace it is may mount
    FUSE there and answer never: for worker threads. A link on the way can lead nowhere but to another answer.

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

    Compared by device and inode in ``/proc/PID/maps``; what the path says there does not count. A process can keep
    that from being read: for worker threads.

    :raise NotMapped: Names the first backend that is elsewhere, private or not whole.
    """
    wanted = [(*each, file_id(each[1])) for each in expected]
    files = {(file.device, file.inode) for *_, file in wanted}
    areas = sorted(mappings(pid, of=files), key=lambda area: area.offset)
    for alias, path, size_bytes, file in wanted:
        ours = [area for area in areas if (area.device, area.inode) == (file.device, file.inode)]
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
