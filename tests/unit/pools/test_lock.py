# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock of a host's pools."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolError
from virt_dmem.pools.lock import locked, unless_locked


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state")))


def test_without_any_pool_nobody_holds_it_and_nothing_is_created(config: Config) -> None:
    with unless_locked(config) as mine:
        assert mine
    assert not config.pool_records_dir.exists()


def test_it_is_not_waited_for(config: Config) -> None:
    with locked(config), unless_locked(config) as mine:
        assert not mine
    with unless_locked(config) as mine, unless_locked(config) as again:
        assert (mine, again) == (True, False)
    with locked(config):
        pass


@in_own_mount_namespace
def test_it_is_held_also_on_a_file_system_that_became_read_only(config: Config) -> None:
    with locked(config):
        pass
    directory = str(config.pool_records_dir)
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
    with unless_locked(config) as mine, unless_locked(config) as again:
        assert (mine, again) == (True, False)
    with pytest.raises(PoolError, match="Read-only file system"), locked(config):
        pass
    subprocess.run(["umount", directory], check=True)


def test_a_directory_that_cannot_be_had_is_an_error(config: Config, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(PoolError, match="Pools cannot be changed"), locked(config):
        pass
