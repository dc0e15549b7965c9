# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem report``."""

from __future__ import annotations

import os
import tarfile

import pytest

from tests.rig.command_line import Command
from virt_dmem.errors import ExitStatus


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it reads what is root's")
def test_the_archive_is_named_with_what_is_in_it(command: Command) -> None:
    path = command.directory / "report.tar.xz"
    said = command("report", "--file", str(path))
    with tarfile.open(path) as archive:
        assert said.startswith(f"{path}: {len(archive.getnames())} files")


def test_only_root_may_create_one(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "Creating a report needs root" in command("report", status=ExitStatus.FAILED)
