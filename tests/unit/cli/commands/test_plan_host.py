# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem plan-host``: what is printed. tests/unit/pools/test_host_planning.py has the plans."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from tests.rig.command_line import Command
from virt_dmem.cli.commands import plan_host
from virt_dmem.cli.output import Output
from virt_dmem.errors import ExitStatus
from virt_dmem.host.ram import boot_reservation


def test_one_kind_of_memory_is_recommended_with_how_to_get_it(command: Command) -> None:
    first, *lines = command("plan-host", "--guest-memory", "1G").splitlines()
    assert first.startswith("Recommended here: ")
    assert len([line for line in lines if line.startswith("  kernel command line:")]) == 1
    assert len([line for line in lines if line.startswith("  then:")]) == 1
    assert "device-dax" not in "".join(lines)


def test_text_fits_the_terminal_and_what_is_to_be_copied_stays_in_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = command("plan-host", "--guest-memory", "1G", "--all").splitlines()
    wide = [line for line in lines if len(line) > 60]
    assert all(re.match(r"  (kernel command line|then): |BACKEND |\w+ +\d", line) for line in wide), wide


def test_all_kinds_are_compared_on_request_below_the_recommendation(command: Command) -> None:
    said = command("plan-host", "--guest-memory", "1G", "--all")
    assert said.startswith(command("plan-host", "--guest-memory", "1G").partition("\n\n")[0])
    assert re.search(r"\nBACKEND +PAGES +GROSS", said)
    assert said.count("  kernel command line:") == 1 + len(
        command.json("plan-host", "--guest-memory", "1G")["options"]
    )
    table = command("plan-host", "--guest-memory", "1G", "-o", "backend,here").splitlines()
    assert [line.split()[0] for line in table] == ["BACKEND", "tmpfs", "hugetlbfs", "hugetlbfs", "dmemfs"]


def test_without_a_size_there_is_no_plan(command: Command) -> None:
    assert "total memory of all guests is missing" in command("plan-host", status=ExitStatus.USAGE)


def test_what_would_be_written_for_grub_is_said_first(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GRUB's directory is another one, and the addresses are those of no host."""
    drop_in = command.directory / "grub.d/virt-dmem.cfg"
    monkeypatch.setattr(boot_reservation, "GRUB_DROP_IN", drop_in)
    out = Output(as_json=False)
    args: Any = SimpleNamespace(dry_run=True, yes=False, remove_grub=True, all=True, output=None)
    option: Any = SimpleNamespace(backend="dmemfs", kernel_command_line="memmap=1G$4G")
    assert plan_host._write_grub(args, [option], out) is None
    assert f"Would write {drop_in}, which adds to the kernel command line: memmap=1G$4G" in capsys.readouterr().err
    assert not drop_in.exists()
    drop_in.parent.mkdir()
    drop_in.touch()
    assert plan_host.run(args, out) == ExitStatus.DONE
    assert "Would remove" in capsys.readouterr().err
    assert drop_in.exists()
