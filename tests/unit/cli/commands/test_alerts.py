# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem alerts``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from tests.rig.command_line import Command


class Daemon:
    """A fake of virt-dmemd."""

    def call(self, _: str) -> dict[str, Any]:
        return {
            "alerts": [{"code": "a-code", "subject": "p", "message": "It happened.", "hint": "Fix it.", "since": 0}]
        }


def test_an_alert_is_a_line_with_its_hint_below(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virt_dmem.cli.daemon.connect", lambda *_, **__: nullcontext(Daemon()))
    first, second = command("alerts").splitlines()
    assert first.startswith("a-code since 19")
    assert first.endswith(": It happened.")
    assert second == "      Fix it."
