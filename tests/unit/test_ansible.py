# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the Ansible role without Ansible: its commands exist, and its variables are declared.

``make test-packages`` lints it and runs it on a booted host.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.rig.repository import REPOSITORY
from virt_dmem.cli.parser import build_parser

ROLE = REPOSITORY / "packaging/ansible/roles/virt_dmem"
GUIDE = (REPOSITORY / "docs/guide/ansible.md").read_text("utf-8")
FILES = sorted(path for path in ROLE.rglob("*") if path.suffix in (".yml", ".j2"))
PLACEHOLDERS = {
    "--size=": "1G",
    "--node=": "0=1G",
    "--page-size=": "2M",
    "--backend=": "tmpfs",
    "--region=": "auto",
    "--pool=": "guests",
    "--hotplug-max=": "1G",
    "--max=": "2G",
    "--min=": "1G",
    "--keep-free=": "1G",
    "--linger=": "10m",
}
NOT_OFFERED = {"--on-boot": "the role enables the unit itself, also for a pool that is there"}


def loaded(name: str) -> Any:
    return yaml.safe_load((ROLE / name).read_text("utf-8"))


def flat(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        yield task
        yield from flat(task.get("block", []))


TASKS = [task for path in sorted((ROLE / "tasks").glob("*.yml")) for task in flat(loaded(f"tasks/{path.name}"))]
OPTIONS = loaded("meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def commands() -> list[list[str]]:
    """Return every command with all its options, and a word in place of each value."""
    found = []
    for task in TASKS:
        if command := task.get("ansible.builtin.command"):
            words = command["argv"] if isinstance(command["argv"], list) else task["vars"]["virt_dmem_command"]
            found.append([*map(filled_in, words)])
    return found


def filled_in(word: str) -> str:
    if "{{" not in word:
        return word
    if word == "{{ item.name }}":
        return "guests"
    (option,) = re.findall(r"'(--[a-z-]+=?)'", word)
    return f"{option}{PLACEHOLDERS[option]}" if option.endswith("=") else option


def options_of(verb: str, noun: str) -> set[str]:
    """Return the options of a command that are not global, by their long names."""
    parser = build_parser()
    everywhere = set(parser._option_string_actions)
    for word in (verb, noun):
        (nested,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = nested.choices[word]
    return {name for name in parser._option_string_actions if name.startswith("--")} - everywhere


def test_the_role_has_commands() -> None:
    assert sorted({" ".join(command[1:3]) for command in commands()}) == [
        "apply --json", "pool create", "pool list", "pool resize",
    ]  # fmt: skip


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_of_the_role_exists(command: list[str]) -> None:
    assert command[0] == "virt-dmem"
    assert build_parser().parse_args(command[1:]).json


def test_a_pool_can_have_every_option_of_pool_create() -> None:
    (create,) = (command for command in commands() if command[1:3] == ["pool", "create"])
    assert {word.partition("=")[0] for word in create if word.startswith("--")} - {"--json"} == (
        options_of("pool", "create") - NOT_OFFERED.keys()
    )


def test_every_variable_is_declared_with_its_default_and_described() -> None:
    defaults = loaded("defaults/main.yml")
    assert defaults.keys() == OPTIONS.keys()
    described = re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)
    assert set(described) == defaults.keys()
    own = {*loaded("vars/main.yml"), *(task["register"] for task in TASKS if "register" in task)}
    own |= {name for task in TASKS for name in task.get("vars", {})}
    used = {name for path in FILES for name in re.findall(r"\bvirt_dmem_\w+", path.read_text("utf-8"))}
    assert used == defaults.keys() | own


@pytest.mark.parametrize("kind", ["pools", "domains"])
def test_every_field_of_pools_and_domains_is_declared_and_used(kind: str) -> None:
    used = set(re.findall(r"\bitem\.(\w+)", (ROLE / f"tasks/{kind}.yml").read_text("utf-8")))
    assert used == OPTIONS[f"virt_dmem_{kind}"]["options"].keys()
    assert all(f"`{field}`" in GUIDE for field in used)


def test_the_role_never_destroys_a_pool_nor_forces_anything() -> None:
    assert not {word for command in commands() for word in command} & {"destroy", "drain", "--force", "--yes"}
