# SPDX-License-Identifier: GPL-2.0-or-later
"""What others do to the mount of a pool is recognised: with real mounts, in a namespace of their own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.no_daemon import NoDaemon
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.pools import manage, mount_state, registry, resize
from virt_dmem.pools.record import PoolRecord

MIB = 1 << 20


@pytest.fixture
def config() -> Iterator[Config]:
    with tempfile.TemporaryDirectory(dir="/run", prefix="virt-dmem-test-") as top:
        yield Config(daemon=DaemonConfig(state_dir=f"{top}/state", run_dir=f"{top}/run"))


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def create(config: Config) -> PoolRecord:
    return manage.create(config, "p", sizes=8 * MIB, backend="tmpfs")


def whats(record: PoolRecord) -> list[str]:
    return [fault.what for fault in mount_state.faults(record)]


@in_own_mount_namespace
def test_a_pool_as_it_was_mounted_has_no_fault(config: Config) -> None:
    record = create(config)
    assert whats(record) == []
    assert mount_state.obstacle(record) is None
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_a_pool_that_was_unmounted_is_not_there(config: Config) -> None:
    record = create(config)
    run("umount", record.mount)
    assert whats(record) == ["is not mounted any more"]
    run("mount", "-t", "tmpfs", "somebody", record.mount)
    assert whats(record) == ["is replaced by somebody (tmpfs)"]
    run("umount", record.mount)
    manage.mount(config, "p")
    assert whats(record) == []
    manage.destroy(config, "p")


@pytest.mark.parametrize("above", [0, 1, 2])
@in_own_mount_namespace
def test_a_pool_that_another_mount_covers_is_out_of_reach(config: Config, above: int) -> None:
    record = create(config)
    place = [Path(record.mount), *Path(record.mount).parents][above]
    run("mount", "-t", "tmpfs", "cover", str(place))
    fault = mount_state.obstacle(record)
    assert fault is not None
    assert (fault.what, fault.fix) == (f"is covered by cover (tmpfs) at {place}", f"'umount {place}'")
    run("umount", str(place))
    assert whats(record) == []
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_a_pool_that_was_remounted_says_how(config: Config) -> None:
    record = create(config)
    run("mount", "-o", "remount,ro", record.mount)
    assert whats(record) == ["was remounted read-only"]
    run("mount", "-o", "remount,rw", record.mount)
    run("mount", "-o", "remount,bind,dev,suid,noexec", record.mount)
    assert whats(record) == ["was remounted without nosuid,nodev"]
    run("mount", "-o", "remount,bind,nosuid,nodev,noexec", record.mount)
    run("mount", "-o", "remount,size=4M,nosuid,nodev,noexec", record.mount)
    assert whats(record) == ["was remounted with 4 MiB instead of 8 MiB"]
    run("mount", "-o", "remount,size=8M,nosuid,nodev,noexec", record.mount)
    assert whats(record) == []
    manage.destroy(config, "p")


@pytest.mark.parametrize("above", [0, 1])
@in_own_mount_namespace
def test_a_pool_below_a_directory_that_is_closed_is_out_of_reach_and_that_can_be_opened(
    config: Config, above: int
) -> None:
    record = create(config)
    directory = Path(record.mount).parents[above]
    directory.chmod(0o700)
    fault = mount_state.obstacle(record)
    assert fault is not None
    assert fault.what == f"cannot be reached by QEMU's user, as {directory} has mode 0700"
    assert fault.repair is not None
    fault.repair()
    assert directory.stat().st_mode & 0o7777 == 0o701
    assert whats(record) == []
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_a_pool_that_changed_its_size_has_the_flags_of_its_mount(config: Config) -> None:
    create(config)
    resize.resize(config, "p", sizes=16 * MIB, daemon=NoDaemon())
    (record,) = registry.segments(config, "p")
    assert whats(record) == []
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_the_mode_of_its_root_can_be_restored(config: Config) -> None:
    record = create(config)
    Path(record.mount).chmod(0o755)
    (fault,) = mount_state.faults(record)
    assert "mode 0755" in fault.what
    assert fault.repair is not None
    fault.repair()
    assert whats(record) == []
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_a_mount_without_inodes_is_told_of(config: Config) -> None:
    record = create(config)
    assert whats(record) == []
    run("mount", "-o", "remount,nr_inodes=2", record.mount)
    Path(record.mount, "last").touch()
    (fault,) = mount_state.faults(record)
    assert fault.what == "has no inodes left, so that no file can be created"
    run(*fault.fix.strip("'").split())
    assert whats(record) == []
