# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd is notified over its socket, and its watchdog's interval is read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from virt_dmem.daemon.systemd import notify, watchdog_seconds


@pytest.mark.parametrize("abstract", [False, True])
def test_a_state_is_sent_as_a_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"@virt-dmem-{os.getpid()}" if abstract else "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert receiver.recv(100) == b"READY=1"


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


@pytest.mark.parametrize(
    ("pid", "usec", "seconds"),
    [(None, None, 0), (None, "30000000", 30), ("own", "500000", 0.5), ("1", "500000", 0)],
)
def test_the_watchdog_s_interval_is_that_of_this_process(
    monkeypatch: pytest.MonkeyPatch, pid: str | None, usec: str | None, seconds: float
) -> None:
    for name, value in (("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid), ("WATCHDOG_USEC", usec)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert watchdog_seconds() == seconds
