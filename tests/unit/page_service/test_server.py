# SPDX-License-Identifier: GPL-2.0-or-later
"""virt-dmem-pages on a real socket, without pools: who is served, and what is no request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolNotFound
from virt_dmem.page_service import server
from virt_dmem.page_service.server import PageServer
from virt_dmem.pools.elastic import client
from virt_dmem.pools.elastic.wire import MOST_BYTES, Take, encode
from virt_dmem.pools.segment_id import SegmentId

NOBODY = 65534
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root is served")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The socket of a server, which everybody may connect to here."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 1.0)
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))
    path = tmp_path / "socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    path.chmod(0o666)
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_mode & 0o777 == 0o700:
            above.chmod(0o711)
    ended, end = os.pipe()
    thread = threading.Thread(target=PageServer(config, listener, ended, None).run)
    thread.start()
    yield path
    os.write(end, b"x")
    thread.join(30)
    assert not thread.is_alive()
    for fd in (ended, end):
        os.close(fd)
    listener.close()


def said(path: Path, sent: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(30)
        caller.connect(str(path))
        caller.sendall(sent)
        answer = b""
        while more := caller.recv(65536):
            answer += more
        return answer


@ROOT_ONLY
def test_root_is_answered_and_an_error_arrives_as_what_it_was(path: Path) -> None:
    with pytest.raises(PoolNotFound, match="no pool 'guests'"):
        asyncio.run(client.take(path, "guests", {0: 2 << 20}, lambda *_: None))
    with pytest.raises(PoolNotFound):
        asyncio.run(client.give_back(path, SegmentId("guests+1")))


@ROOT_ONLY
def test_other_users_are_not_answered(path: Path) -> None:
    child = os.fork()
    if child == 0:
        status = 2  # it must not go on as a test of its own, whatever fails
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            status = int(bool(said(path, encode(Take("guests", {0: 2 << 20})))))
        except ConnectionError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert b"pool-not-found" in said(path, encode(Take("guests", {0: 2 << 20})))


@ROOT_ONLY
@pytest.mark.parametrize(
    "line", [b"{}\n", b"\xff\n", b"\0\n", b"take guests\n", b'{"type":"destroy"}\n', b"[" * 9999 + b"\n"]
)
def test_what_is_no_request_is_rejected_in_words(path: Path, line: bytes) -> None:
    assert b"not a request for huge pages" in said(path, line)


@ROOT_ONLY
def test_who_says_too_much_too_little_or_nothing_is_left_and_the_next_is_served(path: Path) -> None:
    with contextlib.suppress(ConnectionError):  # it was closed with something unread
        assert said(path, b"x" * (3 * MOST_BYTES)) == b""
    assert said(path, b'{"type":"take"') == b""  # within REQUEST_SECONDS
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        assert b"pool-not-found" in said(path, encode(Take("guests", {0: 2 << 20})))


def test_it_ends_when_nobody_asks_any_more(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    ended, end = os.pipe()
    PageServer(Config(), listener, ended, 0.01).run()
    for fd in (ended, end):
        os.close(fd)
    listener.close()
