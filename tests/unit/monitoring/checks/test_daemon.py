# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of virt-dmemd and its helper."""

from __future__ import annotations

import pytest

from tests.rig.fake_tree import put
from virt_dmem.config.schema import Config, PrefaultConfig
from virt_dmem.monitoring.checks import daemon
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools.backends.checks import Status


def test_the_group_is_looked_for(machine: Machine) -> None:
    assert daemon.group(machine).hint == "groupadd --system virt-dmem"
    put(machine.root / "etc/group", "virt-dmem:x:998:\n")
    assert daemon.group(machine).status is Status.PASS


@pytest.mark.parametrize("program", ["/nonexistent", "/bin/false"])
def test_a_helper_that_does_not_run_is_a_fault(program: str) -> None:
    assert daemon.helper(Machine(Config(prefault=PrefaultConfig(helper=program)), "")).status is Status.FAIL
