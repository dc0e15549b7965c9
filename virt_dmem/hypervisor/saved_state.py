# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the header of the file that libvirt saves a domain to (``virQEMUSaveHeader`` in its qemu_saveimage.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SavedState", "read_saved_state"]

_HEADER = struct.Struct("=16s5I56s")
_COMPLETE = b"LibvirtQemudSave"
"""While it is being written the file begins with ``LibvirtQemudPart`` (``virQEMUSaveDataFinish``)."""
_MOST_BYTES = 64 << 20
"""Limit of a domain's XML with all that libvirt keeps beside it."""


@dataclass(frozen=True)
class SavedState:
    """Describe a completely written file."""

    prefix_bytes: int
    """Header, XML and what else libvirt reads itself; QEMU's stream follows."""
    was_running: bool
    """Whether the guest's processors ran when it was saved."""
    xml: bytes


def read_saved_state(path: Path) -> SavedState | None:
    """Return the header of a file; ``None`` if there is none, or it was not written to its end."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None
            magic, version, data_bytes, was_running, _format, _cookie, _rest = _HEADER.unpack(header)
            if magic != _COMPLETE or version != 2 or not 0 < data_bytes <= _MOST_BYTES:
                return None
            data = file.read(data_bytes)
    except OSError:
        return None
    if len(data) < data_bytes:
        return None
    return SavedState(_HEADER.size + data_bytes, bool(was_running), data.partition(b"\0")[0])
