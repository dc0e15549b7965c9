# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem savings``."""

from __future__ import annotations

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace


@in_own_mount_namespace
def test_a_pool_of_tmpfs_saves_nothing(command: Command) -> None:
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    (saving,) = command.json("savings")["pools"]
    assert saving["gross_bytes"] == saving["metadata_left_bytes"] > 0
    assert command("savings", "--bytes", "-o", "pool,net").splitlines()[1].split() == ["small", "0"]
