# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of pools, in agreement with virt-dmemd and the kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.command_line import Command
from tests.rig.full_disk import mount_full
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


COMMANDS: list[Callable[[Path], list[str]]] = [
    lambda _: ["pool", "create", "new", "--backend", "tmpfs", "--size", "4M"],
    lambda _: ["pool", "resize", "old", "--size", "4M"],
    lambda _: ["pool", "resize", "old", "--size", "16M"],
    lambda _: ["pool", "destroy", "old"],
    lambda records: ["report", "--file", f"{records}/report.tar.gz"],
]


@pytest.mark.parametrize("line", COMMANDS, ids=["create", "shrink", "grow", "destroy", "report"])
@in_own_mount_namespace
def test_on_a_full_disk_the_file_and_the_remedy_are_named_and_the_pool_is_as_it_was(
    command: Command, line: Callable[[Path], list[str]]
) -> None:
    records = command.directory / "state/pools"
    command("pool", "create", "old", "--backend", "tmpfs", "--size", "8M")
    filler = mount_full(records)
    before = set(records.iterdir())
    said = command(*line(records), status=1)
    assert f"No space left on device: {records}/" in said
    assert f"Free space there ('df -h {records}'" in said
    assert set(records.iterdir()) == before
    (pool,) = command.json("pool", "list")["pools"]
    assert (pool["name"], pool["capacity_bytes"], pool["state"]) == ("old", 8 * MIB, "ready")
    filler.unlink()
    command("pool", "destroy", "old")
