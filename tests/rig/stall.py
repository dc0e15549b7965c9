# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure how long QEMU's main loop does not answer."""

from __future__ import annotations

import contextlib
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
    """Poll a QEMU on a separate monitor (a unix socket), and record its slowest answer.

    ``pid``: of the QEMU; time in which it or this process waited for a CPU is not counted.
    """

    def __init__(self, monitor: Path, pid: int = 0) -> None:
        self._monitor = monitor
        self._pid = pid
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
                waited, began = self._waited(), time.monotonic()
                self._ask(monitor, lines, "query-status")
                took = time.monotonic() - began
                others = sum(now - waited.get(thread, now) for thread, now in self._waited().items())
                self.longest = max(self.longest, took - others)
                self.answers += 1
                time.sleep(0.002)

    def _waited(self) -> dict[str, float]:
        """Return for how many seconds each thread has waited for a CPU (scheduler/sched-stats.rst)."""
        found = {}
        threads = Path(f"/proc/{self._pid}/task").iterdir() if self._pid else ()
        for thread in (*threads, *([Path("/proc/thread-self")] if self._pid else [])):
            with contextlib.suppress(OSError):
                found[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
        return found

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
