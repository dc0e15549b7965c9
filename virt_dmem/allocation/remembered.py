# SPDX-License-Identifier: GPL-2.0-or-later
"""Remember the request of each rewritten domain, with all that it replaced, apart from the domain's XML.

One file for each, ``applied/UUID`` in the state directory: whoever removes the request from the XML does not remove
it here, and it can be put back, or undone exactly. The hook's shell script only looks whether the file is there.

A domain that was undefined is remembered for another day: a tool that undefines it and defines it again, from XML
in which our metadata are missing, would else have it start on a file on a disk.
"""

from __future__ import annotations

import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path

from virt_dmem.os_errors import naming
from virt_dmem.replaced_file import replace_file

__all__ = ["UNDEFINED_SECONDS", "Remembered"]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST_BYTES = 256 << 10
"""Of one request: 256 memory devices are described in a fifth of it."""
_DEFINED, _UNDEFINED = 0o600, 0o400
"""Modes of the files; one that nobody may write was last changed when its domain was undefined."""
UNDEFINED_SECONDS = 24 * 3600.0
"""How long a domain is remembered after it was undefined."""


class Remembered:
    """The requests of rewritten domains by UUID; one that cannot be read counts as not remembered.

    ``keep`` waits for the disk: for worker threads.
    """

    def __init__(self, state_dir: Path | str) -> None:
        self._directory = Path(state_dir) / "applied"

    def find(self, uuid: str) -> bytes:
        """Return a domain's request; empty if it is not remembered, or may not be read."""
        if _UUID.fullmatch(uuid):
            with suppress(OSError):
                return self._path(uuid).read_bytes()
        return b""

    def keep(self, uuid: str, request: bytes) -> bool:
        """Remember the request of a domain, instead of an earlier one; return whether it is: one may be too large.

        :raise OSError: When that cannot be written; names the file.
        """
        if not _UUID.fullmatch(uuid) or len(request) > _MOST_BYTES:
            return False
        with naming(self._path(uuid)):
            if self.find(uuid) == request:
                self.note_defined(uuid)
                return True
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path(uuid), request)
        return True

    def forget(self, uuid: str) -> None:
        """Forget a domain that is restored.

        :raise OSError: When it stays remembered; names the file.
        """
        # unlink() fails on a read-only file system, also if there is nothing to remove
        if _UUID.fullmatch(uuid) and self._path(uuid).exists():
            with naming(self._path(uuid)):
                self._path(uuid).unlink(missing_ok=True)

    def note_defined(self, uuid: str) -> None:
        """Note that a domain is defined, so that the time of ``undefined_seconds`` begins anew.

        :raise OSError: When that cannot be noted.
        """
        if _UUID.fullmatch(uuid) and self.undefined_seconds(uuid) is not None:
            self._path(uuid).chmod(_DEFINED)

    def note_undefined(self, uuid: str) -> None:
        """Note that a domain is not defined any more, from now on.

        :raise OSError: When that cannot be noted; names the file.
        """
        if _UUID.fullmatch(uuid) and self._path(uuid).exists():
            with naming(self._path(uuid)), suppress(FileNotFoundError):
                os.utime(self._path(uuid))
                self._path(uuid).chmod(_UNDEFINED)

    def undefined_seconds(self, uuid: str) -> float | None:
        """Return for how long a domain has been undefined, by the wall clock; ``None`` if that was not noted."""
        try:
            found = self._path(uuid).stat()
        except OSError:
            return None
        return max(0.0, time.time() - found.st_mtime) if stat.S_IMODE(found.st_mode) == _UNDEFINED else None

    def uuids(self) -> set[str]:
        """Return the domains that are remembered."""
        with suppress(OSError):
            return {name for name in os.listdir(self._directory) if _UUID.fullmatch(name)}  # noqa: PTH208
        return set()

    def _path(self, uuid: str) -> Path:
        return self._directory / uuid
