# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine that the tests of this directory check."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.checked_machine import bare_machine
from virt_dmem.monitoring.checks.base import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine on which nothing of virt-dmem is installed."""
    return bare_machine(tmp_path)
