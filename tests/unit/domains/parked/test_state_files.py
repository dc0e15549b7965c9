# SPDX-License-Identifier: GPL-2.0-or-later
"""State files are for root alone, and are looked at before a domain is restored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.hypervisor.test_saved_state import saved
from virt_dmem.allocation.models import Extent, ExtentState, Parked, ParkedStep, Phase, Reservation
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.domains.parked import state_files
from virt_dmem.errors import DomainParked, DomainRefused
from virt_dmem.pools.segment_id import SegmentId


def parked(directory: Path) -> tuple[Reservation, Parked]:
    extent = Extent(
        id=1, uuid="uuid", alias="ram", segment=SegmentId("p"), path=directory / "ram", size_bytes=4096,
        page_size=4096, policy="none", state=ExtentState.POPULATED, boot_id="b", link="", shares={-1: 4096},
    )  # fmt: skip
    held = Reservation("uuid", "guest", "b", Phase.PARKED, 0.0, (extent,))
    return held, Parked("uuid", ParkedStep.PARKED, directory / "uuid.state", 0.0)


def test_a_guest_is_restored_only_from_a_complete_file_and_with_all_its_memory(tmp_path: Path) -> None:
    held, record = parked(tmp_path)
    with pytest.raises(DomainParked, match="does not exist, or is not complete; its memory of 4 KiB is kept"):
        state_files.require_state(held, record)
    record.state_file.write_bytes(saved())
    with pytest.raises(DomainParked, match="ram of domain guest, which is parked, is gone: its memory is lost"):
        state_files.require_state(held, record)
    (tmp_path / "ram").write_bytes(bytes(4095))
    with pytest.raises(DomainParked, match="is smaller than it was"):
        state_files.require_state(held, record)
    (tmp_path / "ram").write_bytes(bytes(4096))
    assert state_files.require_state(held, record).was_running


def test_state_files_are_for_root_alone(tmp_path: Path) -> None:
    file = state_files.file_of(Config(daemon=DaemonConfig(state_dir=str(tmp_path))), "uuid")
    assert file == tmp_path / "parked/uuid.state"
    state_files.require_room(file.parent)
    assert file.parent.stat().st_mode & 0o777 == 0o700
    file.write_bytes(b"")
    file.chmod(0o644)
    state_files.secure(file)
    assert file.stat().st_mode & 0o777 == 0o600
    state_files.secure(tmp_path / "missing")


def test_too_little_room_is_refused_before_the_guest_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DomainRefused, match="has 1 MiB left"):
        state_files.require_room(tmp_path / "parked")


def test_a_file_whose_guest_did_not_go_on_gets_its_name_back(tmp_path: Path) -> None:
    file = tmp_path / "uuid.state"
    state_files.put_back(file)
    state_files.past_of(file).write_text("saved")
    state_files.put_back(file)
    assert file.read_text() == "saved"
    state_files.past_of(file).write_text("older")
    state_files.put_back(file)
    assert file.read_text() == "saved"
