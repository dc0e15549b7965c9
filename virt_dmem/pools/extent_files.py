# SPDX-License-Identifier: GPL-2.0-or-later
"""Create the files of a pool, grant QEMU access to them, revoke it, remove them.

A domain's extents are ``<pool>/libvirt-<uuid>/<alias>``. That directory name is also the name of the domain's
AppArmor profile, so one rule lets each QEMU access its own memory only. Files are 0600 and belong to root except
from ``start`` to ``started``, when QEMU opens them as its own user.

Functions here act on files only, not on the ledger; each may be repeated after a crash. A pool belongs to root, so
a path in it is as safe as a descriptor; in the directories of QEMU's user only descriptors are (``host.dirfd``). A
file that QEMU's user owns or has owned is opened so that no lease delays it. From Linux 6.19 on (``F_SETDELEG``)
its owner can delay changes of it and of its directory as well, so the event loop leaves those to
``deadline.within``.
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

from virt_dmem.errors import ExtentError, NotMapped
from virt_dmem.host import dirfd
from virt_dmem.host.confinement import selinux
from virt_dmem.host.processes import mappings, processes_holding
from virt_dmem.os_errors import remedy
from virt_dmem.units import format_size

__all__ = [
    "FileId",
    "check_mapped",
    "check_visible",
    "close_socket",
    "create",
    "file_id",
    "grant_access",
    "in_use",
    "link",
    "move_in",
    "path_of",
    "remove",
    "revoke_access",
    "truncate",
    "unlink",
]

log = logging.getLogger(__name__)

_APPLY_AGAIN = "Apply the domain again with 'virt-dmem apply', a transient one with 'virt-dmem rewrite'."


@dataclass(frozen=True)
class FileId:
    """Identity of a file; paths differ between mount namespaces."""

    device: int
    inode: int


def path_of(mount: Path, uuid: str, alias: str) -> Path:
    """Return the path of the extent of a domain's memory backend.

    ``alias`` was checked when the XML was read, and is checked again: it becomes a file name.

    :raise ExtentError: When the alias is not a plain file name.
    """
    if not alias or alias.startswith(".") or "/" in alias or "\0" in alias:
        raise ExtentError(
            f"{alias!r} cannot be the alias of a memory backend.", hint="Use letters, digits, - and _."
        )
    return mount / f"libvirt-{uuid}" / alias


def create(path: Path, size_bytes: int) -> FileId:
    """Create an extent without pages, owned by root; one left by an interrupted attempt is replaced.

    :raise ExtentError: When the pool rejects it.
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
    """Rename a file of the same pool, owned by root, to the extent; one left by an interrupted attempt is replaced.

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

    :raise OSError: When it fails; BlockingIOError where there is a lease, so that a process has it open.
    """
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


def _passable(directory: Path) -> None:
    """Create the directory of a domain, which its QEMU can search whatever the umask."""
    directory.mkdir(mode=0o711, exist_ok=True)
    directory.chmod(0o711)


def _not_made(path: Path, size_bytes: int, error: OSError) -> ExtentError:
    return ExtentError(
        f"The extent {path} of {format_size(size_bytes)} could not be created: {os.strerror(error.errno or 0)}.",
        hint=_remedy(error, path) or "Check with 'virt-dmem check' that the pool is mounted as recorded.",
    )


def _remedy(error: OSError, path: Path) -> str:
    """Return the remedy of a failure; empty where it is another one in a pool: nobody frees space there."""
    return "" if error.errno == errno.ENOSPC else remedy(error, path)


