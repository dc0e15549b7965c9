# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool show``."""

from __future__ import annotations

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace


@in_own_mount_namespace
def test_a_pool_is_shown_with_its_nodes_below(command: Command) -> None:
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    header, pool, blank, nodes, node = command("pool", "show", "small").splitlines()
    assert header.split()[3:6] == ["READY", "TARGET", "LIMIT"]
    assert pool.split()[0] == "small"
    assert blank == ""
    assert nodes.split() == ["NODE", "CAPACITY", "RESERVED", "FREE"]
    assert node.split() == ["any", "8", "MiB", "-", "-"]
