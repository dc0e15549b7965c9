# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem status``, with and without a daemon."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from tests.rig.answers import require_documented
from tests.rig.command_line import HOSTILE, Command, on_a_terminal
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.repository import REPOSITORY
from virt_dmem.cli.commands import status
from virt_dmem.cli.main import main
from virt_dmem.cli.output import Output
from virt_dmem.cli.terminal.screen import Screen
from virt_dmem.errors import ExitStatus
from virt_dmem.pools.backends.checks import Result, failed

MIB = 1 << 20


def pool(**more: Any) -> dict[str, Any]:
    sizes = {
        "capacity_bytes": 64 * MIB,
        "reserved_bytes": 32 * MIB,
        "free_bytes": 32 * MIB,
        "ready_bytes": 16 * MIB,
    }
    fixed = {"name": "guests", "backend": "hugetlbfs", "page_size": 2 * MIB, "state": "ready", "nodes": []}
    fixed["elastic"] = None
    return {**fixed, **sizes, **more}


def domain(name: str, size: int, phase: str = "running") -> dict[str, Any]:
    return {
        "name": name,
        "phase": phase,
        "reserved_bytes": size,
        "extents": [{"pool": "guests"}, {"pool": "guests"}],
    }


def shown(found: list[tuple[str, Result]] | None = None, **seen: Any) -> str:
    whole = {"pools": [], "domains": [], "alerts": [], **seen}
    return "\n".join(status._lines(whole, found or [], Screen("never"), Output(as_json=False)))


def test_a_pool_is_a_bar_with_its_sizes_and_one_for_each_node() -> None:
    half = {"capacity_bytes": 32 * MIB, "free_bytes": 0, "ready_bytes": 0}
    full, empty = {"reserved_bytes": 32 * MIB}, {"reserved_bytes": 0, "free_bytes": 32 * MIB}
    nodes = [{"node": 0, **half, **full}, {"node": 1, **half, **empty}]
    lines = shown(pools=[pool(nodes=nodes)]).splitlines()
    assert lines[1] == "  guests  hugetlbfs, pages of 2 MiB"
    assert re.fullmatch(r"    \[(#+)(\++)(·+)\] 32 MiB of 64 MiB used, 32 MiB free \(16 MiB pre-zeroed\)", lines[2])
    assert re.fullmatch(r"    \[#+\] 32 MiB of 32 MiB used, 0 B free on node 0", lines[3])
    assert re.fullmatch(r"    \[·+\] 0 B of 32 MiB used, 32 MiB free on node 1", lines[4])


def test_of_an_elastic_pool_the_bar_is_what_it_may_have() -> None:
    limits = {"max_bytes": 256 * MIB, "room_bytes": 128 * MIB}
    lines = shown(
        pools=[pool(elastic=limits), pool(elastic=limits, capacity_bytes=0, reserved_bytes=0)]
    ).splitlines()
    assert re.fullmatch(r"    \[##\+·+\] 32 MiB of 64 MiB used, 32 MiB free \(16 MiB pre-zeroed\)", lines[2])
    assert lines[3] == "    elastic: it may have 256 MiB, and take 128 MiB more now"
    assert "0 B of 0 B used" in lines[5]


def test_the_largest_domains_come_first_and_of_the_others_the_sum_is_shown() -> None:
    said = shown(domains=[domain(f"d{number:02}", number * MIB, "reserved") for number in range(1, 13)])
    assert "DOMAINS  12 with 78 MiB" in said
    assert re.findall(r"reserved  (d\d\d)  \(guests\)", said) == [f"d{number:02}" for number in range(12, 2, -1)]
    assert "     3 MiB  in 2 more" in said


def test_alerts_and_checks_are_shown_with_their_hints_and_nothing_of_them_is_interpreted() -> None:
    alert = {"code": "a-code", "message": f"It happened. {HOSTILE}", "hint": "Fix it."}
    said = shown([("hvo", failed(HOSTILE, "Repair it."))], alerts=[alert], domains=[domain(HOSTILE, MIB)])
    assert all(line.isprintable() for line in said.splitlines())
    assert re.search(r"  a-code\n      It happened\. .*\n      Fix it\.", said)
    assert re.search(r"  FAIL  hvo: .*\n        Repair it\.", said)


def test_what_is_well_is_said_in_a_word() -> None:
    said = shown()
    none = "  none; 'virt-dmem pool create' makes one"
    assert {none, "DOMAINS  none", "ALERTS  none", "CHECKS  all pass"} <= {*said.splitlines()}


@in_own_mount_namespace
def test_it_works_with_and_without_a_daemon(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["status", "--json", "--config", str(command.directory / "virt-dmem.toml")]
    with command.daemon():
        command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
        assert main(args) in (ExitStatus.DONE, ExitStatus.CHECK_FAILED)
        answer = require_documented(args, capsys.readouterr().out)
        assert answer["pools"] == command.json("pool", "list")["pools"]
        assert (answer["domains"], answer["alerts"]) == ([], [])
        assert {check["status"] for check in answer["checks"]} <= {"WARN", "FAIL"}
    assert main(args) == ExitStatus.CHECK_FAILED
    answer = require_documented(args, capsys.readouterr().out)
    assert answer["pools"][0]["capacity_bytes"] == 8 * MIB
    assert (answer["domains"], answer["alerts"]) == (None, None)
    assert "daemon" in [check["name"] for check in answer["checks"] if check["status"] == "FAIL"]
    command("pool", "destroy", "small")


@in_own_mount_namespace
def test_on_a_terminal_it_is_coloured_and_shown_again_until_interrupted(command: Command) -> None:
    config = ("--config", str(command.directory / "virt-dmem.toml"))
    assert b"\x1b[1mPOOLS\x1b[0m" in on_a_terminal("status", *config)
    arguments = [sys.executable, "-m", "virt_dmem.cli.main", "status", "--watch", "0.2", *config]
    with subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        screens = 0
        while screens < 3:
            screens += process.stdout.readline() == "POOLS\n"
        process.terminate()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--watch", "0"], "at least 0.2"), (["--watch", "nan"], "at least 0.2"), (["--watch", "--json"], "--json")],
)
def test_what_cannot_be_watched_is_a_usage_error(command: Command, arguments: list[str], why: str) -> None:
    assert why in command("status", *arguments, status=ExitStatus.USAGE)
