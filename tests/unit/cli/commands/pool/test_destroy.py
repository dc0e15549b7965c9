# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool destroy``, with real mounts."""

from __future__ import annotations

from pathlib import Path

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.errors import ExitStatus


@in_own_mount_namespace
def test_a_pool_with_a_file_in_it_is_kept_also_when_no_daemon_can_be_asked(command: Command) -> None:
    mount = Path(command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"])
    (mount / "extent").write_bytes(b"guest memory")
    assert "contains 1 file (" in command("pool", "destroy", "small", status=ExitStatus.FAILED)
    assert (mount / "extent").read_bytes() == b"guest memory"


@in_own_mount_namespace
def test_a_pool_that_could_not_be_destroyed_gives_memory_again(command: Command) -> None:
    with command.daemon():
        mount = Path(command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"])
        (mount / "stray").touch()
        command("pool", "destroy", "small", status=ExitStatus.FAILED)
        assert command.json("pool", "show", "small")["pool"]["state"] == "ready"
