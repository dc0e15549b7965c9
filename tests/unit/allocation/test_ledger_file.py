# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger's file survives a kill; a damaged one is set aside, one of a later version rejected."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Phase
from virt_dmem.allocation.plan import ExtentPlan, Plan
from virt_dmem.errors import LedgerError
from virt_dmem.pools.segment_id import SegmentId

PAGE = 2 << 20


def reserve(ledger: Ledger, uuid: str) -> None:
    extent = ExtentPlan("pc.ram", SegmentId("fast"), PAGE, PAGE, "bind", ((0, PAGE),))
    path = Path(f"/pools/fast/libvirt-{uuid}/pc.ram")
    ledger.reserve(Plan(uuid, uuid, (extent,)), {"pc.ram": path}, {(SegmentId("fast"), 0): 10 * PAGE})


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


@pytest.mark.parametrize("removed", [("",), ("", "-wal", "-shm"), ("directory",)])
def test_a_file_that_is_removed_is_written_again_with_all_that_was_recorded(
    tmp_path: Path, removed: tuple[str, ...]
) -> None:
    path = tmp_path / "state/ledger.sqlite"
    path.parent.mkdir()
    ledger = Ledger(path, "boot-1")
    reserve(ledger, "uuid-1")
    assert ledger.lost() == ""
    if removed == ("directory",):
        shutil.rmtree(path.parent)
    else:
        for suffix in removed:
            path.with_name(path.name + suffix).unlink()
    reserve(ledger, "uuid-2")
    assert ledger.lost() == "was removed"
    ledger.write_again()
    assert ledger.lost() == ""
    assert ledger.touched() >= {"uuid-1", "uuid-2"}
    reserve(ledger, "uuid-3")
    assert ledger.touched() >= {"uuid-3"}
    assert path.stat().st_mode & 0o777 == 0o600
    ledger.write_again()
    path.unlink()  # and once more
    ledger.write_again()
    again = Ledger(path, "boot-1")
    assert set(again.phases()) == {"uuid-1", "uuid-2", "uuid-3"}
    assert sorted(found.name for found in path.parent.iterdir()) == [
        "ledger.sqlite", "ledger.sqlite-shm", "ledger.sqlite-wal",
    ]  # fmt: skip


def test_one_that_cannot_be_written_again_stays_in_use_and_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state/ledger.sqlite"
    path.parent.mkdir()
    ledger = Ledger(path, "boot-1")
    reserve(ledger, "uuid-1")
    shutil.rmtree(path.parent)
    path.parent.write_text("no directory")
    with pytest.raises(LedgerError):
        ledger.write_again()
    reserve(ledger, "uuid-2")
    path.parent.unlink()
    path.parent.mkdir()
    path.write_text("somebody's")
    assert ledger.lost() == "was replaced by another file"
    ledger.write_again()
    assert path.read_text() == "somebody's"
    assert set(ledger.phases()) == {"uuid-1", "uuid-2"}
