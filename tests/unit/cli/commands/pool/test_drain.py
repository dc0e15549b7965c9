# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool drain``."""

from __future__ import annotations

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace


@in_own_mount_namespace
def test_a_pool_is_drained_and_used_again(command: Command) -> None:
    with command.daemon():
        command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
        drained = command("pool", "drain", "small", "--wait")
        assert drained == "Pool small is draining: no domain holds memory from it.\n"
        assert command.json("pool", "show", "small")["pool"]["state"] == "draining"
        assert command("pool", "drain", "small", "--undo") == "Pool small is in use again.\n"
        assert command.json("pool", "show", "small")["pool"]["state"] == "ready"
