# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem plan-host``: what is printed. tests/unit/pools/test_host_planning.py has the plans."""

from __future__ import annotations

from tests.rig.command_line import Command
from virt_dmem.errors import ExitStatus


def test_one_kind_of_memory_is_recommended_with_how_to_get_it(command: Command) -> None:
    said = command("plan-host", "--guest-memory", "1G", "-o", "backend,here")
    assert said.splitlines()[0].split() == ["BACKEND", "HERE"]
    assert said.count(": recommended here\n") == 1
    assert "kernel command line:" in said


def test_without_a_size_there_is_no_plan(command: Command) -> None:
    assert "total memory of all guests is missing" in command("plan-host", status=ExitStatus.USAGE)
