# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool resize``, with real mounts."""

from __future__ import annotations

import pytest

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.errors import ExitStatus
from virt_dmem.host import hvo_bug
from virt_dmem.pools.backends import table
from virt_dmem.units import MIB


@in_own_mount_namespace
def test_a_pool_is_resized_and_the_daemon_hears_of_it(command: Command) -> None:
    with command.daemon():
        command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
        said = command("pool", "resize", "small", "--size", "16M", "--dry-run")
        assert said == "Would grow segment small to 16 MiB from 8 MiB.\n"
        assert command.json("pool", "show", "small")["pool"]["capacity_bytes"] == 8 * MIB
        assert command("pool", "resize", "small", "--size", "16M").splitlines() == [
            "Grew segment small to 16 MiB from 8 MiB.",
            "Pool small has 16 MiB.",
        ]
        (seen,) = command.json("pool", "list")["pools"]
        assert (seen["capacity_bytes"], seen["free_bytes"]) == (16 * MIB, 16 * MIB)
        assert "already" in command("pool", "resize", "small", "--size", "16M")
        changes = command.json("pool", "resize", "small", "--size", "4M")["changes"]
        assert changes == [{"segment": "small", "before": {"-1": 16 * MIB}, "after": {"-1": 4 * MIB}}]
    command("pool", "resize", "small", status=ExitStatus.USAGE)
    command("pool", "resize", "small", "--size", "100", status=ExitStatus.USAGE)
    command("pool", "resize", "large", "--size", "4M", status=ExitStatus.FAILED)


@in_own_mount_namespace
def test_pages_that_were_the_hosts_before_are_not_freed_and_need_no_force(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's verdict is a stand-in, and so is a pool whose pages the host had (--existing-pages)."""
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    kind = type(table.BACKENDS["tmpfs"])
    monkeypatch.setattr(kind, "freeing", lambda *_args, **_more: hvo_bug.Verdict.BAD)
    monkeypatch.setattr(kind, "given_back", lambda *_args: 0)
    command("pool", "resize", "small", "--size", "4M")
    assert command.json("pool", "list")["pools"][0]["capacity_bytes"] == 4 * MIB
