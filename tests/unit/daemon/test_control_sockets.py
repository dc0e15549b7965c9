# SPDX-License-Identifier: GPL-2.0-or-later
"""A control socket whose file is gone is created again; one that was replaced is an alert. A real virt-dmemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.processes import wait_for
from tests.rig.repository import REPOSITORY
from tests.unit.ipc.conftest import running
from virt_dmem.errors import DmemError
from virt_dmem.ipc.client import Client

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="no other user may call virt-dmemd")


def alerts(path: Path) -> list[dict[str, str]] | None:
    """Return the alerts; ``None`` while it cannot be reached."""
    try:
        with Client(path) as client:
            found: list[dict[str, str]] = client.call("ListAlerts")["alerts"]
    except DmemError:
        return None
    return [alert for alert in found if alert["code"] == "control-socket-gone"]


@pytest.mark.parametrize("removed", ["sock", "sock-ro", "both", "directory"])
def test_a_socket_that_was_removed_is_there_again_and_told_of(tmp_path: Path, removed: str) -> None:
    with running(tmp_path) as daemon:
        mine = daemon.connect()
        readers = Path(f"{daemon.path}-ro")
        mode = readers.stat().st_mode
        gone = [path for path in (daemon.path, readers) if removed in (path.name, "both", "directory")]
        for path in gone:
            path.unlink()
        if removed == "directory":
            for path in daemon.path.parent.iterdir():
                path.unlink()
            daemon.path.parent.rmdir()
        found = wait_for("the sockets", lambda: all(path.exists() for path in gone) and alerts(daemon.path))
        assert sorted(alert["subject"] for alert in found) == sorted(map(str, gone))
        assert all(
            "is gone: " in alert["message"] and "put that right at once" in alert["message"] for alert in found
        )
        assert readers.stat().st_mode == mode
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(readers))
        mine.sendall(b'{"method":"dev.virt-dmem.ListPools"}\0')
        assert b'"pools"' in mine.recv(4096), "who was connected is still served"
        mine.close()


def test_another_file_in_its_place_is_left_alone_and_told_of(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        readers = Path(f"{daemon.path}-ro")
        kept = readers.with_name("kept")
        readers.rename(kept)
        with socket.socket(socket.AF_UNIX) as another:
            another.bind(str(readers))
            (alert,) = wait_for("the alert", lambda: alerts(daemon.path))
            assert alert["subject"] == str(readers)
            assert "was replaced by another file: only root reaches virt-dmemd" in alert["message"]
            assert "'systemctl restart virt-dmemd.socket'" in alert["hint"]
            kept.rename(readers)
        wait_for("the end of the alert", lambda: alerts(daemon.path) == [])


def test_a_socket_of_systemd_whose_file_was_removed_before_the_start_is_replaced(tmp_path: Path) -> None:
    """As systemd does it: listens itself, and passes the socket as descriptor 3."""
    path = tmp_path / "run/sock"
    path.parent.mkdir()
    config = tmp_path / "virt-dmem.toml"
    config.write_text(
        f'[daemon]\nrun_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"\n[libvirt]\nuri = "test:///default"\n'
    )
    start = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
        "os.execv(sys.executable, [sys.executable, '-m', 'virt_dmem.daemon.main', '--config', sys.argv[2]])"
    )
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(path))
        passed.listen()
        for removed in (False, True):
            inode = path.stat().st_ino
            if removed:
                path.unlink()
            command = [sys.executable, "-c", start, str(passed.fileno()), str(config)]
            with subprocess.Popen(command, cwd=REPOSITORY, pass_fds=[passed.fileno()]) as process:
                try:
                    wait_for("virt-dmemd", lambda: path.exists() and alerts(path) == [])
                    assert (path.stat().st_ino == inode) is not removed
                finally:
                    process.terminate()
