# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem list``."""

from __future__ import annotations

import json

import pytest

from tests.rig.command_line import Command
from virt_dmem.cli.main import main
from virt_dmem.errors import ExitStatus


def test_nothing_applied_is_an_empty_list(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "list", "--applied", "-c", "test:///default", "--config", nowhere]) == ExitStatus.DONE
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "domains": []}


def test_domains_are_listed_by_the_daemon(command: Command) -> None:
    with command.daemon():
        assert command.json("list") == {"domains": []}
        assert command("list").split() == ["NAME", "PHASE", "RESERVED", "POOLS", "UUID"]
        assert command.json("list", "--applied") == {"domains": []}


def test_only_with_applied_is_there_a_column_that_only_libvirt_can_fill(command: Command) -> None:
    assert "ACTIVE" in command("list", "--applied").split()
    with command.daemon():
        for options in (["-o", "name,active"], ["--sort", "size"], ["--filter", "HOTPLUG-MAX>=1G"]):
            assert "requires --applied" in command("list", *options, status=ExitStatus.USAGE)
