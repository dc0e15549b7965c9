# SPDX-License-Identifier: GPL-2.0-or-later
"""The header of libvirt's saved files: only complete ones count."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from virt_dmem.hypervisor.saved_state import SavedState, read_saved_state

XML = b"<domain><name>guest</name></domain>"


def saved(*, magic: bytes = b"LibvirtQemudSave", version: int = 2, running: int = 1, more: int = 65536) -> bytes:
    """Return what libvirt writes, and a stream of QEMU behind it."""
    data = XML + b"\0" + bytes(more)
    return struct.pack("=16s5I56s", magic, version, len(data), running, 0, 0, b"") + data + b"QEVM stream"


@pytest.mark.parametrize("running", [0, 1])
def test_the_header_of_a_complete_file_is_read(tmp_path: Path, running: int) -> None:
    file = tmp_path / "guest.state"
    file.write_bytes(saved(running=running))
    assert read_saved_state(file) == SavedState(92 + len(XML) + 1 + 65536, bool(running), XML)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        saved()[:91],
        saved()[:5000],
        saved(magic=b"LibvirtQemudPart"),
        saved(version=3),
        struct.pack("=16s5I56s", b"LibvirtQemudSave", 2, 0, 1, 0, 0, b""),
        struct.pack("=16s5I56s", b"LibvirtQemudSave", 2, 1 << 31, 1, 0, 0, b""),
    ],
)
def test_any_other_file_is_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "guest.state"
    file.write_bytes(content)
    assert read_saved_state(file) is None
    assert read_saved_state(tmp_path / "missing") is None
    assert read_saved_state(tmp_path) is None