def file_id(path: Path) -> FileId:
    """Return device and inode of an extent.

    :raise ExtentError: When it is missing, or not a regular file.
    """
    try:
        found = path.lstat()
    except OSError as error:
        raise ExtentError(
            f"The extent {path} does not exist: {os.strerror(error.errno or 0)}.",
            hint=_remedy(error, path) or "Run 'virt-dmem reconcile' and start the domain again.",
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise ExtentError(f"{path} is not a regular file.", hint="Only virt-dmemd may create files in a pool.")
    return FileId(found.st_dev, found.st_ino)


def grant_access(path: Path, uid: int, gid: int, label: str | None = None) -> None:
    """Give an extent to QEMU's user, for QEMU alone.

    :param label: SELinux label of the domain's own files; its QEMU, and no other, may open them. The extent keeps
        it: what QEMU does to its file later, such as punching a hole, is checked again.
    :raise ExtentError: When it cannot be done.
    """
    _own(path, uid, gid, label)


def revoke_access(path: Path) -> None:
    """Give an extent back to root: processes that have it open keep it, no others can open it.

    :raise ExtentError: When it cannot be done.
    """
    _own(path, 0, 0)


def _own(path: Path, uid: int, gid: int, label: str | None = None) -> None:
    try:
        with _seen(path) as (file, found):
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            selinux.label_file(file, label)
            if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (uid, gid, 0o600):
                return  # a process that keeps writing to it would delay the change
            os.chown(file, uid, gid)
            os.chmod(file, 0o600)  # noqa: PTH101 -- after it is no longer its owner's to change
    except OSError as error:
        raise ExtentError(
            f"The extent {path} could not be given to user {uid}: {error.strerror}.",
            hint=_remedy(error, path) or "virt-dmemd needs CAP_CHOWN and a pool that is mounted read-write.",
        ) from error


@contextmanager
def _seen(name: Path | str, *, at: int | None = None) -> Iterator[tuple[str, os.stat_result]]:
    """Yield a path to exactly this file, even if its name changes, and its status (of a link, the link's).

    With O_PATH no lease is broken, and a FIFO does not block. fchown(2) rejects such a descriptor; chown(2) accepts
    the path.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        yield f"/proc/self/fd/{fd}", os.fstat(fd)
    finally:
        os.close(fd)


def close_socket(path: Path) -> None:
    """Allow only root to connect to a monitor from now on, as all QEMUs may share its owner; a missing one is fine.

    Only a socket that belongs to the owner of its directory, and has no other name, is changed: a link to a file of
    another user may have been put there.
    """
    with suppress(OSError), dirfd.opened(path.parent) as at, _seen(path.name, at=at) as (file, found):
        owners = {0, os.geteuid(), os.fstat(at).st_uid}
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in owners or found.st_nlink != 1:
            log.warning("%s is not a socket of QEMU alone, and is left as it is", dirfd.shown(path))
            return
        os.chown(file, 0, 0)


def link(target: Path, name: Path, *, users: Collection[int] | None = None) -> None:
    """Create a symbolic link to an extent; an older link of that name is replaced, any other file is not.

    :param users: Users beside root and QEMU's own to whom its directory may belong; ``None``: any user.
    :raise ExtentError: When the name exists and is not a link, or the directory is not writable or not trusted.
    """
    try:
        with dirfd.opened(name.parent, users=users) as at:
            dirfd.remove_link(name.name, at, lambda _: True)
            os.symlink(target, name.name, dir_fd=at)
    except OSError as error:
        raise ExtentError(
            f"The link {dirfd.shown(name)} could not be created: {error.strerror}.",
            hint=remedy(error, name)
            or "libvirt creates that directory before it calls the hook; check memory_backing_dir in qemu.conf.",
        ) from error


def unlink(name: Path, target: Path) -> None:
    """Remove a link to an extent, and nothing else; failures are logged, not raised.

    A link that remains does no harm: by then it leads to a file that only root may open, or to none.
    """
    try:
        with dirfd.opened(name.parent) as at:
            gone = dirfd.remove_link(name.name, at, lambda leads_to: leads_to == str(target))
            if not gone and dirfd.status(name.name, at) is not None:
                log.warning("%s is not a link to %s, and is left as it is", dirfd.shown(name), target)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("the link %s could not be removed: %s", dirfd.shown(name), error.strerror)


def in_use(path: Path) -> bool:
    """Return whether another process has an extent open or mapped, without waiting for any.

    A write lease is rejected as long as another open file refers to the inode, and a mapping is one
    (``fs/locks.c``, ``check_conflicting_open``). A process that holds a lease itself has it open; the lease
    survives a change of the file's owner.

    Since Linux 7.0 a file system has leases only if it says so (``kernel_setlease``), and hugetlbfs does not: there
    all processes are looked at. A descriptor that is on its way through a socket is not seen then. That gives no
    memory away: removing the file keeps it for who has it open, and ``allocation.reclaim`` finds it missing.

    :raise OSError: When it is missing, or not a regular file.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except BlockingIOError:
        return True
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return _is_leased_or_open(fd, found)
    finally:
        os.close(fd)


def _is_leased_or_open(fd: int, found: os.stat_result) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EBUSY):
            return True
        if error.errno != errno.EINVAL:
            raise
        users = processes_holding(found.st_dev, found.st_ino)
        return any(pid != os.getpid() for pid in users)
    return False


