# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem rules``: what the rules decide about a domain, by its XML alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rig import nova
from tests.rig.answers import require_documented
from tests.rig.command_line import HOSTILE, run
from tests.rig.domain_documents import domain, metadata
from virt_dmem.errors import ExitStatus

RULES = """
[[adopt]]
rule = "nova"
flavor = "dmem.*"
pool = "guests"
[[adopt]]
domain = "vm"
unsuitable = "refuse"
"""
FILES = f"<memoryBacking>{nova.FILE_BACKED}</memoryBacking>"
INSTANCE = f"<metadata>{nova.metadata()}</metadata>"


@pytest.fixture
def config(nowhere: str) -> str:
    with Path(nowhere).open("a") as file:
        file.write(RULES)
    return nowhere


def rules(config: str, xml: bytes) -> dict[str, Any]:
    done = run("rules", "--json", "--config", config, stdin=xml)
    assert done.returncode == ExitStatus.DONE, done.stderr
    found: dict[str, Any] = require_documented(["rules"], done.stdout.decode())
    return found


def test_the_rule_that_takes_a_domain_is_shown_and_why_the_others_do_not(config: str) -> None:
    found = rules(config, domain(INSTANCE + FILES))
    assert (found["name"], found["outcome"], found["rule"], found["unsuitable"]) == ("vm", "adopted", "nova", "")
    assert "There is no pool 'guests'" in found["problem"]
    assert found["rules"] == [
        {"rule": "nova", "pool": "guests", "unsuitable": "ignore", "takes": True, "why_not": ""},
        {"rule": "2", "pool": "", "unsuitable": "refuse", "takes": False, "why_not": "rule nova comes before it"},
    ]
    shown = run("rules", "--config", config, stdin=domain(INSTANCE + FILES)).stdout.decode()
    assert shown.startswith("Rule nova takes vm: its memory comes from pool guests.\n\nRULE  POOL ")


@pytest.mark.parametrize(
    ("xml", "outcome", "sentence"),
    [
        (
            domain(INSTANCE),
            "ignored",
            "Rule nova takes vm, and it is left as it is, because its memory cannot come",
        ),
        (
            domain(),
            "refused",
            "Rule 2 takes vm, and its start is rejected, because its memory cannot come from a pool",
        ),
        (domain(metadata() + FILES), "own-request", "vm asks for pool memory itself: rules do not apply to it."),
        (domain(FILES).replace(b">vm<", b">x<"), "not-taken", "No rule takes x."),
    ],
    ids=["ignored", "refused", "own request", "not taken"],
)
def test_every_outcome_has_its_sentence(config: str, xml: bytes, outcome: str, sentence: str) -> None:
    assert rules(config, xml)["outcome"] == outcome
    assert run("rules", "--config", config, stdin=xml).stdout.decode().startswith(sentence)


def test_without_rules_that_is_said(nowhere: str) -> None:
    assert rules(nowhere, domain(FILES))["outcome"] == "not-taken"
    assert b"the configuration has none" in run("rules", "--config", nowhere, stdin=domain(FILES)).stdout


def test_what_is_no_domain_is_refused_and_a_hostile_name_is_shown_as_escapes(config: str) -> None:
    assert run("rules", "--config", config, stdin=b"<network/>").returncode == ExitStatus.FAILED
    name = "".join(letter for letter in HOSTILE if letter not in "\x1b\x7f")
    xml = domain(INSTANCE).replace(b">vm<", f">{name}<".encode())
    done = run("rules", "--config", config, stdin=xml)
    assert done.stdout.decode().replace("\n", "").isprintable()
    assert json.loads(run("rules", "--json", "--config", config, stdin=xml).stdout)["name"] == name
