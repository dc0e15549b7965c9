# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of a segment are measured, emptied and truncated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virt_dmem.pools import segment_files

PAGE = 4096


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a domain's file of four pages, in a plain directory instead of a mount."""
    path = tmp_path / "libvirt-uuid" / "ram"
    path.parent.mkdir()
    path.write_bytes(b"x" * 4 * PAGE)
    os.sync()
    return path


def test_only_our_files_are_counted(file: Path, tmp_path: Path) -> None:
    (tmp_path / "stray").write_bytes(b"x")
    (tmp_path / "stray-directory").mkdir()
    (tmp_path / "stray-directory" / "ram").write_bytes(b"x")
    use = segment_files.scan(str(tmp_path))
    assert list(use.files) == [str(file)]
    assert use.files[str(file)] == segment_files.use_of(file)
    assert use.used_bytes >= use.missing_bytes > 0


def test_a_file_that_was_enlarged_is_truncated(file: Path) -> None:
    segment_files.truncate(file, PAGE)
    assert segment_files.use_of(file).size_bytes == PAGE


def test_an_emptied_file_has_no_memory(file: Path) -> None:
    assert 0 <= segment_files.empty(file) <= 4 * PAGE
    assert segment_files.use_of(file) == (0, 0)


def test_a_link_is_not_followed(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "libvirt-uuid" / "link"
    link.symlink_to(file)
    with pytest.raises(OSError, match="symbolic"):
        segment_files.empty(link)
    assert file.stat().st_size == 4 * PAGE
