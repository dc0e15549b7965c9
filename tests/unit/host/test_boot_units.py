# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a pool comes back at boot is read from the links of its unit, and changed by systemctl alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from virt_dmem.errors import PoolError
from virt_dmem.host import boot_units


def test_a_unit_that_a_target_wants_is_enabled_whether_its_file_is_there_or_not(tmp_path: Path) -> None:
    assert boot_units.is_enabled("guests", root=tmp_path) is None, "no systemd"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert boot_units.is_enabled("guests", root=tmp_path) is False
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "virt-dmem-pool@guests.service").symlink_to("/nonexistent")
    assert boot_units.is_enabled("guests", root=tmp_path) is True
    assert boot_units.is_enabled("guest", root=tmp_path) is False


@pytest.mark.parametrize(
    ("script", "said"),
    [("exit 0", ""), ("echo Unit is masked. >&2; exit 1", "boot: Unit is masked."), ("exit 4", "exited with 4")],
)
def test_what_systemctl_says_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    """systemctl is a fake that notes its arguments."""
    fake = tmp_path / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{script}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if said:
        with pytest.raises(PoolError, match=said) as caught:
            boot_units.enable("guests")
        assert "systemctl enable virt-dmem-pool@guests.service" in caught.value.hint
    else:
        boot_units.enable("guests")
    assert (tmp_path / "asked").read_text() == "enable virt-dmem-pool@guests.service\n"
