# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the mounts of this mount namespace, again only when they have changed."""

from __future__ import annotations

import os
import re
import select
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from virt_dmem.host.kernel import ROOT

__all__ = ["Mount", "mounts", "mount_at"]

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo``; ``device`` is what ``st_dev`` is on it."""

    device: int
    root: str
    path: str
    fstype: str
    source: str
    options: str
    """Of the file system, separated by commas."""
    flags: str = field(default="", compare=False)
    """Of this mount, separated by commas: ``ro``, ``nosuid`` and so on."""


def mounts(*, root: Path = ROOT) -> tuple[Mount, ...]:
    """Return the mounts of this mount namespace, in the order in which they were mounted."""
    if root == ROOT:
        return _mount_table.read()
    return _parse_mounts((root / "proc/self/mountinfo").read_bytes())


class _MountTable:
    """The mounts of this mount namespace, read again only when they changed.

    Its file in /proc then polls as an error: proc_pid_mountinfo(5).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._namespace: tuple[int, str] | None = None
        self._file: BinaryIO | None = None
        self._changed = select.poll()
        self._mounts: tuple[Mount, ...] = ()
        self._uppermost: dict[str, Mount] = {}

    def at(self, path: str) -> Mount | None:
        self.read()
        return self._uppermost.get(path)

    def read(self) -> tuple[Mount, ...]:
        with self._lock:
            # a child shares the open file with its parent, and the file stays with the namespace it was opened in
            namespace = os.getpid(), os.readlink("/proc/thread-self/ns/mnt")  # noqa: PTH115 -- asked very often
            if namespace != self._namespace:
                self._file = Path("/proc/thread-self/mountinfo").open("rb", buffering=0)  # noqa: SIM115 -- stays open
                self._changed = select.poll()
                self._changed.register(self._file, select.POLLPRI)
                self._namespace = namespace
            elif not self._changed.poll(0):
                return self._mounts
            assert self._file is not None  # noqa: S101 -- opened with the namespace
            self._file.seek(0)
            self._mounts = _parse_mounts(self._file.read())
            self._uppermost = {mount.path: mount for mount in self._mounts}
            return self._mounts


_mount_table = _MountTable()


def _parse_mounts(table: bytes) -> tuple[Mount, ...]:
    # bytes: paths need not be UTF-8, nor free of what Python takes for an end of line
    return tuple(map(_mount, os.fsdecode(table).rstrip("\n").split("\n")))


def _mount(line: str) -> Mount:
    # id parent major:minor root path options [optional fields] - fstype source super-options
    left, _, right = line.partition(" - ")
    _, _, device, subtree, path, flags = left.split(" ")[:6]
    fstype, source, options = right.split(" ")[:3]
    major, minor = map(int, device.split(":"))
    return Mount(
        os.makedev(major, minor), _unescape(subtree), _unescape(path), fstype, _unescape(source), options, flags
    )


def mount_at(path: Path, *, root: Path = ROOT) -> Mount | None:
    """Return the mount at ``path``, the uppermost where there are several; ``None`` without one."""
    if root == ROOT:
        return _mount_table.at(str(path))
    return {mount.path: mount for mount in mounts(root=root)}.get(str(path))


def _unescape(text: str) -> str:
    # the kernel writes space, tab, newline and backslash as \040, \011, \012, \134 (fs/proc_namespace.c, mangle)
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
