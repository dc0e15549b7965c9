# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem config show``."""

from __future__ import annotations

import tomllib

from tests.rig.command_line import Command


def test_what_is_printed_can_be_read_again(command: Command) -> None:
    shown = tomllib.loads(command("config", "show"))
    assert shown["daemon"]["run_dir"] == f"{command.directory}/run"


def test_the_origin_of_a_key_is_its_file_or_the_default(command: Command) -> None:
    lines = command("config", "show", "--origin").splitlines()
    origins = {line.partition(" = ")[0]: line.rpartition("  # ")[2] for line in lines}
    assert origins["daemon.run_dir"] == f"{command.directory}/virt-dmem.toml"
    assert origins["libvirt.auto_apply"] == "default"
