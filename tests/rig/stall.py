# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure how long QEMU's main loop does not answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.processes import wait_for

__all__ = ["StallWatch"]


class StallWatch:
    """A client that polls a QEMU on a separate monitor (a unix socket), and records its slowest answer."""

    def __init__(self, monitor: Path) -> None:
        self._monitor = monitor
        self.longest = 0.0
        """In seconds."""
        self.answers = 0
        self._end = threading.Event()

    def run(self) -> None:
        """Poll until told to stop."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._monitor))
            lines = monitor.makefile("r")
            lines.readline()
            self._ask(monitor, lines, "qmp_capabilities")
            while not self._end.is_set():
                began = time.monotonic()
                self._ask(monitor, lines, "query-status")
                self.longest = max(self.longest, time.monotonic() - began)
                self.answers += 1
                time.sleep(0.002)

    @staticmethod
    def _ask(monitor: socket.socket, lines: Iterator[str], command: str) -> None:
        monitor.sendall(json.dumps({"execute": command}).encode())
        for line in lines:
            if "return" in json.loads(line):
                return

    @contextmanager
    def running(self) -> Iterator[None]:
        """Poll for as long as the context lasts."""
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        wait_for("QEMU to answer", lambda: self.answers > 10)
        self.longest = 0.0
        try:
            yield
        finally:
            self._end.set()
            thread.join(60)
