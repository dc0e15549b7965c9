# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem check``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rig.answers import require_documented
from tests.rig.command_line import on_a_terminal
from virt_dmem.cli.main import main
from virt_dmem.errors import ExitStatus


def test_check_prints_as_documented_also_when_something_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "virt-dmem.toml").write_text(f'[daemon]\nrun_dir = "{tmp_path}"\nstate_dir = "{tmp_path}"\n')
    args = ["check", "--json", "-c", "test:///default", "--config", str(tmp_path / "virt-dmem.toml")]
    assert main(args) in (ExitStatus.DONE, ExitStatus.CHECK_FAILED)
    assert require_documented(args, capsys.readouterr().out)["checks"]


def test_what_passed_comes_first_then_what_is_wrong_with_hints_then_a_summary(
    nowhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "-c", "test:///default", "--config", nowhere]) == ExitStatus.CHECK_FAILED
    *lines, blank, summary = capsys.readouterr().out.splitlines()
    words = [line.split("  ")[0] for line in lines]
    assert set(words) == {"PASS", "WARN", "FAIL", ""}
    assert "PASS" not in words[words.index("") :]
    daemon = next(at for at, line in enumerate(lines) if line.startswith("FAIL  daemon: "))
    assert lines[daemon + 1] == "      alerts: Which alerts are active is not known: only virt-dmemd has them."
    assert lines[daemon + 2].startswith("      Start it with ")
    assert blank == ""
    assert re.fullmatch(r"\d+ checks: \d+ passed, \d+ warnings?, \d+ failed\.", summary)


def test_only_what_failed_can_be_shown(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["check", "--failed", "-c", "test:///default", "--config", nowhere]
    assert main(args) == ExitStatus.CHECK_FAILED
    said = capsys.readouterr().out
    assert "FAIL  daemon" in said
    assert "PASS" not in said
    assert "WARN" not in said
    assert main([*args, "--json"]) == ExitStatus.CHECK_FAILED
    answer = require_documented([*args, "--json"], capsys.readouterr().out)
    assert {check["status"] for check in answer["checks"]} == {"FAIL"}


def test_on_a_terminal_it_is_wrapped_and_coloured(nowhere: str) -> None:
    said = on_a_terminal("check", "-c", "test:///default", "--config", nowhere).decode()
    assert "\x1b[31mFAIL\x1b[0m  daemon: " in said
    assert max(len(line) for line in re.sub(r"\x1b\[\d+m", "", said).splitlines()) <= 100
