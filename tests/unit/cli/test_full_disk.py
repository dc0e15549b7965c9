# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands on a full disk name the file and the remedy, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.command_line import Command
from tests.rig.full_disk import mount_full
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.units import MIB

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