def remove(path: Path) -> None:
    """Remove an extent and, when it was the domain's last in this pool, its directory; a missing one is fine.

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
                hint=remedy(error, path) or "It is tried again until the pool is writable; see 'virt-dmem alerts'.",
            ) from error


def check_visible(pid: int, path: Path) -> None:
    """Check that a running QEMU finds an extent at its path, in its own mount namespace.

    QEMU would retry a dangling link for ever, with the domain locked. The namespace's owner may mount FUSE there
    and never answer: for worker threads. A link on the path can only lead to another result.

    :raise ExtentError: When it finds no file there, or another one.
    """
    wanted = file_id(path)
    try:
        seen = Path(f"/proc/{pid}/root{path}").stat()
    except OSError as error:
        raise ExtentError(
            f"QEMU {pid} does not see the extent {path}: {os.strerror(error.errno or 0)}.",
            hint=_remedy(error, path)
            or "The pool was mounted after the domain's mount namespace was created; restart the domain.",
        ) from error
    if (seen.st_dev, seen.st_ino) != (wanted.device, wanted.inode):
        raise ExtentError(f"QEMU {pid} sees another file at {path}.", hint="Restart the domain.")


def check_mapped(pid: int, expected: Iterable[tuple[str, Path, int]]) -> None:
    """Check that a QEMU maps every extent (alias, path, size in bytes), completely and shared.

    Compared by device and inode in ``/proc/PID/maps``, not by path. A process can block reading that file: for
    worker threads.

    :raise NotMapped: Names the first backend that is elsewhere, private or incomplete.
    """
    wanted = [(*each, file_id(each[1])) for each in expected]
    files = {(file.device, file.inode) for *_, file in wanted}
    areas = sorted(mappings(pid, of=files), key=lambda area: area.offset)
    for alias, path, size_bytes, file in wanted:
        ours = [area for area in areas if (area.device, area.inode) == (file.device, file.inode)]
        if any("s" not in area.perms for area in ours):
            raise NotMapped(
                f"QEMU {pid} maps memory backend {alias} privately, so the guest's writes are not in {path}.",
                hint=_APPLY_AGAIN,
            )
        mapped_bytes = 0
        for area in ours:  # one mapping may be split over several lines where its flags differ
            if area.offset <= mapped_bytes:
                mapped_bytes = max(mapped_bytes, area.offset + area.end - area.start)
        if mapped_bytes < size_bytes:
            raise NotMapped(
                f"QEMU {pid} maps {format_size(mapped_bytes)} of the {format_size(size_bytes)} of memory backend"
                f" {alias} at {path}.",
                hint=f"{_APPLY_AGAIN} Look at its <memoryBacking>.",
            )
