# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections beyond the limits are rejected or wait, and all others are served. A real virt-dmemd, no libvirt."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rig.processes import wait_for
from tests.unit.ipc.conftest import LIST, Daemon, running, wait_until_it_answers
from virt_dmem.errors import DaemonUnreachable
from virt_dmem.ipc.client import Client
from virt_dmem.ipc.server import CONNECTIONS


def test_more_callers_than_there_is_room_for_are_turned_away_and_the_others_served(daemon: Daemon) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(Client(daemon.path))
        first.call("ListPools")
        crowd = [stack.enter_context(daemon.connect()) for _ in range(CONNECTIONS + 20)]
        with pytest.raises(DaemonUnreachable), Client(daemon.path) as late:
            late.call("ListPools")
        assert first.call("ListPools") == {"pools": []}
        assert crowd
    wait_until_it_answers(daemon)


def test_callers_waiting_at_the_read_only_socket_do_not_keep_root_out(daemon: Daemon) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # more than can wait
    os.kill(daemon.process.pid, signal.SIGSTOP)
    with ExitStack() as crowd:
        try:
            with pytest.raises(BlockingIOError):
                for _ in range(10_000):
                    one = crowd.enter_context(socket.socket(socket.AF_UNIX))
                    one.setblocking(False)
                    one.connect(f"{daemon.path}-ro")
            root = crowd.enter_context(daemon.connect())
            root.sendall(LIST)
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        assert json.loads(root.recv(4096).rstrip(b"\0")) == {"parameters": {"pools": []}}
    wait_until_it_answers(daemon)


def test_without_file_descriptors_it_waits_and_comes_back(tmp_path: Path) -> None:
    with running(tmp_path, open_files=40) as daemon:
        with ExitStack() as stack:
            first = stack.enter_context(Client(daemon.path))
            for _ in range(30):
                stack.enter_context(daemon.connect())
            assert first.call("ListPools") == {"pools": []}
            wait_for("a second in which it does not spin", lambda: cpu_seconds_of_next(daemon) < 0.3)
            assert first.call("ListPools") == {"pools": []}
        wait_until_it_answers(daemon)
        assert daemon.log.read_text().count("\n") < 100
        assert "Traceback" not in daemon.log.read_text()


def cpu_seconds_of_next(daemon: Daemon) -> float:
    """Return the CPU time that it takes in the second from now on."""
    used = cpu_seconds(daemon)
    time.sleep(1)
    return cpu_seconds(daemon) - used


def cpu_seconds(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
