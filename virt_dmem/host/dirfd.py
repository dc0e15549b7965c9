# SPDX-License-Identifier: GPL-2.0-or-later
"""Work safely in directories that others may change: by descriptors only, never by a path that was checked.

A path is opened once, component by component, and then only ``dir_fd`` operations follow. (openat2(2) would do it
in one call; systemd's RestrictSUIDSGID= forbids it, as seccomp cannot see the mode that it is asked for.) How far a
component is trusted depends on which users could replace it:

* From ``/`` on, as long as each directory belongs to root and only root may write to it, its content is trusted:
  its symbolic links are followed. So the administrator may let ``memory_backing_dir`` lead anywhere.
* In a directory of root with the sticky bit that others may write to (``/tmp``, ``/dev/shm``), a directory of root
  is trusted, as no other user can move it; everything else is not, and no link is followed.
* From the first directory on that another user owns, or may write to, nothing below is trusted. No link is
  followed; only real directories are entered, and no mount of FUSE, whose owner may block every access
  (``fusermount3`` mounts for the owner of the mount point). Where the owner matters, each directory has to belong
  to root, to the owner of the first of them (whom root admitted), or to one of the users named.

The owner of a directory may still change a name in it between check and use: what can be lost then is an entry of
that directory, never anything elsewhere. *Root* includes the user running this: tests need not be root.
"""

from __future__ import annotations

import enum
import errno
import itertools
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["inside", "names", "opened", "remove_link", "require_roots", "shown", "status"]

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # as the kernel itself (MAXSYMLINKS in include/linux/namei.h)


class _Trust(enum.Enum):
    """Which users control the content of a directory."""

    ROOTS = "root's"
    STICKY = "everybody's, but nobody moves what is root's"
    OTHERS = "another's"


@dataclass(frozen=True)
class _Place:
    """An open directory."""

    fd: int
    trust: _Trust
    owner: int = 0
    """Owner of the first directory that is not root's alone."""
    mount: bytes = b""
    """Number of its mount, once it was determined: that of an open file never changes."""


@contextmanager
def opened(path: Path, *, users: Collection[int] | None = None, roots: bool = False) -> Iterator[int]:
    """Open a directory for operations by ``dir_fd``, as the rules above allow.

    :param users: Users beside root and the first other owner to whom directories of the path may belong; ``None``:
        any user.
    :param roots: Accept only a directory that only root may write to, or move.
    :raise OSError: When it is missing, or not trusted: ELOOP or ENOTDIR for a link or a file, EXDEV for a FUSE
        mount, EPERM for a wrong owner.
    """
    place = _walk(path, users)
    try:
        if roots and place.trust is not _Trust.ROOTS:
            raise PermissionError(errno.EPERM, "Others may write there", shown(path))
        yield place.fd
    finally:
        os.close(place.fd)


def require_roots(path: Path) -> None:
    """Check that only root may change or move a directory, or the nearest existing one above it.

    :raise OSError: When others may, or it is no directory.
    """
    while True:
        try:
            with opened(path, roots=True):
                return
        except FileNotFoundError:
            path = path.parent


def _walk(path: Path, users: Collection[int] | None) -> _Place:
    if not path.is_absolute() or "\0" in str(path):
        raise OSError(errno.EINVAL, "It is not an absolute path", shown(path))
    place = _root()
    todo, links = [*reversed(path.parts[1:])], 0
    try:
        while todo:
            name = todo.pop()
            found = _entered(place, name)
            if isinstance(found, str):  # where a link leads to
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), shown(path))
                target = Path(found)
                todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                if target.is_absolute():
                    place = _instead(place, _root())
                continue
            place = _instead(place, found)
            owner = os.fstat(place.fd).st_uid
            if users is None or place.trust is not _Trust.OTHERS:
                continue
            if owner not in {0, os.geteuid(), place.owner, *users}:
                raise PermissionError(errno.EPERM, f"{shown(name)} belongs to user {owner}", shown(path))
    except BaseException as error:
        os.close(place.fd)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, shown(path)) from error
        raise
    return place


def _instead(before: _Place, after: _Place) -> _Place:
    os.close(before.fd)
    return after


def _root() -> _Place:
    return _judged(os.open("/", _DIRECTORY), _Place(-1, _Trust.ROOTS))


