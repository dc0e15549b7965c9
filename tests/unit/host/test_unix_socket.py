# SPDX-License-Identifier: GPL-2.0-or-later
"""The creator of a listening socket is known, and links are not followed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from virt_dmem.host import unix_socket

_LEAVE = """
import os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("left")
listener.listen()
if os.fork():
    sys.stdin.read()
    os._exit(0)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with TemporaryDirectory() as directory:  # a short one: the path of a socket is at most 107 bytes long
        monkeypatch.chdir(directory)
        yield


def test_a_link_to_a_socket_is_not_followed() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        listener.listen()
        Path("link").symlink_to("sock")
        with pytest.raises(OSError, match="is not a socket"):
            unix_socket.connect(Path("link"))
        unix_socket.connect(Path("sock")).close()


def test_the_listener_is_known_until_it_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", _LEAVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        child = int(first.stdout.readline())
        try:
            with unix_socket.connect(Path("left")) as connected:
                assert unix_socket.peer_pid(connected) == first.pid
                first.stdin.close()
                first.wait()
                assert unix_socket.peer_pid(connected) == 0, "its child still listens, and is not taken for it"
            with unix_socket.connect(Path("left")) as connected:
                assert unix_socket.peer_pid(connected) == 0
        finally:
            os.kill(child, signal.SIGKILL)


def test_only_a_socket_on_which_nobody_listens_is_removed() -> None:
    at = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as dead:
        listener.bind("alive")
        listener.listen()
        dead.bind("dead")
        dead.close()
        Path("file").touch()
        Path("directory").mkdir()
        Path("to-dead").symlink_to("dead")
        before = sorted(path.name for path in Path().iterdir())
        for name in ("alive", "file", "directory", "to-dead", "missing", "../x"):
            assert not unix_socket.remove_dead(name, at)
        assert unix_socket.remove_dead("dead", at, dry_run=True)
        assert sorted(path.name for path in Path().iterdir()) == before
        assert unix_socket.remove_dead("dead", at)
        assert {path.name for path in Path().iterdir()} == {*before} - {"dead"}
    os.close(at)


def test_a_bound_socket_is_known_before_it_listens() -> None:
    path = Path("early").absolute()
    with socket.socket(socket.AF_UNIX) as early:
        early.bind(str(path))
        assert str(path) in unix_socket.bound_paths()
    assert str(path) not in unix_socket.bound_paths()
