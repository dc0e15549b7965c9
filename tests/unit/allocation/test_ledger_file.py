# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger's file survives a kill; a damaged one is set aside, one of a later version rejected."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Phase
from virt_dmem.errors import LedgerError

PAGE = 2 << 20


def test_what_was_committed_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    program = f"""
        import os, signal
        from pathlib import Path
        from virt_dmem.allocation.ledger import Ledger
        from virt_dmem.allocation.models import Phase
        from virt_dmem.allocation.plan import ExtentPlan, Plan
        ledger = Ledger(Path({str(path)!r}), "boot-1")
        path = Path("/pools/fast/libvirt-uuid-1/pc.ram")
        extent = ExtentPlan("pc.ram", "fast", {PAGE}, {PAGE}, "bind", ((0, {PAGE}),))
        ledger.reserve(Plan("uuid-1", "guest1", (extent,)), {{"pc.ram": path}}, {{("fast", 0): {PAGE}}})
        ledger.set_phase("uuid-1", Phase.PREPARED)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    again = Ledger(path, "boot-1")
    found = again.find("uuid-1")
    assert found is not None
    assert found.phase is Phase.PREPARED
    assert {uuid: change[:2] for uuid, change in again.phases().items()} == {
        "uuid-1": (Phase.PREPARED, found.since)
    }


def test_a_file_that_is_no_ledger_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content := os.urandom(8192))
    ledger = Ledger(path, "boot-1")
    assert list(ledger.reservations()) == []
    assert Path(ledger.damaged_file()).read_bytes() == content


def test_a_ledger_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="version 99"):
        Ledger(path, "boot-1")
