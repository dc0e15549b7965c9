# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem events``, with a real daemon."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.rig.answers import require_documented
from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.errors import ExitStatus
from virt_dmem.ipc.client import Client


@contextmanager
def changing(command: Command) -> Iterator[None]:
    """Drain a pool and undo it, over and over, meanwhile."""
    stop = threading.Event()

    def change() -> None:
        with Client(command.directory / "run/sock") as daemon:
            undo = False
            while not stop.wait(0.1):
                daemon.call("DrainPool", name="small", undo=undo)
                undo = not undo

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@in_own_mount_namespace
def test_each_event_is_a_line_or_an_object(command: Command) -> None:
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    with command.daemon():
        with changing(command):
            lines = command("events", "--count", "2").splitlines()
            objects = [json.loads(line) for line in command("events", "--count", "2", "--json").splitlines()]
        assert all("  pool      small " in line for line in lines), lines
        assert {line.split(" small ")[1] for line in lines} == {"draining: 8 MiB", "ready: 8 MiB"}
        for one in objects:
            assert require_documented(["events"], json.dumps(one))["kind"] == "pool"
        assert command("events", "--timeout", "1s") == ""
    assert "virt-dmemd does not answer" in command("events", status=ExitStatus.DAEMON_UNREACHABLE)
