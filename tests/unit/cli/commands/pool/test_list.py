# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool list``."""

from __future__ import annotations

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.errors import ExitStatus


@in_own_mount_namespace
def test_without_a_daemon_pools_are_read_from_their_records(command: Command) -> None:
    assert command("pool", "list").splitlines() == [
        "NAME  BACKEND  PAGES  CAPACITY  RESERVED  FREE  STATE  ON-BOOT"
    ]
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    assert command("pool", "list", "-o", "reserved,target,name").splitlines()[1].split() == ["-", "-", "small"]
    assert "Unknown column 'COLOUR'" in command("pool", "list", "-o", "colour", status=ExitStatus.USAGE)
