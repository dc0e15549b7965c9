# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool destroy``, with real mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.errors import ExitStatus
from virt_dmem.host import hvo_bug
from virt_dmem.pools.backends import table


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


@in_own_mount_namespace
def test_a_dry_run_says_what_would_be_given_back_and_keeps_the_pool(command: Command) -> None:
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    assert "give 8 MiB back to the host" in command("pool", "destroy", "small", "--dry-run")
    answer = command.json("pool", "destroy", "small", "--dry-run")
    assert answer == {"pool": "small", "destroyed": False, "given_back_bytes": 8 << 20}
    assert command.json("pool", "destroy", "small")["destroyed"] is True


@in_own_mount_namespace
def test_a_kernel_that_loses_what_it_frees_is_told_of_before_and_needs_force(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's verdict is a stand-in: no test makes a kernel lose memory."""
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    kind = type(table.BACKENDS["tmpfs"])
    monkeypatch.setattr(kind, "freeing", lambda *_args, **_more: hvo_bug.Verdict.BAD)
    for args in (["destroy", "small"], ["destroy", "small", "--dry-run"], ["resize", "small", "--size", "4M"]):
        said = command("pool", *args, status=ExitStatus.FAILED)
        assert "gone until the next boot. Nothing was changed." in said
        assert "--force" in said
    assert command.json("pool", "list")["pools"][0]["capacity_bytes"] == 8 << 20
    command("pool", "resize", "small", "--size", "16M")
    command("pool", "resize", "small", "--size", "4M", "--force")
    command("pool", "destroy", "small", "--force")
    assert command.json("pool", "list") == {"pools": []}
