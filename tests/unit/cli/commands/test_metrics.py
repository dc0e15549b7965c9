# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem metrics``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from tests.rig.command_line import run
from virt_dmem.cli.main import main


class Daemon:
    """A fake of virt-dmemd."""

    def call(self, _: str) -> dict[str, Any]:
        return {"text": "# HELP a b\na 1\n"}


def test_metrics_are_printed_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr("virt_dmem.cli.daemon.connect", lambda *_, **__: nullcontext(Daemon()))
    assert main(["metrics"]) == 0
    assert capfdbinary.readouterr().out == b"# HELP a b\na 1\n"


def test_without_a_daemon_there_are_none(nowhere: str) -> None:
    done = run("metrics", "--config", nowhere)
    assert (done.returncode, done.stdout) == (4, b"")
