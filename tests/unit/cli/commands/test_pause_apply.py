# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pause-apply``, ``alerts`` and ``metrics`` of a paused daemon."""

from __future__ import annotations

from tests.rig.command_line import Command


def test_a_pause_is_an_alert_until_it_is_resumed(command: Command) -> None:
    with command.daemon():
        assert command("pause-apply", "--for", "1h") == "Automatic apply paused.\n"
        (alert,) = command.json("alerts")["alerts"]
        assert alert["code"] == "apply-paused"
        assert command("pause-apply", "--resume") == "Automatic apply resumed.\n"
        assert command("alerts") == "No active alerts.\n"
