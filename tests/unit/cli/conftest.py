# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.command_line import Command


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, with a configuration of its own."""
    return Command(tmp_path, capsys)


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """A configuration under which no daemon runs and no pool exists."""
    file = tmp_path / "virt-dmem.toml"
    file.write_text(f'[daemon]\nrun_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"\n')
    return str(file)
