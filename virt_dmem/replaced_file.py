# SPDX-License-Identifier: GPL-2.0-or-later
"""Replace a file as a whole, so that after a power cut either the old or the new one is there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["UNFINISHED", "file_identity", "remove_unfinished", "replace_file", "sync_directory"]

UNFINISHED = ".new"
"""The end of the name, which begins with a dot, of a file that ``remove_unfinished`` removes."""


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in a directory of root's; return when it is safe on disk.

    What a kill leaves beside it is removed by ``remove_unfinished``.

    :raise OSError: When it cannot be written; the old one is there, and nothing else is left.
    """
    fresh = path.with_name(f".{path.stem}{UNFINISHED}")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:  # noqa: PTH123 - a file descriptor
            file.write(content)
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        fresh.replace(path)
    except BaseException:  # also Ctrl-C
        with suppress(OSError):
            fresh.unlink()
        raise
    sync_directory(path.parent)


def remove_unfinished(directory: Path) -> None:
    """Remove what a kill of ``replace_file`` left in a directory, while nobody else replaces a file there."""
    with suppress(OSError):
        for path in directory.glob(f".*{UNFINISHED}"):
            path.unlink()


def sync_directory(directory: Path) -> None:
    """Return when the names in a directory are safe on disk.

    :raise OSError: When the disk fails.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what is at a path, links not followed; ``None`` if it cannot be looked at."""
    with suppress(OSError):
        status = path.lstat()
        return status.st_dev, status.st_ino
    return None
