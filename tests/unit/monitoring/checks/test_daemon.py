# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of virt-dmemd and its helper."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.command_line import Command
from tests.rig.fake_tree import put
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.config.schema import Config, PrefaultConfig, load_config
from virt_dmem.monitoring.checks import daemon
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.monitoring.checks.suite import CHECKS
from virt_dmem.pools.backends.checks import Status


def test_the_group_is_looked_for(machine: Machine) -> None:
    assert daemon.group(machine).hint == "groupadd --system virt-dmem"
    put(machine.root / "etc/group", "virt-dmem:x:998:\n")
    assert daemon.group(machine).status is Status.PASS


@in_own_mount_namespace
def test_a_configuration_that_is_not_in_force_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(tmp_path, capsys)
    file = command.directory / "virt-dmem.toml"
    with command.daemon():
        assert daemon.daemon(Machine(load_config(file), "")).status is Status.PASS
        file.write_text(f"{file.read_text()}[metrics]\n# nothing new\n")
        assert daemon.daemon(Machine(load_config(file), "")).status is Status.PASS
        file.write_text(f'{file.read_text()}[[adopt]]\ndomain = "lab-*"\n')
        result = daemon.daemon(Machine(load_config(file), ""))
    assert (result.status, "changed since it was started" in result.message) == (Status.WARN, True)


def test_alerts_of_which_another_check_tells_are_of_its_cause() -> None:
    assert daemon._cause({"pool-mount-changed", "hvo-switched-off"}) == "host-unchanged"
    assert daemon._cause({"pool-mount-changed", "libvirt-unreachable"}) == ""
    assert daemon._cause({"memory-failed"}) == ""
    assert set(daemon._FOUND_BY.values()) <= {check.name for check in CHECKS}


@pytest.mark.parametrize("program", ["/nonexistent", "/bin/false"])
def test_a_helper_that_does_not_run_is_a_fault(program: str) -> None:
    assert daemon.helper(Machine(Config(prefault=PrefaultConfig(helper=program)), "")).status is Status.FAIL
