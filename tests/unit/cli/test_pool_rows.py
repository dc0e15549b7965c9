# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools as rows: from virt-dmemd, or from their records."""

from __future__ import annotations

import os
import tempfile
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
