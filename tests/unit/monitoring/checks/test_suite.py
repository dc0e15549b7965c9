# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of checks, run over a fake tree and this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from virt_dmem.cli.main import main
from virt_dmem.monitoring.checks import suite
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.monitoring.checks.suite import CHECKS
from virt_dmem.pools.backends.checks import Status


def test_a_check_that_cannot_look_does_not_stop_the_others(machine: Machine) -> None:
    (machine.root / "etc/group").unlink()
    found = {check.name: result for check, result in suite.run(machine)}
    assert list(found) == [check.name for check in CHECKS]
    assert found["group"].status is Status.WARN
    assert "etc/group" in found["group"].message
    assert found["daemon"].status is Status.FAIL
    assert found["libvirt"].status is Status.PASS
    assert all(result.hint for result in found.values() if result.status is not Status.PASS)


def test_this_machine_is_checked_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "virt-dmem.toml"
    config.write_text(f'[daemon]\nrun_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"\n')
    arguments = ["check", "--config", str(config), "--connect", "test:///default"]
    assert main(arguments) == 3
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    found = {item["name"]: item["status"] for item in answer["checks"]}
    assert list(found) == [check.name for check in CHECKS]
    assert (found["libvirt"], found["helper"], found["daemon"]) == ("PASS", "PASS", "FAIL")
