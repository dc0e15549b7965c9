# SPDX-License-Identifier: GPL-2.0-or-later
"""A file is replaced as a whole, or not at all."""

from __future__ import annotations

import errno
import stat
import subprocess
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.replaced_file import replace_file


def test_the_new_content_and_mode_take_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"old")
    path.chmod(0o644)
    replace_file(path, b"new", mode=0o600)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_it_may_be_there_for_the_first_time_and_over_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".record.new").write_bytes(b"half of something longer")
    replace_file(tmp_path / "record.json", b"new")
    assert (tmp_path / "record.json").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@in_own_mount_namespace
def test_on_a_full_disk_the_old_one_is_there_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    path = tmp_path / "record.json"
    replace_file(path, b"old")
    with pytest.raises(OSError) as failed:
        replace_file(path, bytes(1 << 20))
    assert failed.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
