# SPDX-License-Identifier: GPL-2.0-or-later
"""virt-dmem-pages as a process: its own socket, an orderly end, and what it is given by systemd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.elastic_records import elastic_record
from tests.rig.pool_records import write_record
from tests.rig.processes import answers, wait_for
from tests.rig.repository import REPOSITORY
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.page_service.main import main
from virt_dmem.pools import registry

COMMAND = [sys.executable, "-m", "virt_dmem.page_service.main"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the records of pools are root's")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))
    text = f'[daemon]\nstate_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n'
    (tmp_path / "config").write_text(text)
    return config


def test_it_undoes_what_was_left_listens_for_root_only_and_ends_when_told(config: Config, tmp_path: Path) -> None:
    write_record(config, elastic_record(config, "p+1", {0: 2 << 20}, boot_id="another"))
    process = subprocess.Popen([*COMMAND, "--config", tmp_path / "config"], cwd=REPOSITORY)
    try:
        wait_for("its socket", lambda: answers(config.pages_socket_path))
        assert registry.records(config) == []
        assert config.pages_socket_path.stat().st_mode & 0o777 == 0o600
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_configuration_that_cannot_be_read_is_an_error_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config").write_text("what\n")
    assert main(["--config", str(tmp_path / "config")]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_systemds_socket_is_used_and_the_service_ends_when_idle(config: Config, tmp_path: Path) -> None:
    """Started as systemd does: descriptor 3 listens, and LISTEN_PID is its own."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        code = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); \n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
            "from virt_dmem.page_service import main as module\n"
            "module.IDLE_SECONDS = 0.1\n"
            "sys.exit(module.main(['--config', sys.argv[2]]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(listener.fileno()), tmp_path / "config"],
            pass_fds=[listener.fileno()], cwd=REPOSITORY, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0
    assert not config.pages_socket_path.exists()
