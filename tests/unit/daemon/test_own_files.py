# SPDX-License-Identifier: GPL-2.0-or-later
"""A ledger whose file is removed under virt-dmemd is there again, and told of. A real virt-dmemd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rig.processes import wait_for
from tests.unit.ipc.conftest import running
from virt_dmem.ipc.client import Client

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="no other user may call virt-dmemd")


def alerts(path: Path) -> list[dict[str, str]]:
    with Client(path) as client:
        found: list[dict[str, str]] = client.call("ListAlerts")["alerts"]
    return [alert for alert in found if alert["code"] == "ledger-lost"]


def test_a_ledger_that_was_removed_is_there_again_and_another_file_is_left_alone(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        (ledger,) = tmp_path.rglob("ledger.sqlite")
        ledger.unlink()
        (alert,) = wait_for("the alert", lambda: alerts(daemon.path))
        assert ledger.exists()
        assert alert["subject"] == str(ledger)
        assert "was removed" in alert["message"]
        assert "put that right at once" in alert["message"]
        other = ledger.with_name("other")
        other.write_text("somebody's")
        other.rename(ledger)
        wait_for("the alert", lambda: "replaced by another file" in alerts(daemon.path)[0]["message"])
        assert ledger.read_text() == "somebody's"
