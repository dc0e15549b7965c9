# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem check``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.answers import require_documented
from virt_dmem.cli.main import main
from virt_dmem.errors import ExitStatus


def test_check_prints_as_documented_also_when_something_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "virt-dmem.toml").write_text(f'[daemon]\nrun_dir = "{tmp_path}"\nstate_dir = "{tmp_path}"\n')
    args = ["check", "--json", "-c", "test:///default", "--config", str(tmp_path / "virt-dmem.toml")]
    assert main(args) in (ExitStatus.DONE, ExitStatus.CHECK_FAILED)
    assert require_documented(args, capsys.readouterr().out)["checks"]


def test_every_check_is_a_line_with_its_hint_below(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", "test:///default", "--config", nowhere]) == ExitStatus.CHECK_FAILED
    lines = capsys.readouterr().out.splitlines()
    assert {line.split("  ")[0] for line in lines} == {"PASS", "WARN", "FAIL", ""}
    assert next(line for line in lines if line.startswith("FAIL  daemon: "))
