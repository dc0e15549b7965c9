# SPDX-License-Identifier: GPL-2.0-or-later
"""Sockets that are created without systemd: who may connect, and what is said where that fails."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from virt_dmem.errors import ConfigError
from virt_dmem.ipc.listener import create_listener


def test_it_is_for_its_owner_alone_and_replaces_one_that_was_left(tmp_path: Path) -> None:
    path = tmp_path / "run/sock"
    create_listener(path, "virt-dmemd").close()
    with create_listener(path, "virt-dmemd"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another group")
def test_a_group_may_connect_to_its_own(tmp_path: Path) -> None:
    with create_listener(tmp_path / "sock", "virt-dmemd", group=65534):
        status = (tmp_path / "sock").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, 65534)


def test_a_directory_that_is_none_is_named_with_the_program(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/sock cannot be created"):
        create_listener(tmp_path / "file/sock", "virt-dmem-pages")
