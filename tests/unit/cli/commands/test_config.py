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
    assert f"# {command.directory}/virt-dmem.toml" in next(
        line for line in lines if line.startswith("daemon.run_dir")
    )
    assert next(line for line in lines if line.startswith("libvirt.auto_apply")).endswith("# default")
