# SPDX-License-Identifier: GPL-2.0-or-later
"""A real virt-dmemd without libvirt, for the tests of its control socket."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rig.repository import REPOSITORY
from virt_dmem.errors import DaemonUnreachable, DmemError
from virt_dmem.ipc.client import Client

MIB = 1 << 20
INTERFACE = "dev.virt-dmem"
LIST = json.dumps({"method": f"{INTERFACE}.ListPools"}).encode() + b"\0"


class Daemon:
    """A virt-dmemd in a directory of its own."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = directory / "run/sock"
        self.log = directory / "log"
        self.process = process

    def connect(self) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(60)
        caller.connect(str(self.path))
        return caller

    def require_answer(self) -> None:
        """Verify that it answers a new client: at once, or a little later on a busy machine."""
        began = time.monotonic()
        with Client(self.path) as client:
            assert client.call("ListPools") == {"pools": []}
        assert time.monotonic() - began < 30

    def rss_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def running(directory: Path, open_files: int | None = None) -> Iterator[Daemon]:
    if os.geteuid() != 0:
        pytest.skip("needs root: no other user may call virt-dmemd")
    config = directory / "virt-dmem.toml"
    config.write_text(
        f'[daemon]\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n[libvirt]\nuri = "test:///default"\n'
    )
    arguments = [sys.executable, "-m", "virt_dmem.daemon.main", "--config", str(config), "--log-level", "warning"]
    with (directory / "log").open("wb") as log, subprocess.Popen(arguments, cwd=REPOSITORY, stderr=log) as process:
        daemon = Daemon(directory, process)
        try:
            if open_files:
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (open_files, open_files))
            for _ in range(2400):
                try:
                    daemon.require_answer()
                    break
                except DaemonUnreachable:
                    assert process.poll() is None, daemon.log.read_text()
                    time.sleep(0.05)
            yield daemon
            assert process.poll() is None, daemon.log.read_text()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests of a module: damage done by one is noticed by the next."""
    with running(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon
        assert "Traceback" not in daemon.log.read_text(), daemon.log.read_text()


def send(daemon: Daemon, data: bytes, *, half_close: bool) -> bytes:
    """Send as much as the daemon reads; return all that it answers."""
    with daemon.connect() as caller:
        try:
            caller.sendall(data)
            if half_close:
                caller.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass
        caller.settimeout(60 if half_close else 0.02)
        heard = b""
        try:
            while chunk := caller.recv(65536):
                heard += chunk
        except (TimeoutError, ConnectionResetError):
            pass
        return heard


def wait_until_it_answers(daemon: Daemon) -> None:
    for _ in range(1200):
        try:
            daemon.require_answer()
            return
        except (DmemError, AssertionError):
            time.sleep(0.05)
    daemon.require_answer()
