# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests of rewritten domains are kept in files, and nothing else is touched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.allocation.remembered import Remembered

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


def test_a_request_is_kept_replaced_and_forgotten(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path / "state")
    assert (remembered.find(UUID), remembered.uuids()) == (b"", set())
    remembered.keep(UUID, b"<first/>")
    remembered.keep(UUID, b"<second/>")
    assert (remembered.find(UUID), remembered.uuids()) == (b"<second/>", {UUID})
    file = tmp_path / "state/applied" / UUID
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    remembered.forget(UUID)
    remembered.forget(UUID)
    assert (remembered.find(UUID), remembered.uuids()) == (b"", set())


@pytest.mark.parametrize("uuid", ["", ".", "..", "../ledger.sqlite", f"{UUID}/x", UUID.upper(), f"{UUID}\n"])
def test_a_name_that_is_no_uuid_leads_nowhere(tmp_path: Path, uuid: str) -> None:
    (tmp_path / "ledger.sqlite").write_text("precious")
    remembered = Remembered(tmp_path)
    remembered.keep(uuid, b"x")
    remembered.forget(uuid)
    assert remembered.find(uuid) == b""
    assert (tmp_path / "ledger.sqlite").read_text() == "precious"


def test_what_cannot_be_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "applied").write_text("no directory")
    remembered = Remembered(tmp_path)
    with pytest.raises(OSError, match=f"applied/{UUID}"):
        remembered.keep(UUID, b"x")
    assert remembered.uuids() == set()
    (tmp_path / "applied").unlink()
    (tmp_path / "applied" / UUID).mkdir(parents=True)
    with pytest.raises(OSError, match=f"applied/{UUID}"):
        remembered.forget(UUID)


@in_own_mount_namespace
def test_on_a_read_only_file_system_what_is_not_remembered_is_forgotten(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path)
    remembered.keep(UUID, b"x")
    subprocess.run(["mount", "--bind", str(tmp_path), str(tmp_path)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(tmp_path)], check=True)
    remembered.forget(UUID.replace("c", "d"))
    remembered.keep(UUID, b"x")
    with pytest.raises(OSError, match="Read-only"):
        remembered.forget(UUID)
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_request_as_large_as_a_document_is_not_kept(tmp_path: Path) -> None:
    Remembered(tmp_path).keep(UUID, b"x" * (1 << 20))
    assert Remembered(tmp_path).find(UUID) == b""
