# SPDX-License-Identifier: GPL-2.0-or-later
"""A file is replaced as a whole, or stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rig.full_disk import mount_full
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.replaced_file import remove_unfinished, replace_file


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    for content, mode in ((b"one", 0o600), (b"two", 0o644)):
        replace_file(file, content, mode=mode)
        assert (file.read_bytes(), file.stat().st_mode & 0o777) == (content, mode)
    assert list(tmp_path.iterdir()) == [file]


@in_own_mount_namespace
def test_on_a_full_disk_the_old_one_stays_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    replace_file(file, b"one")
    filler = mount_full(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        replace_file(file, b"two")
    assert set(tmp_path.iterdir()) == {file, filler}
    assert file.read_bytes() == b"one"


def test_an_interruption_leaves_nothing_and_what_a_kill_leaves_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "p.json"
    replace_file(file, b"one")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "fsync", interrupted)
        replace_file(file, b"two")
    assert list(tmp_path.iterdir()) == [file]
    (tmp_path / ".p.new").write_bytes(b"tw")
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [file]
    remove_unfinished(tmp_path / "nowhere")
