# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools as rows: from virt-dmemd, or from their records."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from virt_dmem.cli.main import main
from virt_dmem.errors import ExitStatus


def test_records_that_are_hidden_from_the_caller_are_no_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:  # pytest's own directory is hidden as a whole
        Path(directory).chmod(0o755)
        records = Path(directory) / "state/pools"
        records.mkdir(parents=True)
        config = Path(directory) / "virt-dmem.toml"
        config.write_text(f'[daemon]\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n')
        main(["savings", "--config", str(config)])  # imports what it needs while it may
        records.chmod(0)
        capsys.readouterr()
        if os.getuid() == 0:
            os.seteuid(65534)
        try:
            for args in (["savings"], ["pool", "list"]):
                assert main([*args, "--config", str(config)]) == ExitStatus.FAILED
                assert "Permission denied" in capsys.readouterr().err
            for args in (["create", "p", "--size", "1G"], ["destroy", "p"], ["mount", "p"]):
                assert main(["pool", *args, "--config", str(config)]) == ExitStatus.FAILED
                assert "needs root" in capsys.readouterr().err
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            records.chmod(0o700)


def test_who_may_not_ask_the_daemon_is_told_so_not_that_a_file_is_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root: to become another user")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        Path(directory).chmod(0o755)
        for name in ("sock", "sock-ro"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{directory}/{name}")
            Path(directory, name).chmod(0o600)
        config = Path(directory) / "virt-dmem.toml"
        config.write_text(f'[daemon]\nrun_dir = "{directory}"\nstate_dir = "{directory}/state"\n')
        commands = [["pool", "list", "--config", str(config)], ["list", "--config", str(config)]]
        for command in commands:
            main(command)  # imports what it needs while it may
        capsys.readouterr()
        os.seteuid(65534)
        try:
            for command in commands:
                assert main(command) == ExitStatus.FAILED
                said = capsys.readouterr().err
                assert said.startswith("virt-dmem: You may not connect to virt-dmemd")
                assert said.endswith("[daemon-denied]\n")
        finally:
            os.seteuid(0)
