# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem reconcile``."""

from __future__ import annotations

from tests.rig.command_line import Command


def test_nothing_to_reconcile_is_reported(command: Command) -> None:
    with command.daemon():
        assert command.json("reconcile", "--dry-run") == {"actions": []}
        assert command("reconcile") == "Nothing to do.\n"
