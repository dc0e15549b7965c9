# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool mount``, with real mounts."""

from __future__ import annotations

import subprocess

import pytest

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.config.schema import load_config
from virt_dmem.pools import registry
from virt_dmem.pools.record_files import write
from virt_dmem.units import MIB


@in_own_mount_namespace
def test_a_pool_is_mounted_again_and_one_that_is_there_left_alone(command: Command) -> None:
    mount = command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"]
    command("pool", "mount", "small")
    subprocess.run(["umount", mount], check=True)
    assert command.json("pool", "list")["pools"][0]["capacity_bytes"] == 0
    assert mount in command("pool", "mount", "small")
    assert command.json("pool", "list")["pools"][0]["capacity_bytes"] == 8 * MIB


@pytest.mark.parametrize(
    ("state", "said"),
    [("destroying", "destruction of pool small was interrupted"), ("creating", "creation of pool small was")],
)
@in_own_mount_namespace
def test_what_becomes_of_a_pool_that_was_interrupted_is_said(command: Command, state: str, said: str) -> None:
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    config = load_config(command.directory / "virt-dmem.toml")
    record = registry.find(config, "small")
    record.state = state
    write(config, record)
    assert said in command("pool", "mount", "small")
    assert command.json("pool", "list")["pools"] == []
