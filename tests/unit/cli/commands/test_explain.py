# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem explain``."""

from __future__ import annotations

import pytest

from tests.rig.command_line import error_codes
from virt_dmem.cli.main import main
from virt_dmem.errors import ExitStatus


@pytest.mark.parametrize("code", error_codes())
def test_every_code_is_explained(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", code]) == ExitStatus.DONE
    assert len(capsys.readouterr().out) > 30
