# SPDX-License-Identifier: GPL-2.0-or-later
"""The progress bar."""

from __future__ import annotations

import pytest

from tests.rig.command_line import HOSTILE
from virt_dmem.cli.output import Output
from virt_dmem.cli.terminal.progress import progress


def test_progress_cannot_control_the_terminal_either(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("rich.progress.Progress.update", lambda *_, description, **__: shown.append(description))
    with progress(Output(as_json=False)) as report:
        report(f"attaching {HOSTILE}", 1, 2)
    assert shown[0].isprintable()


def test_without_a_terminal_long_work_has_a_line_from_time_to_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress(Output(as_json=False)) as report:
        report("Allocating huge pages", 1 << 30, 4 << 30)
    assert capsys.readouterr().err == "", "it is short"
    monkeypatch.setattr("virt_dmem.cli.terminal.progress.LINE_SECONDS", 0.0)
    with progress(Output(as_json=False)) as report:
        report("Allocating huge pages", 1 << 30, 4 << 30)
    assert capsys.readouterr().err == "virt-dmem: Allocating huge pages: 1 GiB of 4 GiB\n"
    with progress(Output(as_json=True)) as report:
        report("Allocating huge pages", 1 << 30, 4 << 30)
    assert capsys.readouterr().err == ""
