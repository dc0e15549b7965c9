# SPDX-License-Identifier: GPL-2.0-or-later
"""When a unit was reloaded, with a stand-in for systemctl; ``tests/lab/test_installation`` asks a real one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from virt_dmem.host.unit_state import reloaded_at


@pytest.mark.parametrize(
    ("says", "is_known"),
    [
        ("MainPID=7\\nStateChangeTimestampMonotonic={}", True),
        ("MainPID=8\\nStateChangeTimestampMonotonic={}", False),
        ("MainPID=7\\nStateChangeTimestampMonotonic=", False),
        ("", False),
    ],
)
def test_the_time_is_that_of_the_unit_with_this_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, is_known: bool
) -> None:
    answer = says.format(int(time.monotonic() * 1e6))
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\n[ \"$4\" = libvirtd.service ] && printf '{answer}\\n'\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = reloaded_at("libvirtd.service", 7)
    assert found == (pytest.approx(time.time(), abs=60) if is_known else None)


def test_without_systemd_it_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reloaded_at("libvirtd.service", 7) is None
