# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool mount``, with real mounts."""

from __future__ import annotations

import subprocess

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.units import MIB


@in_own_mount_namespace
def test_a_pool_is_mounted_again_and_one_that_is_there_left_alone(command: Command) -> None:
    mount = command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"]
    command("pool", "mount", "small")
    subprocess.run(["umount", mount], check=True)
    assert command.json("pool", "list")["pools"][0]["capacity_bytes"] == 0
    assert mount in command("pool", "mount", "small")
    assert command.json("pool", "list")["pools"][0]["capacity_bytes"] == 8 * MIB