def _judged(fd: int, parent: _Place, mount: bytes = b"") -> _Place:
    """Return a directory that was entered from ``parent``, with its trust."""
    if parent.trust is _Trust.OTHERS:
        return _Place(fd, _Trust.OTHERS, parent.owner, mount)
    found = os.fstat(fd)
    roots = found.st_uid in {0, os.geteuid()}
    group = 0 if found.st_gid == 0 else stat.S_IWGRP
    if roots and not found.st_mode & (group | stat.S_IWOTH):
        return _Place(fd, _Trust.ROOTS, mount=mount)
    if roots and found.st_mode & stat.S_ISVTX:
        return _Place(fd, _Trust.STICKY, found.st_uid, mount)
    return _Place(fd, _Trust.OTHERS, found.st_uid, mount)


def _entered(place: _Place, name: str) -> _Place | str:
    """Return the directory of that name; the target of a link that may be followed."""
    if name == "..":
        if place.trust is _Trust.OTHERS:
            raise OSError(errno.EXDEV, "'..' is not followed in a directory of others")
        # the directory above a trusted one is trusted
        return _judged(os.open("..", _DIRECTORY, dir_fd=place.fd), _Place(-1, _Trust.ROOTS))
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=place.fd)
    except OSError as error:
        if place.trust is _Trust.ROOTS and error.errno in (errno.ELOOP, errno.ENOTDIR):
            with suppress(OSError):  # it is not a link
                return os.readlink(name, dir_fd=place.fd)
        raise
    # FUSE is not even asked for its owner: it may never answer
    mount = _mount_of(fd)
    if mount != (place.mount or _mount_of(place.fd)) and _file_system(mount).startswith("fuse"):
        os.close(fd)
        raise OSError(errno.EXDEV, f"FUSE is mounted at {shown(name)}")
    return _judged(fd, place, mount)


def _mount_of(fd: int) -> bytes:
    """Return the number of the mount that an open file is on; the kernel knows it without asking."""
    about = _read(f"/proc/self/fdinfo/{fd}").split()
    return about[about.index(b"mnt_id:") + 1]


def _file_system(mount: bytes) -> str:
    """Return the type of the file system of a mount, likewise."""
    for line in _read("/proc/thread-self/mountinfo").splitlines():
        if line.startswith(mount + b" "):
            return os.fsdecode(line.partition(b" - ")[2].split(b" ")[0])
    return "fuse"  # unmounted meanwhile


def _read(name: str) -> bytes:
    """Return the content of a file of ``/proc`` in four system calls; a file object takes nine."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = b""
        while some := os.read(fd, 1 << 16):
            found += some
    finally:
        os.close(fd)
    return found


# In an open directory


@contextmanager
def inside(name: str, at: int) -> Iterator[int]:
    """Open a directory in a directory: a real one of any owner, and no mount of FUSE.

    :raise OSError: When it is not one; as ``opened``.
    """
    place = _entered(_Place(at, _Trust.OTHERS), name)
    assert isinstance(place, _Place)  # noqa: S101 -- no link is followed in a directory of others
    try:
        yield place.fd
    finally:
        os.close(place.fd)


def status(name: str, at: int) -> os.stat_result | None:
    """Return the status of a name, not following a link; ``None`` where it does not exist, or is not valid."""
    try:
        return os.stat(name, dir_fd=at, follow_symlinks=False)
    except (OSError, ValueError):
        return None


def names(at: int, limit: int) -> tuple[list[str], bool]:
    """Return at most ``limit`` names of a directory, and whether there are more.

    :raise OSError: When it cannot be read.
    """
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
    try:
        with os.scandir(fd) as entries:
            found = [entry.name for entry in itertools.islice(entries, limit + 1)]
    finally:
        os.close(fd)
    return found[:limit], len(found) > limit


def remove_link(name: str, at: int, may_remove: Callable[[str], bool]) -> bool:
    """Remove a symbolic link, and nothing else, if its target allows; return whether it was removed.

    It is compared by inode right before: another file of that name is kept.
    """
    before = status(name, at)
    if before is None or not stat.S_ISLNK(before.st_mode):
        return False
    try:
        if not may_remove(os.readlink(name, dir_fd=at)):
            return False
        now = status(name, at)
        if now is None or _identity(now) != _identity(before):
            return False
        os.unlink(name, dir_fd=at)
    except OSError:
        return False
    return True


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_dev, found.st_ino, found.st_ctime_ns  # inodes are used again


def shown(path: Path | str) -> str:
    """Return a path with everything unprintable escaped: one line, valid UTF-8, no terminal control."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in os.fspath(path)
    )
