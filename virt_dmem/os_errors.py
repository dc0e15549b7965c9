# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn an ``OSError`` into an error for users: which file, what the kernel said of it, and what to do.

Its ``filename`` is missing where a file descriptor was used, and only a part of the path with ``dir_fd``: whoever
knows the path passes it, or works ``naming`` it.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager

from virt_dmem.errors import DmemError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["explained", "naming", "remedy"]

_REMEDIES = {
    errno.ENOSPC: "Free space there ('df -h {place}' and 'df -i {place}' show what is left), and try again.",
    errno.EDQUOT: "Raise the quota there, or free space, and try again.",
    errno.EROFS: "Its file system is read-only: dmesg may say why; make it writable, and try again.",
    errno.EIO: "The device below it fails: see dmesg, and repair it.",
    errno.ENOMEM: "Free memory on the host, and try again.",
    errno.EMFILE: "Raise the limit of open files ('ulimit -n', or LimitNOFILE= of the unit), and try again.",
    errno.ENFILE: "Raise the host's limit of open files ('sysctl fs.file-max'), and try again.",
}


def remedy(error: OSError, path: object = "") -> str:
    """Return what to do about a failure that has nothing to do with the caller's own work; empty: it may have."""
    text = _REMEDIES.get(error.errno or 0, "")
    return text.format(place=os.path.dirname(_where(error, path)) or "/")  # noqa: PTH120 -- pathlib takes 10 ms


def explained(
    error: OSError, path: object = "", *, kind: type[DmemError] = DmemError, doing: str = "", otherwise: str = ""
) -> DmemError:
    """Return the error that names the file, what the kernel said of it, and the remedy.

    :param path: The file; empty: as the error names it.
    :param doing: What failed, as the beginning of a sentence.
    :param otherwise: The hint where ``remedy`` has none.
    """
    said = error.strerror or str(error) or type(error).__name__
    where = _where(error, path)
    message = f"{f'{doing}: ' if doing else ''}{said}{f': {where}' if where else ''}."
    hint = remedy(error, path) or otherwise or "Find out why; 'virt-dmem check' looks at what virt-dmem needs."
    return kind(message, hint=hint)


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Have the errors of system calls in this context name ``path``.

    :raise OSError: With the number of the one that was raised.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _where(error: OSError, path: object) -> str:
    found = path or error.filename or ""
    return os.fsdecode(found) if isinstance(found, str | bytes | os.PathLike) else ""
