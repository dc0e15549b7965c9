# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of pools, in agreement with virt-dmemd and the kernel."""

from __future__ import annotations

import pytest

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.units import MIB


@in_own_mount_namespace
def test_the_daemon_hears_of_a_pool_that_is_made_and_of_one_that_goes(command: Command) -> None:
    with command.daemon():
        assert command.json("pool", "list") == {"pools": []}
        command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
        (seen,) = command.json("pool", "list")["pools"]
        assert (seen["name"], seen["reserved_bytes"], seen["free_bytes"]) == ("small", 0, 8 * MIB)
        assert command.json("pool", "show", "small")["pool"] == seen
        command("pool", "destroy", "small")
        assert command.json("pool", "list") == {"pools": []}


@in_own_mount_namespace
def test_destroy_says_when_the_kernel_lost_pages_meanwhile(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's taint is a stand-in: no test makes a kernel lose memory."""
    command("pool", "create", "small", "--size", "1M", "--backend", "tmpfs")
    met = iter([False, True])
    monkeypatch.setattr("virt_dmem.host.kernel.bad_pages_met", lambda: next(met))
    noted: list[str] = []
    monkeypatch.setattr("virt_dmem.cli.output.Output.note", lambda _self, text: noted.append(text))
    command("pool", "destroy", "small")
    assert any("Bad page state" in text for text in noted)
