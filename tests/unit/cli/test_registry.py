# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry names every command, and only what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from virt_dmem.cli import commands, registry


def test_every_module_of_a_command_is_registered_with_all_it_declares() -> None:
    (directory,) = (Path(path) for path in commands.__path__)
    modules = {".".join(path.relative_to(directory).with_suffix("").parts) for path in directory.rglob("[!_]*.py")}
    assert set(registry.MODULES.values()) == modules
    declared = [command.name for name in registry.MODULES for command in registry.module_of(name).COMMANDS]
    assert set(declared) == set(registry.MODULES)


@pytest.mark.parametrize("name", registry.MODULES)
def test_a_summary_is_a_phrase_and_what_follows_fits_a_terminal(name: str) -> None:
    command = registry.load(name)
    assert command.summary[0].islower()
    assert not command.summary.endswith(".")
    assert all(len(line) <= 81 for line in command.about.splitlines())


def test_every_group_has_a_summary() -> None:
    assert {name.partition(" ")[0] for name in registry.MODULES if " " in name} == set(registry.GROUPS)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["list", "--json"], ["list"]),
        (["pool", "create", "p"], ["pool create"]),
        (["pool"], list(registry.MODULES)),
        (["pool", "frobnicate"], list(registry.MODULES)),
        (["--json", "list"], list(registry.MODULES)),
        ([], list(registry.MODULES)),
        (["--version"], []),
        (["--version", "list"], []),
    ],
    ids=str,
)
def test_a_command_line_that_begins_with_its_command_needs_no_other(arguments: list[str], found: list[str]) -> None:
    assert registry.named(arguments) == found
