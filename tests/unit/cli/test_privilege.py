# SPDX-License-Identifier: GPL-2.0-or-later
"""Privileges that commands need."""

from __future__ import annotations

import pytest

from virt_dmem.cli.privilege import require_root
from virt_dmem.errors import PermissionRefused


def test_a_user_other_than_root_is_told_what_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(PermissionRefused, match="Creating a pool needs root"):
        require_root("Creating a pool")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    require_root("Creating a pool")
